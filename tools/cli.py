"""The command line: `attnzoo <command>`.

A command is a module of this folder with `add_arguments(parser)`, `run(args) -> int` and, for its help, a docstring and
`EPILOG`, and a line of `COMMANDS`. It is imported when it is called, so that none pays for another's libraries.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import NoReturn

from .common import command
from .common.errors import UserError
from .common.messages import nearest

COMMANDS = {
    "list": ("list_models", "the models of the zoo, or its configs"),
    "info": ("info", "what is known of a model: size, strides, licence, paper, published accuracy"),
    "demo": ("demo", "train a small detector and a small segmentor on real images, in minutes"),
    "train": ("train", "train the model of a config"),
    "test": ("test", "evaluate a checkpoint on the test data of a config"),
    "predict": ("predict", "draw and write what a checkpoint sees in images, or upscale them"),
    "export": ("export", "write a checkpoint as ONNX and compare it with PyTorch"),
    "bench": ("bench", "measure time and memory of models and operators, beside their competitors"),
    "gpu": ("gpu_check", "check, time and tune the kernels on this machine's GPU"),
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


def _module(name: str) -> ModuleType:
    if name not in COMMANDS:
        raise UserError(f"no command {name!r}{nearest(name, COMMANDS)} (attnzoo --help lists them)")
    return importlib.import_module(f".{COMMANDS[name][0]}", __package__)


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments, those of the process by default.

    Returns:
        The exit code: 0, 2 for a mistake of the user, a file that cannot be read or written or too little memory, 130
        when interrupted, 141 when nobody reads the output to its end.
    """
    argv = sys.argv[1:] if argv is None else argv
    words = [argument for argument in argv if argument != command.TRACEBACK]
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0 if words else 2
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"attnzoo {version('attnzoo')}")
        return 0
    name, rest = words[0], list(argv)
    rest.remove(name)
    return command.run(name, lambda: _module(name), rest)


def console(argv: list[str] | None = None) -> NoReturn:
    """Run one command and end the process with its exit code.

    Args:
        argv: As of `main`.
    """
    command.finish(main(argv))


if __name__ == "__main__":
    console()
