"""Deformable attention: its cases, its compilations, and its least work, with depth bins too. Places are in float32."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ....kernels import deformable_attention
from ....kernels.deformable_attention import naive, operator
from .. import mmcv_operator
from ..cases import Case, sides, works
from ..compilation import StaticCase
from ..roofline import Work

LEVELS: tuple[int, ...] = (8, 16, 32, 64)
_CORNERS = 4


def cases(image: tuple[int, int], batch: int, compiler: Callable) -> Iterator[Case]:
    """DINO's encoder: a query for each position of four levels, 8 heads of 32 channels, 4 points; and its decoder."""
    sizes = [sides(image, stride) for stride in LEVELS]
    starts, positions = starts_of(sizes)
    for name, queries in (("encoder", positions), ("decoder", 900)):

        def public(value, places, weights, backend):
            return deformable_attention(value, sizes, starts, places, weights, backend=backend)

        def definition(value, places, weights):
            return naive.deformable_attention(value, sizes, starts, places, weights)

        levels = len(LEVELS)
        count = (batch, positions, queries, 8, 32, levels, 4)
        yield Case(
            "deformable_attention",
            f"DINO {name}",
            image,
            {
                "value": (batch, positions, 8, 32),
                "places": (batch, queries, 8, levels, 4, 2),
                "weights": (batch, queries, 8, levels, 4),
            },
            operator.operations((batch, positions, 8, 32), (batch, queries, 8, levels, 4, 2)),
            {
                "triton": partial(public, backend="triton"),
                "twin": partial(public, backend="torch"),
                "definition": definition,
                "compiled definition": compiler(definition),
            },
            works(forward, backward, *count),
            {"places": 0, "weights": 0},
            prepared=competitors(sizes, starts),
        )


def starts_of(sizes: list[tuple[int, int]]) -> tuple[list[int], int]:
    """First position of each level, and their number in all."""
    counts = [height * width for height, width in sizes]
    return [sum(counts[:i]) for i in range(len(counts))], sum(counts)


def competitors(sizes: list[tuple[int, int]], starts: list[int]) -> dict[str, Callable[..., Callable[..., Tensor]]]:
    """The operators of mmcv and of deformops where they are there, with levels that lie on the device."""
    found: dict[str, Callable[..., Callable[..., Tensor]]] = {}
    built = mmcv_operator.compiled()
    if _is_compiled("mmcv"):
        from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

        attend = partial(_by_mmcv, MultiScaleDeformableAttnFunction.apply)
        found["mmcv"] = partial(_on_device, attend, sizes, starts)
    elif built is not None:
        found["mmcv"] = partial(_on_device, built, sizes, starts)
    if importlib.util.find_spec("deformops") is not None:
        from deformops.registry import msda

        found["deformops"] = partial(_on_device, partial(_by_deformops, msda), sizes, starts)
    return found


def _by_mmcv(attend: Callable[..., Tensor], *given: Tensor) -> Tensor:
    # The last is for how many images there is a launch.
    return attend(*given, 64)


def _by_deformops(attend: Callable[..., Tensor], value: Tensor, *levels_and_places: Tensor) -> Tensor:
    *rest, weights = levels_and_places
    return attend(value, *rest, weights.flatten(3))


def _is_compiled(package: str) -> bool:
    """Whether mmcv has compiled operators, and not this package's stand-in for them."""
    try:
        found = importlib.util.find_spec(f"{package}._ext")
    except ImportError:
        return False
    return found is not None and (found.origin or "").endswith(".so")


def _on_device(
    attend: Callable[..., Tensor],
    sizes: list[tuple[int, int]],
    starts: list[int],
    value: Tensor,
    places: Tensor,
    weights: Tensor,
) -> Callable[..., Tensor]:
    shapes, first = (torch.tensor(x, device=value.device) for x in (sizes, starts))
    return lambda value, places, weights: attend(value, shapes, first, places, weights)


def forward(
    batch: int,
    positions: int,
    queries: int,
    heads: int,
    channels: int,
    levels: int,
    points: int,
    dtype: torch.dtype,
    bins: int = 0,
    groups: int = 1,
) -> Work:
    """Value, depth, locations and weights in, the result out; each corner is scaled and added, channel by channel.

    Args:
        batch: B.
        positions: K, of all levels.
        queries: Q.
        heads: M.
        channels: C of a head.
        levels: L.
        points: P of a level.
        dtype: of value, depth and result.
        bins: D, 0 in two dimensions.
        groups: heads of the depth, M or 1.
    """
    samples = batch * queries * heads * levels * points
    maps = batch * positions * (heads * channels + groups * bins)
    axes = 3 if bins else 2
    return Work(
        bytes=(maps + batch * queries * heads * channels) * dtype.itemsize + samples * (axes + 1) * 4,
        flops=samples * _CORNERS * 2 * (channels + (2 if bins else 0)),
    )


