"""Deformable attention in two and in three dimensions as one PyTorch operator, and the checks of its arguments."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from .. import _checks, _derivatives, _dispatch
from ..tracing import is_exporting, leaves_sizes_free
from .cpu import attend_gathered, locations_and_weights
from .levels import flat, on_device

# A program of the kernels holds a head's channels, and a pixel's depth bins, in registers.
MAX_CHANNELS = 256
MAX_BINS = 256


def operations(value: Sequence[int], locations: Sequence[int]) -> int:
    """Of the forward pass in two dimensions, without bins: the size by which `measured.json` counts.

    Args:
        value: its shape, (B, K, M, C).
        locations: their shape, (B, Q, M, L, P, 2 or 3).
    """
    batch, queries, heads, levels, points = locations[:5]
    # A multiply-add for each of four pixels.
    return 8 * batch * queries * heads * levels * points * value[3]


Levels = tuple[Tensor | None, Tensor | None, list[int] | None]


def levels_of(
    spatial_shapes: Tensor | Sequence[Sequence[int]], level_start_index: Tensor | Sequence[int], value: Tensor
) -> Levels:
    """Sizes, starts and numbers of levels as the operator takes them: of numbers no graph makes a tensor."""
    if isinstance(spatial_shapes, Tensor) or isinstance(level_start_index, Tensor):
        return on_device(spatial_shapes, value), on_device(level_start_index, value), None
    return None, None, flat([*spatial_shapes, *level_start_index])


def _given(sizes: Tensor | None, starts: Tensor | None, numbers: Sequence[int] | None) -> tuple[Any, Any]:
    """Sizes and starts as the public functions take them."""
    if numbers is None:
        return sizes, starts
    count = len(numbers) // 3
    return list(zip(numbers[: 2 * count : 2], numbers[1 : 2 * count : 2], strict=True)), numbers[2 * count :]


@torch.library.custom_op("attnzoo::deformable_attention", mutates_args=())
def deformable_attention(
    value: Tensor,
    depth: Tensor | None,
    sizes: Tensor | None,
    starts: Tensor | None,
    numbers: Sequence[int] | None,
    locations: Tensor,
    weights: Tensor,
) -> Tensor:
    """By Triton; as `deformable_attention_3d`, in two dimensions without `depth`.

    Levels are tensors of int32 or int64 on the device, or numbers: all heights and widths, then all starts.
    """
    from .triton import deformable_attention_forward

    # A compiled graph leaves sizes free, which nobody checked yet.
    shapes, first = _given(sizes, starts, numbers)
    check(value, shapes, first, locations, weights, depth, three=depth is not None)
    return deformable_attention_forward(
        value, depth, on_device(shapes, value), on_device(first, value), locations, weights
    )


@deformable_attention.register_fake
def _(value, depth, sizes, starts, numbers, locations, weights):
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@torch.library.custom_op("attnzoo::deformable_attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    value: Tensor,
    depth: Tensor | None,
    sizes: Tensor | None,
    starts: Tensor | None,
    numbers: Sequence[int] | None,
    locations: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of value, depth (empty without it), locations and weights."""
    from .triton import deformable_attention_backward

    shapes, first = (on_device(x, value) for x in _given(sizes, starts, numbers))
    return deformable_attention_backward(grad, value, depth, shapes, first, locations, weights)


@_backward.register_fake
def _(grad, value, depth, sizes, starts, numbers, locations, weights):
    spread = value.new_empty(0) if depth is None else torch.empty_like(depth, memory_format=torch.contiguous_format)
    rest = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (value, locations, weights)]
    return rest[0], spread, rest[1], rest[2]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, depth, sizes, starts, ctx.numbers, locations, weights = inputs
    ctx.save_for_backward(value, depth, sizes, starts, locations, weights)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    value, depth, sizes, starts, locations, weights = ctx.saved_tensors
    needed = ctx.needs_input_grad
    if _derivatives.backward_is_differentiated(grad):

        def definition(value, depth, locations, weights):
            shapes, first = (on_device(x, value) for x in _given(sizes, starts, ctx.numbers))
            return attend_gathered(value, depth, shapes, first, locations, weights)

        inputs, wanted = (value, depth, locations, weights), (*needed[:2], *needed[5:])
        grads = _derivatives.gradients(definition, inputs, wanted, grad)
        return *grads[:2], None, None, None, *grads[2:]
    of_value, of_depth, of_locations, of_weights = _backward(
        grad, value, depth, sizes, starts, ctx.numbers, locations, weights
    )
    return of_value, of_depth if needed[1] else None, None, None, None, of_locations, of_weights


deformable_attention.register_autograd(_gradients, setup_context=_save)


