"""Checkpoints, read without running code of theirs."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import get_torch_safe_globals
from timm.models import load_state_dict
from torch import Tensor


def _method(owner: Any, name: str) -> Any:
    if owner is not HistoryBuffer or name.startswith("_"):
        raise pickle.UnpicklingError(f"GLOBAL getattr was not an allowed global for {owner!r}")
    return getattr(owner, name)


def known_classes() -> list[Any]:
    """What an mmengine checkpoint holds beside tensors: its log buffers, which are numpy arrays with some methods.

    mmengine's own list has the whole `getattr`, with which a pickle reaches every module, and but three dtypes.

    Returns:
        Entries for `torch.serialization.safe_globals`.
    """
    allowed = [item for item in get_torch_safe_globals() if item is not getattr]
    dtypes = [item for item in vars(np.dtypes).values() if isinstance(item, type) and issubclass(item, np.dtype)]
    return [*allowed, *dtypes, (_method, "builtins.getattr")]


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint file, read without running any code of it."""
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint={str(path)!r}: no such file")
    try:
        # mmengine's runner stores its log beside the weights.
        with torch.serialization.safe_globals(known_classes()):
            return load_state_dict(str(path))
    except Exception as error:  # each reader fails in its own way on a damaged file
        raise RuntimeError(f"{path}: no readable checkpoint: {error}") from error
