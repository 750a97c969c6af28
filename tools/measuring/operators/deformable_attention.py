"""Deformable attention: its cases, its compilations, and its least work, with depth bins too. Places are in float32."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ....kernels import deformable_attention
from ....kernels.deformable_attention import naive
from ..cases import Case, sides, works
from ..compilation import StaticCase
from ..roofline import Work

LEVELS = (8, 16, 32, 64)
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

        count = (batch, positions, queries, 8, 32, 4, 4)
        yield Case(
            "deformable_attention",
            f"DINO {name}",
            image,
            {
                "value": (batch, positions, 8, 32),
                "places": (batch, queries, 8, 4, 4, 2),
                "weights": (batch, queries, 8, 4, 4),
            },
            {
                "triton": functools.partial(public, backend="triton"),
                "twin": functools.partial(public, backend="torch"),
                "definition": definition,
                "compiled definition": compiler(definition),
                **_mmcv(sizes, starts),
            },
            works(forward, backward, *count),
            {"places": 0, "weights": 0},
        )


def starts_of(sizes: list[tuple[int, int]]) -> tuple[list[int], int]:
    """First position of each level, and their number in all."""
    counts = [height * width for height, width in sizes]
    return [sum(counts[:i]) for i in range(len(counts))], sum(counts)


def _mmcv(sizes: list[tuple[int, int]], starts: list[int]) -> dict[str, Callable[..., torch.Tensor]]:
    """The compiled operator of mmcv, if it is one and not this package's stand-in."""
    try:
        found = importlib.util.find_spec("mmcv._ext")
    except ImportError:
        return {}
    if found is None or not (found.origin or "").endswith(".so"):
        return {}
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    # As mmdet has them: on the device already.
    @functools.cache
    def levels(device):
        return [torch.tensor(x, device=device) for x in (sizes, starts)]

    def form(value, places, weights):
        return MultiScaleDeformableAttnFunction.apply(value, *levels(value.device), places, weights, 64)

    return {"mmcv": form}


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
    kernels: dict[str, Any] = {"forward": (triton._forward_kernel, {}), "by pixel": (triton._by_pixel_kernel, {})}
    kernels |= {
        f"backward{' atomic' * atomic}": (triton._backward_kernel, {"ATOMIC": atomic}) for atomic in (False, True)
    }
    integers, levels, points = ("queries", "positions", "levels", "tiles"), len(LEVELS), 4
    for dtype, itemsize in (("fp32", 4), ("bf16", 2), ("fp16", 2)):
        for channels in (16, 32, 64):
            for bins, depth_heads in depths:
                for name, (kernel, constants) in kernels.items():
                    pixel = kernel is triton._by_pixel_kernel
                    if pixel:
                        options = triton._pixel_options(channels, bins)
                    elif name == "forward":
                        options = triton._forward_options(channels, itemsize, bins, points)
                    else:
                        options = triton._backward_options(channels, itemsize, bins, points, constants["ATOMIC"])
                    warps, stages = options.pop("num_warps"), options.pop("num_stages")
                    shape = dict(HEADS=8, CHANNELS=channels, POINTS=points, BINS=bins, DEPTH_HEADS=depth_heads)
                    sums = dtype if pixel else "fp32"
                    types = dict.fromkeys(("sizes", "starts"), "*i32") | dict.fromkeys(integers, "i32")
                    types |= dict.fromkeys(("locations", "weights", "grad_locations", "grad_weights"), "*fp32")
                    types |= dict.fromkeys(("value", "depth", "grad", "out"), f"*{dtype}")
                    types |= dict.fromkeys(("grad_value", "grad_depth"), f"*{sums}")
                    types |= dict.fromkeys(("order", "first"), "*i64")
                    none = {} if bins else {"depth": None}
                    # A pixel's samples here fill one step for each of its two ranges of cells.
                    steps = 1 if pixel else levels * points // options["UNROLL"]
                    samples = 2 * options["BLOCK_S"] if pixel else options["BLOCK_R"] * levels * points
                    cases.append(
                        StaticCase(
                            "deformable_attention_3d" if bins else "deformable_attention",
                            kernel,
                            dtype,
                            f"{name}, head_dim {channels}" + f", depth of {depth_heads} heads" * (bins > 0),
                            {arg: types[arg] for arg in kernel.arg_names if arg in types and arg not in none},
                            {**shape, **constants, **options, **none},
                            num_warps=warps,
                            num_stages=stages,
                            steps=steps,
                            elements=samples * channels,
                        )
                    )
    return cases
