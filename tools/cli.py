"""The command line: `attnzoo <command>`.

A command is a module of this folder with `add_arguments(parser)`, `run(args) -> int` and, for its help, a docstring and
`EPILOG`. It is imported when it is called, so that none pays for another's libraries.
"""

from __future__ import annotations

import argparse
import atexit
import importlib
import os
import signal
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from .common.errors import UserError
from .config.loading import nearest

_TRACEBACK = "--traceback"
COMMANDS = {
    "list": ("list_models", "the models of the zoo, or its configs"),
    "info": ("info", "what is known of a model: size, strides, licence, paper, published accuracy"),
    "demo": ("demo", "train a small detector and a small segmentor on real images, in minutes"),
    "train": ("train", "train the model of a config"),
    "test": ("test", "evaluate a checkpoint on the test data of a config"),
    "predict": ("predict", "draw and write what a checkpoint sees in images, or upscale them"),
    "export": ("export", "write a checkpoint as ONNX and compare it with PyTorch"),
    "bench": ("bench", "measure time and memory of models and operators, beside their competitors"),
    "compare": ("compare", "train a small detector without and with each plug-in attention"),
    "probe": ("probe", "compare frozen backbones by a small classifier on their features"),
    "card": ("card", "print or write the model cards"),
}


def _overview() -> str:
    table = "\n".join(f"  {name:<9} {what}" for name, (_, what) in COMMANDS.items())
    return (
        "usage: attnzoo COMMAND …\n\nAttention backbones as timm models, in detectors and segmentors.\n\n"
        f"commands:\n{table}\n\n"
        "examples:\n"
        "  attnzoo list 'van*'\n"
        "  attnzoo demo\n"
        "  attnzoo train --help              arguments and examples of a command\n\n"
        "--traceback, or ATTNZOO_TRACEBACK=1, shows where an error comes from\n"
    )


def _parser(name: str) -> tuple[argparse.ArgumentParser, ModuleType]:
    module = importlib.import_module(f".{COMMANDS[name][0]}", __package__)
    parser = argparse.ArgumentParser(
        prog=f"attnzoo {name}",
        description=module.__doc__,
        epilog=getattr(module, "EPILOG", None),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    # Taken from the line before it is parsed, so that it can stand anywhere; here for the help.
    parser.add_argument(_TRACEBACK, action="store_true", help="show where an error comes from, above its line")
    return parser, module


def _check_letters(args: argparse.Namespace) -> None:
    """Refuse names that are no UTF-8: libraries cannot note them, nor can all be printed; images are only read."""
    for name, value in vars(args).items():
        for part in value if isinstance(value, list) and name != "images" else [value]:
            if isinstance(part, str | Path) and any("\ud800" <= sign <= "\udfff" for sign in str(part)):
                raise UserError(f"{part}: is no UTF-8: give it another name")


def _error_line(error: BaseException) -> str:
    """The message of an error on one line, whatever is in a name that it tells: letters and signs only."""
    text = str(error)
    if isinstance(error, OSError):
        text = str(error.strerror) if error.filename is None else f"{error.strerror}: {error.filename!r}"
    text = " ".join(text.split())
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


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


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments, those of the process by default.

    Returns:
        The exit code: 0, 2 for a mistake of the user, a file that cannot be read or written or too little memory, 130
        when interrupted, 141 when nobody reads the output to its end.
    """
    argv = sys.argv[1:] if argv is None else argv
    show = _TRACEBACK in argv or os.environ.get("ATTNZOO_TRACEBACK", "0") not in ("", "0")
    argv = [argument for argument in argv if argument != _TRACEBACK]
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0 if argv else 2
    if argv[0] == "--version":
        from importlib.metadata import version

        print(f"attnzoo {version('attnzoo')}")
        return 0
    try:
        if argv[0] not in COMMANDS:
            raise UserError(f"no command {argv[0]!r}{nearest(argv[0], COMMANDS)} (attnzoo --help lists them)")
        parser, module = _parser(argv[0])
        args = parser.parse_args(argv[1:])
        _check_letters(args)
        code: int = module.run(args)
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


def console(argv: list[str] | None = None) -> NoReturn:
    """Run one command and end the process with its exit code.

    Args:
        argv: As of `main`.
    """
    code = main(argv)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # One of torchrun's processes ends without taking the interpreter apart: a thread of gloo that still lets go
        # of its last tensors would then abort it, and a run that has succeeded would be reported as failed.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    console()
