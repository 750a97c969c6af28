"""The options that training and testing share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.loading import add_config_options

if TYPE_CHECKING:
    from mmengine.config import Config


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that training and testing share."""
    parser.add_argument("--work-dir", metavar="DIR", help="where logs and checkpoints go (work_dirs/<config>)")
    add_config_options(parser)
    parser.add_argument("--launcher", choices=("none", "pytorch"), default="none", help="pytorch: run by torchrun")


def set_work_dir(cfg: Config, work_dir: str | None) -> None:
    """Set `cfg.work_dir`: the option, or what the config says, or `work_dirs/<name of the config>`."""
    cfg.work_dir = work_dir or cfg.get("work_dir") or str(Path("work_dirs", Path(cfg.filename).stem))
