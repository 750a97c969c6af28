"""The one error of the commands that is the user's to mend, and what tells it from others."""

import os
import sys
import sysconfig
from pathlib import Path
from traceback import walk_tb

_LIBRARIES = ("attnzoo", "mmengine", "mmcv", "mmdet", "mmseg", "timm", "torch", "torchvision")
_INSTALLED = tuple(
    f"{Path(sysconfig.get_path(name)).resolve()}{os.sep}" for name in ("stdlib", "platstdlib", "purelib", "platlib")
)


class UserError(Exception):
    """A mistake in what the user gave; the command line prints its message and exits with code 2."""


def warn(message: str) -> None:
    """Print a warning as one line, as the command line prints errors."""
    print(f"attnzoo: warning: {' '.join(message.split())}", file=sys.stderr, flush=True)


def in_own_code(error: BaseException) -> bool:
    """Whether an error was raised in, or below, code of the user's own: a data set class, a hook, a transform.

    Such an error is no mistake in what was given to a command, and its traceback is what mends it. Own code is what
    is neither installed nor of a library that can be a checkout.
    """
    for frame, _ in walk_tb(error.__traceback__):
        library = str(frame.f_globals.get("__name__")).partition(".")[0] in _LIBRARIES
        path = frame.f_code.co_filename
        if not library and not path.startswith("<") and not str(Path(path).resolve()).startswith(_INSTALLED):
            return True
    return False
