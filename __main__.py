"""`python -m attnzoo`."""

import sys

from .tools.cli import main

sys.exit(main())
