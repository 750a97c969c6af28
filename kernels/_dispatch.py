"""Which implementation an operator runs: Triton's kernels or plain PyTorch.

Every operator takes `backend="auto" | "triton" | "torch"`. "auto", the default, follows `use_backend` or else the
environment variable ATTNZOO_BACKEND, and where these say "auto" too, runs Triton on every GPU on which it can run.
Exporters always get plain PyTorch.
"""

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator

import torch

from .tracing import is_exporting

BACKENDS = ("auto", "triton", "torch")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Triton's interpreter multiplies the bits of bfloat16 numbers as integers.
INTERPRETED_DTYPES = (torch.float32, torch.float16)

# As Triton itself reads it, when its kernels are decorated.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")

_INSTALLED = importlib.util.find_spec("triton") is not None
_ENVIRONMENT = "ATTNZOO_BACKEND"
# A list, so that a compiled graph is guarded by what it holds.
_current = [os.environ.get(_ENVIRONMENT, "auto")]
_reasons: dict[str, Callable[..., str | None]] = {}


def _checked(backend: str, source: str) -> str:
    if backend not in BACKENDS:
        raise ValueError(f"{source} must be one of {', '.join(BACKENDS)}, got {backend!r}")
    return backend


@contextlib.contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Within it, operators that are called with `backend="auto"` run this one; in all threads.

    Args:
        backend: "auto", "triton" or "torch".

    Raises:
        ValueError: for another name.

    Example:
        >>> import torch
        >>> from attnzoo.kernels import neighborhood_attention, use_backend
        >>> q = k = v = torch.rand(1, 8, 8, 32)
        >>> with use_backend("torch"):
        ...     neighborhood_attention(q, k, v, num_heads=2, kernel_size=3).shape
        torch.Size([1, 8, 8, 32])
    """
    before = _current[0]
    _current[0] = _checked(backend, "backend")
    try:
        yield
    finally:
        _current[0] = before


def register(operator: str, why_not: Callable[..., str | None]) -> None:
    """Tells `can_run` of an operator; `why_not` takes the operator's arguments and gives a reason or None."""
    _reasons[operator] = why_not


def can_run(operator: str, *args: object, raise_error: bool = False, **kwargs: object) -> bool:
    """Whether Triton's kernels of an operator can run on these arguments.

    Args:
        operator: its name, such as "routing_attention".
        *args: what the operator would be called with.
        raise_error: raise where they cannot.
        **kwargs: what the operator would be called with.

    Returns:
        True if they can.

    Raises:
        ValueError: for an unknown operator.
        RuntimeError: with `raise_error`, where they cannot run; it says why.
    """
    if operator not in _reasons:
        raise ValueError(f"operator must be one of {', '.join(sorted(_reasons))}, got {operator!r}")
    kwargs.pop("backend", None)
    reason = _reasons[operator](*args, **kwargs)
    if reason is not None and raise_error:
        raise RuntimeError(f"{operator}: Triton cannot run: {reason}")
    return reason is None


def use_triton(operator: str, backend: str, device: torch.device, reason: str | None) -> bool:
    """The choice for one call.

    Args:
        operator: its name, for errors.
        backend: as the caller gave it.
        device: of the tensors.
        reason: why Triton cannot run here, None if it can.

    Raises:
        ValueError: for an unknown `backend`, here or in the environment.
        RuntimeError: where Triton is asked for and cannot run.
    """
    chosen = _checked(backend, "backend")
    if chosen == "auto":
        chosen = _checked(_current[0], _ENVIRONMENT)
    if chosen == "torch" or is_exporting() or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing():
        return False
    if chosen == "triton" and reason is not None:
        raise RuntimeError(f"{operator}: Triton cannot run: {reason}; backend='auto' or 'torch' would")
    # The interpreter, on the CPU, is for tests: nobody wants it unasked.
    return reason is None and (chosen == "triton" or device.type == "cuda")


def why_not(*tensors: torch.Tensor | None) -> str | None:
    """What keeps any of the kernels from running on these tensors, None if nothing does."""
    given = [x for x in tensors if x is not None]
    device, dtype = given[0].device, given[0].dtype
    if not _INSTALLED:
        return "triton is not installed (pip install triton)"
    if device.type != "cuda" and not (device.type == "cpu" and INTERPRETED):
        return f"tensors are on {device.type}, it needs an NVIDIA GPU (or TRITON_INTERPRET=1 for its interpreter)"
    if device.type == "cuda" and _capability(device.index or 0) < (8, 0):
        return "the GPU is older than compute capability 8.0 (Ampere)"
    if dtype not in DTYPES:
        return f"dtype is {dtype}, it needs float32, bfloat16 or float16"
    if device.type == "cpu" and dtype not in INTERPRETED_DTYPES:
        return f"dtype is {dtype}, of which Triton's interpreter makes wrong products"
    for x in given[1:]:
        if x.device != device or x.dtype != dtype:
            return f"tensors differ: {dtype} on {device} and {x.dtype} on {x.device}"
    return None


@torch.compiler.assume_constant_result
def _capability(index: int) -> tuple[int, int]:
    if torch.version.hip is not None:
        return 0, 0
    return torch.cuda.get_device_capability(index)


def device_of(x: torch.Tensor) -> contextlib.AbstractContextManager:
    """Makes the GPU of a tensor the current one, on which Triton launches; nothing on the CPU."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def dot_precision() -> str:
    """Triton's `input_precision` for products of float32, as PyTorch is set for its own."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
