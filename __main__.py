"""`python -m attnzoo`."""

from .tools.cli import console

console()
