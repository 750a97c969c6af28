"""The least work of deformable attention, in two dimensions or, with depth bins, in three; places are in float32."""

from collections.abc import Sequence

import torch

from .._work import Work

_CORNERS = 4


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


def operations(value: Sequence[int], locations: Sequence[int]) -> int:
    """Of the forward pass in two dimensions, without bins: the size by which `measured.json` counts.

    Args:
        value: its shape, (B, K, M, C).
        locations: their shape, (B, Q, M, L, P, 2 or 3).
    """
    batch, queries, heads, levels, points = locations[:5]
    return 2 * _CORNERS * batch * queries * heads * levels * points * value[3]
