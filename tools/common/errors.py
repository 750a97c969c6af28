"""The one error of the commands that is the user's to mend."""

import os
import sys

from .messages import single_line


class UserError(Exception):
    """A mistake in what the user gave; the command line prints its message and exits with code 2."""

    def __str__(self) -> str:
        text = super().__str__()
        if not text.startswith("Caught UserError in DataLoader worker"):
            return text
        # A worker hands the error on as a text: its traceback, and the message behind it.
        return text.rpartition(f"\n{__name__}.UserError: ")[2].strip()


def warn(message: str) -> None:
    """Print a warning as one line, as the command line prints errors: of a launcher's processes the first alone."""
    if os.environ.get("RANK", "0") == "0":
        print(f"attnzoo: warning: {single_line(message)}", file=sys.stderr, flush=True)
