"""What a reader needs to repeat a measurement."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

from ... import __version__
from ..common.machine import cpu_name


def conditions(args: argparse.Namespace) -> dict[str, Any]:
    """What a reader needs to repeat a run of `attnzoo bench` with these arguments."""
    import torch

    command = ["attnzoo", *sys.argv[1:]] if Path(sys.argv[0]).stem in ("attnzoo", "__main__") else ["attnzoo", "bench"]
    return {
        "command": shlex.join(command),
        "device": torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else cpu_name(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "versions": {
            "attnzoo": __version__,
            "python": platform.python_version(),
            **versions("torch", "timm"),
        },
        "clock": "CUDA events" if args.device.startswith("cuda") else "processor" if args.cpu_time else "wall",
        "threads": args.threads,
        "batch": args.batch,
        "repeat": args.repeat,
        "features": args.features,
        "dtype": "float32",
    }


def versions(*names: str) -> dict[str, str]:
    """Of those of these packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
