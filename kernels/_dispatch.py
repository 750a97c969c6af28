"""Which implementation an operator runs: Triton's kernels or plain PyTorch.

Every operator takes `backend="auto" | "triton" | "torch"`. "auto", the default, follows `use_backend` or else the
environment variable ATTNZOO_BACKEND. Where these say "auto" too, Triton runs exactly where the package's table of
measurements says that on such a GPU it is right and faster (`_measured`), else PyTorch. Exporters and tracers always
get plain PyTorch.
"""

import contextlib
import contextvars
import importlib.util
import inspect
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

from . import _derivatives, _measured
from .tracing import leaves_sizes_free

BACKENDS = ("auto", "triton", "torch")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Triton's interpreter multiplies the bits of bfloat16 numbers as integers.
INTERPRETED_DTYPES = (torch.float32, torch.float16)

# As Triton itself reads it, when its kernels are decorated.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")

_INSTALLED = importlib.util.find_spec("triton") is not None
# That of the lowest PyTorch that the package allows.
LOWEST_TRITON = (3, 5)
_ENVIRONMENT = "ATTNZOO_BACKEND"
# A list, so that a compiled graph is guarded by what it holds.
_default = [os.environ.get(_ENVIRONMENT, "auto")]

# What `use_backend` asks for, the newest last: lists of one name, which is None once the context has ended.
_Entries = tuple[list[str | None], ...]
_entered: contextvars.ContextVar[_Entries] = contextvars.ContextVar("attnzoo_backend", default=())
# The same for `torch.compile` of PyTorch that cannot trace a context variable (2.9; tried with 2.14, which can), but
# guards what it reads of a thread's own variables.
_of_thread = threading.local()
_COMPILES_CONTEXTS = torch.__version__ >= "2.14"
# All that have not ended, of whatever context: what holds in threads that Python did not start.
_all_entered: list[list[str | None]] = []

# Devices that the table of measurements is about.
_MEASURED_DEVICES = ("cuda",)
_log = logging.getLogger("attnzoo")
# What was warned of.
_told: set[str] = set()

_operators: dict[str, tuple[inspect.Signature, Callable[..., None], Callable[..., str | None]]] = {}


def _checked(backend: str, source: str) -> str:
    if backend not in BACKENDS:
        raise ValueError(f"{source} must be one of {', '.join(BACKENDS)}, got {backend!r}")
    return backend


@contextlib.contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Within it, operators that are called with `backend="auto"` run this one.

    It holds in the current context (`contextvars`): in this thread or asynchronous task. A new thread begins with what
    the environment variable ATTNZOO_BACKEND says; so do those of `torch.nn.DataParallel`. A backward pass runs the
    backend of its forward pass, wherever it is called; under gradient checkpointing, which runs operators again, it
    must be called within the same choice, which then holds in autograd's own threads too.

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
    entry: list[str | None] = [_checked(backend, "backend")]
    _all_entered.append(entry)
    _enter((*_still_entered(), entry))
    try:
        yield
    finally:
        # Generators end in any order, and in any context: this may not be the newest entry, nor one of this context.
        entry[0] = None
        # By identity: those that have ended are all equal.
        _all_entered[:] = [other for other in _all_entered if other is not entry]
        _enter(_still_entered())


def _still_entered() -> _Entries:
    return tuple(entry for entry in _entered.get() if entry[0] is not None)


def _enter(entries: _Entries) -> None:
    _entered.set(entries)
    _of_thread.entries = entries


def _current() -> str:
    """What "auto" stands for in this context."""
    if not torch.compiler.is_compiling():
        entries = _entered.get()
        # Autograd has threads of its own, one a GPU, which know of no context; gradient checkpointing calls operators
        # there.
        if not entries and _all_entered and isinstance(threading.current_thread(), threading._DummyThread):
            entries = tuple(_all_entered)
    elif _COMPILES_CONTEXTS:
        entries = _entered.get()
    else:
        entries = getattr(_of_thread, "entries", ())
    for entry in reversed(entries):
        if entry[0] is not None:
            return entry[0]
    return _checked(_default[0], _ENVIRONMENT)


