"""Deformable attention in three dimensions in plain PyTorch, without the volume, some queries at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _derivatives
from .._precision import own_precision
from ..deformable_attention.cpu import attend_gathered
from ..deformable_attention.levels import on_device

# Channels of all pixels that the samples of a step touch. A CPU's caches hold a step's other tensors then; a GPU, which
# has these channels in memory, waits for as few steps as may be.
_NUMBERS = {"cpu": 2**22}
_NUMBERS_ELSEWHERE = 2**26


def attend(
    value: Tensor,
    depth: Tensor,
    spatial_shapes: Sequence[Sequence[int]],
    level_start_index: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """`deformable_attention_3d` of tensors of one dtype; outside of graphs it can be differentiated in any way.

    The backward pass gathers again: between the passes nothing is kept but the inputs.
    """
    given = value, depth, sampling_locations, attention_weights
    levels = on_device(spatial_shapes, value), on_device(level_start_index, value)
    output = _Attend.apply(*given, *levels)
    if not output.requires_grad:
        return output

    def definition(value: Tensor, depth: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return attend_gathered(value, depth, *levels, locations, weights)

    return _derivatives.twice(output, definition, *given).clone()


class _Attend(torch.autograd.Function):
    """In steps of some queries, with all of their levels."""

    @staticmethod
    def forward(ctx, value, depth, locations, weights, sizes, starts):
        ctx.save_for_backward(value, depth, locations, weights, sizes, starts)
        value, depth = value.contiguous(), depth.contiguous()
        batch, queries = locations.shape[:2]
        places, shares = locations.flatten(0, 1), weights.flatten(0, 1)
        output = value.new_zeros(batch * queries, *value.shape[2:])
        for part, frame in _steps(value, depth, locations, sizes, starts):
            for corner in _corners(places[part], shares[part], depth, frame):
                output[part] += _sum(value, corner)
        return output.view(batch, queries, -1)

    @staticmethod
    def backward(ctx, grad):
        value, depth, locations, weights, sizes, starts = ctx.saved_tensors
        needed = ctx.needs_input_grad[:4]
        value, depth = value.contiguous(), depth.contiguous()
        grad = grad.reshape(-1, *value.shape[2:])
        grads = grad_value, grad_depth, grad_locations, grad_weights = [
            torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (value, depth, locations, weights)
        ]
        all_places, all_shares = locations.flatten(0, 1), weights.flatten(0, 1)
        for part, frame in _steps(value, depth, locations, sizes, starts):
            places, shares = (x[part].detach().requires_grad_() for x in (all_places, all_shares))
            with torch.enable_grad():
                corners = list(_corners(places, shares, depth, frame))
            if any(needed[1:]):
                with torch.enable_grad():
                    sums = [_sum(value, corner) for corner in corners]
                scores = [score for corner in corners for score in corner.scores]
                found = torch.autograd.grad(sums, [places, shares, *scores], [grad[part]] * len(sums))
                grad_locations.flatten(0, 1)[part], grad_weights.flatten(0, 1)[part] = found[:2]
                if needed[1]:
                    bins = [bin for corner in corners for bin in corner.bins]
                    for bin, of_score in zip(bins, found[2:], strict=True):
                        grad_depth.view(-1).index_add_(0, bin.flatten(), of_score.flatten())
            if needed[0]:
                for corner in corners:
                    _scatter(grad_value, corner, grad[part])
        return *(x if wanted else None for x, wanted in zip(grads, needed, strict=True)), None, None


class _Frame(NamedTuple):
    """What samples have of their levels and heads: each (Q, M, L * P), for some queries.

    Attributes:
        width: of the level's map, a float.
        height: likewise.
        columns: the width as an integer.
        lines: the height as an integer.
        start: of the level, and before it of the image, in the positions of all images.
        head: its number.
    """

    width: Tensor
    height: Tensor
    columns: Tensor
    lines: Tensor
    start: Tensor
    head: Tensor


class _Corner(NamedTuple):
    """One of the four pixels around each sample of some queries: all are (Q, M, L * P).

    Attributes:
        pixels: places of its channels in value (B * K * M, C).
        shares: of them in the output; differentiable in locations, weights and scores.
        bins: places in depth, of one dimension, of the two bins around each sample.
        scores: numbers there.
    """

    pixels: Tensor
    shares: Tensor
    bins: tuple[Tensor, Tensor]
    scores: tuple[Tensor, Tensor]


def _steps(
    value: Tensor, depth: Tensor, locations: Tensor, sizes: Tensor, starts: Tensor
) -> Iterator[tuple[slice, _Frame]]:
    """Slices of the queries of all images, one image's after the other's."""
    batch, queries, heads, levels, points = locations.shape[:5]
    numbers = _NUMBERS.get(value.device.type, _NUMBERS_ELSEWHERE)
    count = min(max(numbers // (heads * levels * points * 4 * value.shape[3]), 1), batch * queries)
    # Half the memory where it suffices.
    integer = torch.int32 if max(value.numel(), depth.numel()) < 2**31 else torch.int64

    def full(x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype).expand(count, heads, levels, points).flatten(2).contiguous()

    height, width = sizes[:, 0, None], sizes[:, 1, None]
    head = torch.arange(heads, device=value.device)[:, None, None]
    start = full(starts[:, None], integer)
    frame = _Frame(
        full(width, value.dtype),
        full(height, value.dtype),
        full(width, integer),
        full(height, integer),
        start,
        full(head, integer),
    )
    for first in range(0, batch * queries, count):
        part = slice(first, min(first + count, batch * queries))
        here = _Frame(*(x[: part.stop - first] for x in frame))
        image = torch.arange(part.start, part.stop, dtype=integer, device=value.device) // queries
        yield part, here._replace(start=here.start + (image * value.shape[1])[:, None, None])


def _corners(locations: Tensor, weights: Tensor, depth: Tensor, frame: _Frame) -> Iterator[_Corner]:
    """The four pixels around each sample of some queries.

    Args:
        locations: (Q, M, L, P, 3).
        weights: (Q, M, L, P).
        depth: (B, K, M or 1, D), of all images.
        frame: of these queries.
    """
    heads, (groups, bins) = weights.shape[1], depth.shape[2:]
    scores = depth.flatten()
    x, y, z = locations.flatten(2, 3).unbind(-1)
    x, y, z = x * frame.width - 0.5, y * frame.height - 0.5, z * bins - 0.5
    inside = (x > -1) & (x < frame.width) & (y > -1) & (y < frame.height) & (z > -1) & (z < bins)
    x, y, z = (torch.where(inside, place, 0) for place in (x, y, z))
    weights = torch.where(inside, weights.flatten(2), 0)
    left, top, low = (place.detach().floor() for place in (x, y, z))
    column, line, bin = (place.to(frame.columns.dtype) for place in (left, top, low))
    across, down, deep = x - left, y - top, z - low
    # Of the pixels before and behind the samples along an axis: their places, shares of them, what is on the map.
    columns = (
        (column.clamp(min=0), 1 - across, column >= 0),
        (torch.minimum(column + 1, frame.columns - 1), across, column + 1 < frame.columns),
    )
    lines = (
        (line.clamp(min=0), (1 - down) * weights, line >= 0),
        (torch.minimum(line + 1, frame.lines - 1), down * weights, line + 1 < frame.lines),
    )
    lower, upper = bin.clamp(min=0), (bin + 1).clamp(max=bins - 1)
    is_lower, is_upper = bin >= 0, bin + 1 < bins
    for (at_line, share_y, is_line), (at_column, share_x, is_column) in itertools.product(lines, columns):
        position = at_line * frame.columns + at_column + frame.start
        curve = (position * groups + frame.head % groups) * bins
        places = curve + lower, curve + upper
        first, second = (scores.index_select(0, at.flatten()).view(at.shape) for at in places)
        if torch.is_grad_enabled():
            first.requires_grad_()
            second.requires_grad_()
        score = torch.where(is_lower, first * (1 - deep), 0) + torch.where(is_upper, second * deep, 0)
        shares = torch.where(is_line & is_column, share_y * share_x, 0) * score
        yield _Corner(position * heads + frame.head, shares, places, (first, second))


def _sum(value: Tensor, corner: _Corner) -> Tensor:
    """(Q, M, C) of the channels of value (B, K, M, C)."""
    rows = value.flatten(0, 2)
    pixels, shares = corner.pixels.flatten(0, 1), corner.shares.flatten(0, 1)
    if value.device.type == "cpu":
        out = F.embedding_bag(pixels, rows, per_sample_weights=shares, mode="sum")
    else:
        with own_precision(value):
            out = (shares[:, None] @ rows[pixels]).squeeze(1)
    return out.unflatten(0, corner.pixels.shape[:2])


def _scatter(grad_value: Tensor, corner: _Corner, grad: Tensor) -> None:
    """Adds what `_sum` has of gradients for value (B, K, M, C): a part at a time, which a cache holds."""
    rows = grad_value.view(-1, grad_value.shape[3])
    # By 32-bit places PyTorch adds four times as slowly.
    pixels, shares, grad = (x.flatten(0, 1) for x in (corner.pixels.long(), corner.shares.detach(), grad))
    count = max(_NUMBERS.get(grad.device.type, _NUMBERS_ELSEWHERE) // 8 // (shares.shape[1] * grad.shape[1]), 1)
    for at, share, above in zip(pixels.split(count), shares.split(count), grad.split(count), strict=True):
        source = share[..., None] * above[:, None]
        rows.index_add_(0, at.flatten(), source.flatten(0, 1))
