"""What is being done with the code that runs: one answer for every supported version of PyTorch."""

from collections.abc import Callable
from typing import Any

import torch

# Before it, `torch.compiler.is_exporting` is not to be trusted: see `is_exporting`.
_TRUSTED = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 15)


def is_exporting() -> bool:
    """Whether `torch.export` (and through it the ONNX exporter) is tracing; False under `torch.compile`.

    `torch.compiler.is_exporting` was True under `torch.compile` too
    (https://github.com/pytorch/pytorch/issues/176347), so that a compiled model would have taken the exporter's
    branches. The flag behind it, which `torch.export` sets and `torch.compile` reads as it stands, was right.
    """
    return torch.compiler.is_exporting() if _TRUSTED else torch.compiler._is_exporting_flag


def leaves_sizes_free() -> bool:
    """Whether a graph of plain PyTorch is being made that must serve other sizes too: by an exporter or a tracer."""
    return is_exporting() or torch.jit.is_tracing()


def are_sizes_free() -> bool:
    """Whether a graph is being made, by `torch.compile` too, that a check of sizes would bind to the example's."""
    return torch.compiler.is_compiling() or is_exporting()


def untraced(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function of which `torch.jit.trace` records nothing, and to which sizes are plain numbers."""
    if not torch.jit.is_tracing():
        return function(*args)
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        return function(*args)
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]
