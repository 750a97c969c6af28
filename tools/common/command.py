"""One command on the command line: its arguments, its errors as one line, its exit code."""

from __future__ import annotations

import argparse
import atexit
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from .errors import UserError
from .messages import printable

TRACEBACK = "--traceback"


def parser_of(name: str, module: ModuleType) -> argparse.ArgumentParser:
    """The arguments of a command.

    Args:
        name: Of the command.
        module: With `add_arguments(parser)`, `run(args) -> int` and, for the help, a docstring and `EPILOG`.
    """
    parser = argparse.ArgumentParser(
        prog=f"attnzoo {name}",
        description=module.__doc__,
        epilog=getattr(module, "EPILOG", None),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    # Taken from the line before it is parsed, so that it can stand anywhere; here for the help.
    parser.add_argument(TRACEBACK, action="store_true", help="show where an error comes from, above its line")
    return parser


def run(name: str, module: Callable[[], ModuleType], argv: list[str]) -> int:
    """Run a command.

    Args:
        name: Of the command.
        module: Gives its module, as of `parser_of`; a UserError that it raises is told like those of the command.
        argv: The arguments behind the name.

    Returns:
        The exit code: that of the command, 2 for a mistake of the user, a file that cannot be read or written or too
        little memory, 130 when interrupted, 141 when nobody reads the output to its end.
    """
    show = TRACEBACK in argv or os.environ.get("ATTNZOO_TRACEBACK", "0") not in ("", "0")
    argv = [argument for argument in argv if argument != TRACEBACK]
    try:
        found = module()
        args = parser_of(name, found).parse_args(argv)
        _check_letters(args)
        code: int = found.run(args)
        sys.stdout.flush()
        return code
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, BrokenPipeError) and _is_unread():
            return 128 + signal.SIGPIPE  # as a shell tells of other programs
        memory = _is_of_memory(error)
        # A fault of ours, or an error of a library's own instead of the system's.
        if not (memory or isinstance(error, (UserError, OSError))) or (
            isinstance(error, OSError) and error.strerror is None
        ):
            raise
        if show:
            traceback.print_exception(error)
        line = _error_line(error)
        if memory:
            line = f"out of memory: {line}" if line else "out of memory"
        print(f"attnzoo: error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("attnzoo: interrupted", file=sys.stderr)
        return 130


def finish(code: int) -> NoReturn:
    """End the process with an exit code."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # One of torchrun's processes ends without taking the interpreter apart: a thread of gloo that still lets go
        # of its last tensors would then abort it, and a run that has succeeded would be reported as failed.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run_main(name: str, module: dict[str, Any]) -> NoReturn:
    """Run the command whose module is the program, as by `python -m attnzoo.tools.train`, and end the process.

    Args:
        name: Of the command.
        module: Its `globals()`. Under a profiler `sys.modules["__main__"]` is another.
    """
    program = ModuleType(str(module["__name__"]), module["__doc__"])
    vars(program).update(module)
    finish(run(name, lambda: program, sys.argv[1:]))


def _check_letters(args: argparse.Namespace) -> None:
    """Refuse names that are no UTF-8: libraries cannot note them, nor can all be printed; images are only read."""
    for name, value in vars(args).items():
        for part in value if isinstance(value, list) and name != "images" else [value]:
            if isinstance(part, str | Path) and any("\ud800" <= sign <= "\udfff" for sign in str(part)):
                raise UserError(f"{part}: is no UTF-8: give it another name")


def _error_line(error: BaseException) -> str:
    """The message of an error on one line, whatever is in a name that it tells."""
    if isinstance(error, OSError):
        return printable(str(error.strerror) if error.filename is None else f"{error.strerror}: {error.filename!r}")
    return printable(str(error))


def _is_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory, of the CPU or of a GPU."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))


def _is_unread() -> bool:
    """Whether nobody reads the output to its end, as `head` does not; then the rest of it is dropped."""
    try:
        print(flush=True)
    except BrokenPipeError:
        # What is left in the buffer is written when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