@torch.library.custom_op("attnzoo::deformable_attention_from_offsets", mutates_args=())
def deformable_attention_from_offsets(
    value: Tensor,
    sizes: Tensor | None,
    starts: Tensor | None,
    numbers: Sequence[int] | None,
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    """By Triton; levels as of `deformable_attention`."""
    from .triton import deformable_attention_forward

    shapes, first = _given(sizes, starts, numbers)
    check_offsets(value, shapes, first, references, offsets, logits)
    levels = on_device(shapes, value), on_device(first, value)
    return deformable_attention_forward(value, None, *levels, offsets, logits, references)


@deformable_attention_from_offsets.register_fake
def _(value, sizes, starts, numbers, references, offsets, logits):
    return value.new_empty(value.shape[0], offsets.shape[1], value.shape[2] * value.shape[3])


@torch.library.custom_op("attnzoo::deformable_attention_from_offsets_backward", mutates_args=())
def _offsets_backward(
    grad: Tensor,
    out: Tensor,
    value: Tensor,
    sizes: Tensor | None,
    starts: Tensor | None,
    numbers: Sequence[int] | None,
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
    references_learn: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of value, references (empty if they do not learn), offsets and logits."""
    from .triton import offsets_backward

    shapes, first = (on_device(x, value) for x in _given(sizes, starts, numbers))
    return offsets_backward(grad, out, value, shapes, first, references, offsets, logits, references_learn)


@_offsets_backward.register_fake
def _(grad, out, value, sizes, starts, numbers, references, offsets, logits, references_learn):
    made = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (value, references, offsets, logits)]
    return made[0], made[1] if references_learn else references.new_empty(0), made[2], made[3]


def _save_offsets(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, sizes, starts, ctx.numbers, references, offsets, logits = inputs
    ctx.save_for_backward(output, value, sizes, starts, references, offsets, logits)


def _offsets_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    out, value, sizes, starts, references, offsets, logits = ctx.saved_tensors
    needed = ctx.needs_input_grad
    again = _derivatives.backward_is_differentiated(grad)
    # The sorted gradients ask for locations more than once.
    if again or torch.are_deterministic_algorithms_enabled():

        def definition(value, references, offsets, logits):
            shapes, first = (on_device(x, value) for x in _given(sizes, starts, ctx.numbers))
            wide = (x.to(torch.float32) for x in (references, offsets, logits))
            places = locations_and_weights(shapes, *wide)
            if again:
                return attend_gathered(value, None, shapes, first, *places)
            return deformable_attention(value, None, shapes, first, None, *places)

        inputs, wanted = (value, references, offsets, logits), (needed[0], *needed[4:])
        grads = _derivatives.gradients(definition, inputs, wanted, grad)
        return grads[0], None, None, None, *grads[1:]
    of_value, of_references, of_offsets, of_logits = _offsets_backward(
        grad, out, value, sizes, starts, ctx.numbers, references, offsets, logits, needed[4]
    )
    return of_value, None, None, None, of_references if needed[4] else None, of_offsets, of_logits


deformable_attention_from_offsets.register_autograd(_offsets_gradients, setup_context=_save_offsets)


def why_not(value: Tensor, *rest: Tensor, depth: Tensor | None = None) -> str | None:
    """What keeps Triton from running on arguments that passed `check`, None if nothing does.

    Each may be of another dtype: the kernels compute in float32.
    """
    reason = None
    for x in (value, depth, *rest):
        if reason is None and x is not None:
            reason = _dispatch.why_not(x)
    if reason is None and value.shape[3] > MAX_CHANNELS:
        reason = f"a head has {value.shape[3]} channels, it needs {MAX_CHANNELS} at most"
    if reason is None and depth is not None and depth.shape[3] > MAX_BINS:
        reason = f"depth has {depth.shape[3]} bins, it needs {MAX_BINS} at most"
    return reason


def check(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    level_start_index: Tensor | Sequence[int],
    locations: Tensor,
    weights: Tensor,
    depth: Tensor | None = None,
    three: bool = False,
    names: tuple[str, ...] = ("value", "sampling_locations", "attention_weights"),
) -> None:
    """Raises TypeError and ValueError for what no backend of `deformable_attention` takes, or of `_3d` if `three`.

    Locations and weights may be called otherwise.
    """
    tensors: tuple[Tensor | None, ...] = (value, locations, weights)
    if three:
        names, tensors = ("depth", *names), (depth, *tensors)
    _checks.check_tensors(names, tensors, one_dtype=False)
    if value.dim() != 4:
        raise ValueError(f"value must be (B, K, M, C), got shape {tuple(value.shape)}")
    _check_integers("spatial_shapes", spatial_shapes, value)
    _check_integers("level_start_index", level_start_index, value)
    if isinstance(spatial_shapes, Tensor) and (spatial_shapes.dim() != 2 or spatial_shapes.shape[1] != 2):
        raise ValueError(f"spatial_shapes must be (L, 2), got shape {tuple(spatial_shapes.shape)}")
    if isinstance(level_start_index, Tensor) and level_start_index.dim() != 1:
        raise ValueError(f"level_start_index must be (L,), got shape {tuple(level_start_index.shape)}")
    batch, positions, heads, _ = value.shape
    levels = len(spatial_shapes)
    if len(level_start_index) != levels:
        raise ValueError(f"level_start_index has {len(level_start_index)} levels, spatial_shapes has {levels}")
    if depth is not None and (
        depth.dim() != 4
        or depth.shape[:2] != value.shape[:2]
        or depth.shape[2] not in (1, heads)
        or depth.shape[3] == 0
    ):
        raise ValueError(f"depth must be (B={batch}, K={positions}, M={heads} or 1, D), got shape {tuple(depth.shape)}")
    shape, axes = tuple(locations.shape), 3 if three else 2
    if len(shape) != 6 or (shape[0], *shape[2:4], shape[5]) != (batch, heads, levels, axes):
        raise ValueError(f"{names[-2]} must be (B={batch}, Q, M={heads}, L={levels}, P, {axes}), got shape {shape}")
    if tuple(weights.shape) != shape[:5]:
        raise ValueError(f"{names[-1]} must have shape {shape[:5]}, got {tuple(weights.shape)}")
    # To read a GPU's tensors would be to wait for it; the kernels never read beyond `value` all the same.
    given = [x for x in (spatial_shapes, level_start_index) if isinstance(x, Tensor)]
    free = torch.compiler.is_compiling() or leaves_sizes_free()
    if not given or (not free and all(x.device.type == "cpu" for x in given) and not _have_no_memory(given)):
        _check_levels(*as_lists(spatial_shapes, level_start_index), positions)


def check_offsets(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    level_start_index: Tensor | Sequence[int],
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> None:
    """Raises TypeError and ValueError for what no backend of `deformable_attention_from_offsets` takes."""
    _checks.check_tensors(("value", "reference_points"), (value, references), one_dtype=False)
    names = ("value", "sampling_offsets", "attention_logits")
    check(value, spatial_shapes, level_start_index, offsets, logits, names=names)
    shape, (batch, queries, _, levels) = tuple(references.shape), offsets.shape[:4]
    if len(shape) != 4 or shape[:3] != (batch, queries, levels) or shape[3] not in (2, 4):
        raise ValueError(f"reference_points must be (B={batch}, Q={queries}, L={levels}, 2 or 4), got shape {shape}")


def _check_integers(name: str, given: Any, value: Tensor) -> None:
    if isinstance(given, Tensor):
        if given.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
            raise TypeError(f"{name} must hold integers, got {given.dtype}")
    elif not isinstance(given, (list, tuple)):
        raise TypeError(f"{name} must be a tensor or a list, got {type(given).__name__}")
    elif name == "level_start_index":
        for start in given:
            _checks.check_integer(name, start)
    else:
        for size in given:
            _checks.check_pair(f"each of {name}", size)


def _have_no_memory(given: Sequence[Tensor]) -> bool:
    """Whether numbers cannot be read: of meta tensors, a compiler's fake ones, those that a transform batches."""
    return any(
        isinstance(x, FakeTensor) or x.device.type == "meta" or torch._C._functorch.is_functorch_wrapped_tensor(x)
        for x in given
    )


def is_empty(value: Tensor, locations: Tensor) -> bool:
    """Whether there is no number to compute, or nothing to sum; never in a graph that leaves sizes free."""
    return not leaves_sizes_free() and (value.numel() == 0 or locations.numel() == 0)


def must_gather(
    value: Tensor, spatial_shapes: Tensor | Sequence[Sequence[int]], level_start_index: Tensor | Sequence[int]
) -> bool:
    """Whether the form by gathers must do what `grid_sample`, or sizes in plain numbers, cannot."""
    given = [x for x in (spatial_shapes, level_start_index) if isinstance(x, Tensor)]
    if torch.jit.is_tracing() or _derivatives.is_transformed():
        return True
    if torch.compiler.is_compiling():
        # Numbers out of a tensor would break the graph; of exporters each has its own way with them.
        return len(given) > 0 and not is_exporting()
    return _have_no_memory(given) or (value.is_cuda and torch.are_deterministic_algorithms_enabled())


def as_lists(
    spatial_shapes: Tensor | Sequence[Sequence[int]], level_start_index: Tensor | Sequence[int]
) -> tuple[Sequence[Sequence[int]], Sequence[int]]:
    """The levels in plain numbers."""
    sizes = spatial_shapes.tolist() if isinstance(spatial_shapes, Tensor) else spatial_shapes
    starts = level_start_index.tolist() if isinstance(level_start_index, Tensor) else level_start_index
    return sizes, starts


def _check_levels(sizes: Sequence[Sequence[int]], starts: Sequence[int], positions: int) -> None:
    end = 0
    # Tuples are not compared with lists.
    for start, (height, width) in sorted(zip(starts, map(tuple, sizes), strict=True)):
        if start < 0 or height < 1 or width < 1:
            raise ValueError(
                f"levels must have a pixel and start at 0 or later, got {height} x {width} starting at {start}"
            )
        if start < end:
            raise ValueError(f"level_start_index {list(starts)}: levels of {[tuple(x) for x in sizes]} overlap")
        end = start + height * width
        # Of positions that a graph leaves free nothing is asked.
        if statically_known_true(end > positions):
            raise ValueError(
                f"a level of {height} x {width} starting at {start} does not fit the {positions} positions of value"
            )
