"""The one error of the commands that is the user's to mend."""

import sys


class UserError(Exception):
    """A mistake in what the user gave; the command line prints its message and exits with code 2."""


def warn(message: str) -> None:
    """Print a warning as one line, as the command line prints errors."""
    print(f"attnzoo: warning: {' '.join(message.split())}", file=sys.stderr, flush=True)