def register(
    operator: str, function: Callable[..., torch.Tensor], check: Callable[..., None], why_not: Callable[..., str | None]
) -> None:
    """Tells `can_run` of an operator.

    Args:
        operator: its name.
        function: the operator; its last argument is `backend`.
        check: takes the others by their names; raises TypeError or ValueError where they are wrong.
        why_not: takes the same, if they are right; what keeps Triton from running, or None.
    """
    _operators[operator] = inspect.signature(function), check, why_not


def can_run(operator: str, *args: object, raise_error: bool = False, **kwargs: object) -> bool:
    """Whether Triton's kernels of an operator can run on these arguments.

    Args:
        operator: its name, such as "routing_attention".
        *args: what the operator would be called with; which backend it would be given does not matter.
        raise_error: raise where they cannot.
        **kwargs: what the operator would be called with.

    Returns:
        True if they can; False also for arguments that the operator would refuse with any backend.

    Raises:
        ValueError: for an unknown operator.
        RuntimeError: with `raise_error`, where they cannot run; it says why.
    """
    if operator not in _operators:
        raise ValueError(f"operator must be one of {', '.join(sorted(_operators))}, got {operator!r}")
    signature, check, why_not = _operators[operator]
    try:
        given = signature.bind(*args, **kwargs).arguments
        _checked(given.pop("backend", "auto"), "backend")
        check(**given)
        reason = why_not(**given) or _why_no_derivatives()
    except (TypeError, ValueError) as error:
        reason = str(error)
    if reason is not None and raise_error:
        raise RuntimeError(f"{operator}: Triton cannot run: {reason}")
    return reason is None


def use_triton(
    operator: str,
    backend: str,
    tensors: Sequence[torch.Tensor | None],
    reason: str | None,
    flops: int,
) -> bool:
    """The choice for one call.

    Args:
        operator: its name, for errors and the table of measurements.
        backend: as the caller gave it.
        tensors: the arguments that may learn; device and dtype of the first count.
        reason: why Triton cannot run here, None if it can.
        flops: operations of the forward pass, as the operator counts them for the table of measurements.

    Raises:
        ValueError: for an unknown `backend`, here or in the environment.
        RuntimeError: where Triton is asked for and cannot run.
    """
    chosen = _checked(backend, "backend")
    if chosen == "auto":
        chosen = _current()
    first = tensors[0]
    assert first is not None
    # The interpreter, on the CPU, is for tests: nobody wants it unasked.
    unasked = chosen == "auto" and first.device.type not in _MEASURED_DEVICES
    if unasked or chosen == "torch" or leaves_sizes_free() or torch.onnx.is_in_onnx_export():
        return False
    if reason is None:
        reason = _why_no_derivatives()
    if chosen == "triton":
        if reason is not None:
            raise RuntimeError(f"{operator}: Triton cannot run: {reason}; backend='auto' or 'torch' would")
        return True
    learns = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    # Other forms of an operator have its kernels, and copy or make less beside them.
    measured = operator.removesuffix("_packed").removesuffix("_from_offsets")
    spans = _spans(measured, first.dtype, learns, first.device.index or 0)
    if spans is None:
        if reason is None:
            _tell(
                "",
                f"{operator} runs in PyTorch: Triton's kernels were not measured on this GPU yet. "
                f'attnzoo.kernels.use_backend("triton") or {_ENVIRONMENT}=triton switches them on.',
            )
        return False
    # Of a size that a graph leaves free nothing is asked that would bind the graph: it gets PyTorch.
    if not any(statically_known_true(low <= flops) and statically_known_true(flops < high) for low, high in spans):
        return False
    if reason is not None:
        _tell(operator + reason, f"{operator} runs in PyTorch, though Triton is faster at this size: {reason}")
    return reason is None


def may_choose_triton(operator: str, x: torch.Tensor) -> bool:
    """Whether `backend="auto"` may choose Triton at some size: for a caller that prepares arguments for it alone.

    Args:
        operator: its name in the table of measurements.
        x: whose device and dtype count.
    """
    if leaves_sizes_free() or torch.onnx.is_in_onnx_export():
        return False
    chosen = _current()
    if chosen != "auto":
        return chosen == "triton"
    return x.device.type in _MEASURED_DEVICES and bool(_spans(operator, x.dtype, True, x.device.index or 0))


