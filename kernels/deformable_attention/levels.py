"""Sizes and starts of levels as tensors on the device that reads them."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from ..tracing import is_exporting, leaves_sizes_free, untraced

# Half a megabyte of a GPU's memory, which gives out 512 bytes at least. None is ever dropped: a CUDA graph that was
# captured holds its address.
_MOST = 1024
_kept: dict[tuple[Any, ...], Tensor] = {}
_lock = threading.Lock()


def on_device(given: Tensor | Sequence[Any], x: Tensor) -> Tensor:
    """Levels as int32 or int64 on the device of `x`.

    Numbers are constants of the graph that a compiler, exporter or tracer makes; otherwise they are copied once, see
    `kept`.
    """
    if isinstance(given, Tensor):
        given = given.to(x.device)
        return given if given.dtype in (torch.int32, torch.int64) else given.int()
    if torch.compiler.is_compiling() and not is_exporting():
        # A tensor of numbers would be a constant on the host, to be copied in every call.
        numbers = [torch.full((), number, dtype=torch.int32, device=x.device) for number in flat(given)]
        return torch.stack(numbers).view(len(given), -1).squeeze(1)
    if leaves_sizes_free() or _is_fake(x):
        return untraced(functools.partial(torch.tensor, given, dtype=torch.int32, device=x.device))
    return kept(given, x.device)


def flat(numbers: Sequence[Any]) -> list[int]:
    """Pairs of numbers one after the other; numbers as they are."""
    return [number for x in numbers for number in (x if isinstance(x, (list, tuple)) else (x,))]


def kept(numbers: Sequence[Any], device: torch.device) -> Tensor:
    """An int32 tensor of numbers, or of pairs of them, that every call with the same ones gets. It must not be changed.

    Raises:
        RuntimeError: where a CUDA graph is being captured and the numbers are new: it cannot hold their copy.
    """
    key = (device, *(tuple(x) if isinstance(x, (list, tuple)) else x for x in numbers))
    found = _kept.get(key)
    if found is not None:
        return found
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "levels given as lists are copied to the GPU by the first call that has them, which a CUDA graph cannot "
            "capture: call the operator with these levels once before the capture, or give them as tensors"
        )
    # In a thread of its own there is neither inference mode nor a transform or dispatch mode, whose tensors are of no
    # use later, nor the memory pool from which `torch.compile` feeds CUDA graphs on the current thread.
    with ThreadPoolExecutor(1) as thread:
        made = thread.submit(torch.tensor, numbers, dtype=torch.int32, device=device).result()
    with _lock:
        return _kept.setdefault(key, made) if len(_kept) < _MOST else made


def _is_fake(x: Tensor) -> bool:
    """Whether a tensor made beside `x` is to be one without memory."""
    return isinstance(x, FakeTensor) or any(
        isinstance(mode, FakeTensorMode) for mode in _get_current_dispatch_mode_stack()
    )
