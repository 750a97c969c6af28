"""The files and folders that a run of a config reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .classes import nested


def data_paths(cfg: Any) -> list[Path]:
    """Folders and files of the data sets of a config."""
    paths = []
    for part in nested([cfg.get(f"{mode}_dataloader") for mode in ("train", "val", "test")]):
        root, prefix = part.get("data_root"), part.get("data_prefix")
        root = root if isinstance(root, (str, Path)) else None
        names = [part.get("ann_file"), *(prefix.values() if isinstance(prefix, dict) else [prefix])]
        paths += [Path(root)] if root else []
        paths += [Path(root or "", name) for name in names if isinstance(name, str) and name]
    return paths


def _with_bases(filename: Any) -> list[str]:
    """A config file and those that it inherits from, as far as they are files."""
    from mmengine.config import Config

    found: list[str] = []
    waiting = [filename]
    while waiting:
        name = waiting.pop()
        if isinstance(name, str) and os.path.isfile(name) and name not in found:
            found.append(name)
            folder = os.path.dirname(name)
            bases = Config._get_base_files(name)
            waiting += [os.path.join(folder, base) for base in bases if "::" not in base]
    return found


def read_files(cfg: Any) -> list[Path]:
    """Files that a run of a config reads: the config and its bases, annotations, and checkpoints to start from."""
    names = [*_with_bases(cfg.filename), cfg.get("load_from")]
    for part in nested([cfg.get("model"), cfg.get("val_evaluator"), cfg.get("test_evaluator")]):
        # `file` is of timm's pretrained_cfg_overlay.
        names += [part.get(key) for key in ("checkpoint", "pretrained", "file", "ann_file")]
    return [Path(name) for name in names if isinstance(name, str) and name] + data_paths(cfg)
