"""The one error of the commands that is the user's to mend."""

import os
import sys


class UserError(Exception):
    """A mistake in what the user gave; the command line prints its message and exits with code 2."""


def warn(message: str) -> None:
    """Print a warning as one line, as the command line prints errors: of a launcher's processes the first alone."""
    if os.environ.get("RANK", "0") == "0":
        print(f"attnzoo: warning: {' '.join(message.split())}", file=sys.stderr, flush=True)
