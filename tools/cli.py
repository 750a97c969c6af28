"""The command line: `attnzoo <command>`.

A command is a module of this folder with `add_arguments(parser)`, `run(args) -> int` and, for its help, a docstring and
`EPILOG`. It is imported when it is called, so that none pays for another's libraries.
"""

from __future__ import annotations

import argparse
import atexit
import importlib
import os
import sys
from types import ModuleType
from typing import NoReturn

from .config import nearest
from .errors import UserError

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
        "  attnzoo train --help              arguments and examples of a command\n"
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
    return parser, module


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments, those of the process by default.

    Returns:
        The exit code: 0, 2 for a mistake of the user or a file that cannot be read or written, 130 when interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
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
        return module.run(parser.parse_args(argv[1:]))
    except UserError as error:
        print(f"attnzoo: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        print(f"attnzoo: error: {error.strerror}: {error.filename!r}", file=sys.stderr)
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
