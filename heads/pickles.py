"""Which classes a checkpoint of the mm libraries may hold, for `torch.load(weights_only=True)`."""

import pickle
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import get_torch_safe_globals


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