@torch.compiler.assume_constant_result
def _tell(what: str, message: str) -> None:
    """A warning, once for each `what`."""
    if what not in _told:
        _told.add(what)
        _log.warning(message)


@torch.compiler.assume_constant_result
def _spans(operator: str, dtype: torch.dtype, learns: bool, index: int) -> tuple[tuple[int, int], ...] | None:
    """Operations at which Triton is to run on a GPU, None where the operator was not measured on one like it."""
    card = _measured.nearest(_measured.table(), *_card(index))
    if card is None or all(record.operator != operator for record in card.records):
        return None
    return _measured.spans(card, operator, str(dtype).removeprefix("torch."), learns)


def _card(index: int) -> tuple[str, tuple[int, int]]:
    # Tensors without memory claim to be on GPUs that a machine lacks.
    if not torch.cuda.is_available():
        return "", (0, 0)
    return torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)


def _why_no_derivatives() -> str | None:
    if _derivatives.is_transformed():
        return "its kernels know nothing of forward-mode differentiation and the transforms of torch.func"
    return None


def why_not(*tensors: torch.Tensor | None) -> str | None:
    """What keeps any of the kernels from running on these tensors, None if nothing does."""
    given = [x for x in tensors if x is not None]
    device, dtype = given[0].device, given[0].dtype
    if not _INSTALLED:
        return "triton is not installed (pip install triton)"
    if device.type != "cuda" and not (device.type == "cpu" and INTERPRETED):
        return f"tensors are on {device.type}, it needs an NVIDIA GPU (or TRITON_INTERPRET=1 for its interpreter)"
    if device.type == "cuda" and _capability(device.index or 0) < (8, 0):
        return "there is no NVIDIA GPU of compute capability 8.0 (Ampere) or later"
    if dtype not in DTYPES:
        return f"dtype is {dtype}, it needs float32, bfloat16 or float16"
    if device.type == "cpu" and dtype not in INTERPRETED_DTYPES:
        return f"dtype is {dtype}, of which Triton's interpreter makes wrong products"
    for x in given[1:]:
        if x.device != device or x.dtype != dtype:
            return f"tensors differ: {dtype} on {device} and {x.dtype} on {x.device}"
    installed = _triton_version()
    if tuple(map(int, installed.split(".")[:2])) < LOWEST_TRITON:
        return f"Triton is {installed}, it needs {'.'.join(map(str, LOWEST_TRITON))} or newer"
    return None


@torch.compiler.assume_constant_result
def _triton_version() -> str:
    # Imported only where a kernel could run: it takes a noticeable time.
    import triton

    return triton.__version__


@torch.compiler.assume_constant_result
def _capability(index: int) -> tuple[int, int]:
    # Tensors without memory, as compilers and tests make them, claim to be on GPUs that a machine lacks.
    if torch.version.hip is not None or not torch.cuda.is_available():
        return 0, 0
    return torch.cuda.get_device_capability(index)


def autocast(*tensors: torch.Tensor | None) -> list[Any]:
    """Tensors as autocast would give them to PyTorch's products: it does not know of other operators.

    In float64 all stay as they are. What is no tensor passes, to be refused by a check.
    """
    first = tensors[0]
    # Of other devices, such as meta, PyTorch raises when it is asked.
    if not isinstance(first, torch.Tensor) or first.device.type not in ("cpu", "cuda"):
        return list(tensors)
    device = first.device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    given = [x for x in tensors if isinstance(x, torch.Tensor)]
    if any(x.dtype not in DTYPES for x in given):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [x.to(dtype) if isinstance(x, torch.Tensor) else x for x in tensors]


def device_of(x: torch.Tensor) -> contextlib.AbstractContextManager:
    """Makes the GPU of a tensor the current one, on which Triton launches; nothing on the CPU."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def dot_precision() -> str:
    """Triton's `input_precision` for products of float32, as PyTorch is set for its own."""
    # `allow_tf32` raises once this switch or the one above it was set; this one knows of all.
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