def backward(
    batch: int,
    positions: int,
    queries: int,
    heads: int,
    channels: int,
    levels: int,
    points: int,
    dtype: torch.dtype,
    bins: int = 0,
    groups: int = 1,
) -> Work:
    """The gradient of the result and all that went in, in; its gradients out: two products for every one of `forward`.

    Arguments as of `forward`.
    """
    samples = batch * queries * heads * levels * points
    maps = batch * positions * (heads * channels + groups * bins)
    axes = 3 if bins else 2
    return Work(
        bytes=(2 * maps + batch * queries * heads * channels) * dtype.itemsize + 2 * samples * (axes + 1) * 4,
        flops=2 * samples * _CORNERS * 2 * (channels + (2 if bins else 0)),
    )


def static_cases(depths: tuple[tuple[int, int], ...] = ((0, 1),)) -> list[StaticCase]:
    """Every kernel as Deformable DETR and DINO launch it; locations in float32. Elements are channels of a sample.

    Args:
        depths: bins, 0 in two dimensions, and heads of the depth.
    """
    from ....kernels.deformable_attention import triton

    cases = []
    plain = {"REFERENCE": 0, "references": None}
    learnt = {"REFERENCES_LEARN": False, "out": None, "grad_references": None}
    kernels: list[tuple[str, Any, dict[str, Any]]] = [
        ("forward", triton._forward_kernel, plain),
        ("by pixel", triton._by_pixel_kernel, {}),
        ("backward", triton._backward_kernel, {**plain, **learnt, "ATOMIC": False}),
        ("backward atomic", triton._backward_kernel, {**plain, **learnt, "ATOMIC": True}),
    ]
    # The encoder's points and the decoder's boxes, which may learn; not with a depth.
    atomic = {"grad_depth": None, "ATOMIC": True}
    fixed = {**atomic, "REFERENCE": 2, "REFERENCES_LEARN": False, "grad_references": None}
    from_offsets: list[tuple[str, Any, dict[str, Any]]] = [
        ("forward from points", triton._forward_kernel, {"REFERENCE": 2}),
        ("forward from boxes", triton._forward_kernel, {"REFERENCE": 4}),
        ("backward from points", triton._backward_kernel, fixed),
        ("backward from boxes", triton._backward_kernel, {**atomic, "REFERENCE": 4, "REFERENCES_LEARN": True}),
    ]
    integers, levels, points = ("queries", "positions", "levels", "tiles"), len(LEVELS), 4
    places = ("locations", "weights", "references", "grad_locations", "grad_weights", "grad_references")
    for dtype, itemsize in (("fp32", 4), ("bf16", 2), ("fp16", 2)):
        for channels in (16, 32, 64):
            for bins, depth_heads in depths:
                for name, kernel, constants in kernels + from_offsets * (bins == 0):
                    pixel = kernel is triton._by_pixel_kernel
                    if pixel:
                        options = triton._pixel_options(channels, bins)
                    elif kernel is triton._forward_kernel:
                        options = triton._forward_options(channels, itemsize, bins, points)
                    else:
                        options = triton._backward_options(channels, itemsize, bins, points, constants["ATOMIC"])
                    warps, stages = options.pop("num_warps"), options.pop("num_stages")
                    shape = dict(HEADS=8, CHANNELS=channels, POINTS=points, BINS=bins, DEPTH_HEADS=depth_heads)
                    sums = dtype if pixel else "fp32"
                    types = dict.fromkeys(("sizes", "starts"), "*i32") | dict.fromkeys(integers, "i32")
                    types |= dict.fromkeys(places, "*fp32")
                    types |= dict.fromkeys(("value", "depth", "grad", "out"), f"*{dtype}")
                    types |= dict.fromkeys(("grad_value", "grad_depth"), f"*{sums}")
                    types |= dict.fromkeys(("order", "first"), "*i64")
                    if not bins:
                        constants = {**constants, "depth": None}
                    # A pixel's samples here fill one step for each of its two ranges of cells.
                    steps = 1 if pixel else levels * points // options["UNROLL"]
                    samples = 2 * options["BLOCK_S"] if pixel else options["BLOCK_R"] * levels * points
                    cases.append(
                        StaticCase(
                            "deformable_attention_3d" if bins else "deformable_attention",
                            kernel,
                            dtype,
                            f"{name}, head_dim {channels}" + f", depth of {depth_heads} heads" * (bins > 0),
                            {arg: types[arg] for arg in kernel.arg_names if arg in types and arg not in constants},
                            {**shape, **constants, **options},
                            num_warps=warps,
                            num_stages=stages,
                            steps=steps,
                            elements=samples * channels,
                        )
                    )
    return cases
