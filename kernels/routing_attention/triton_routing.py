"""The routing of bi-level routing attention in Triton: means of regions, scores and choice, and who chose whom."""

from typing import Any

import torch
import triton
import triton.language as tl

from .. import _dispatch
from .cpu import match
from .triton_places import SIZES, block, evenly_spaced, geometry, is_whole, places

# Beyond it a program that chooses would spill its scores.
MAX_REGIONS = 512


@triton.jit(do_not_specialize=["channels", *SIZES])
def _means_kernel(
    q,
    k,
    mean_q,
    mean_k,
    channels,
    height,
    width,
    cols,
    region_h,
    region_w,
    count,
    cols_inverse,
    region_w_inverse,
    q_b,
    q_w,
    k_b,
    k_w,
    WHOLE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Of a region of both maps and some channels; the maps share the places."""
    region = tl.program_id(0) % count
    batch = (tl.program_id(0) // count).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    there = channel < channels
    q += batch * q_b
    k += batch * k_b
    total_q = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
    total_k = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
    for start in range(0, region_h * region_w, BLOCK_T):
        token = start + tl.arange(0, BLOCK_T)
        pixel, inside = places(
            region, token, height, width, cols, region_h, region_w, cols_inverse, region_w_inverse, WHOLE
        )
        mask = inside[:, None] & there[None, :]
        at = pixel.to(tl.int64)
        total_q += tl.load(q + (at * q_w)[:, None] + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        total_k += tl.load(k + (at * k_w)[:, None] + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    rows_inside = tl.minimum(region_h, height - region // cols * region_h)
    cols_inside = tl.minimum(region_w, width - region % cols * region_w)
    number = tl.maximum(tl.maximum(rows_inside, 0) * tl.maximum(cols_inside, 0), 1)
    at = (batch * count + region) * channels + channel
    tl.store(mean_q + at, tl.sum(total_q, 0) / number, mask=there)
    tl.store(mean_k + at, tl.sum(total_k, 0) / number, mask=there)


@triton.jit(do_not_specialize=["channels", "cols", "count", "rows_filled", "cols_filled", "topk"])
def _choice_kernel(
    mean_q,
    mean_k,
    index,
    channels,
    cols,
    count,
    rows_filled,
    cols_filled,
    topk,
    BLOCK_Q: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The `topk` key regions that match best, of BLOCK_Q query regions, best first."""
    tiles = tl.cdiv(count, BLOCK_Q)
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    query = tl.program_id(0) % tiles * BLOCK_Q + tl.arange(0, BLOCK_Q)
    region = tl.arange(0, BLOCK_R)
    mean_q += batch * count * channels
    mean_k += batch * count * channels
    scores = tl.zeros((BLOCK_Q, BLOCK_R), tl.float32)
    for start in range(0, channels, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        there = (channel < channels)[None, :]
        queries = tl.load(
            mean_q + query[:, None] * channels + channel[None, :], mask=(query < count)[:, None] & there, other=0.0
        )
        keys = tl.load(
            mean_k + region[:, None] * channels + channel[None, :], mask=(region < count)[:, None] & there, other=0.0
        )
        # Reduced precision would choose other regions.
        scores = tl.dot(queries, tl.trans(keys), scores, input_precision="ieee")

    # Numbers in the order of the scores, of which no two are equal, so that one maximum finds region and score. NaN is
    # the largest score, as in PyTorch; an empty region, in rows and columns behind the filled ones, has the smallest.
    bits = scores.to(tl.int32, bitcast=True)
    order = tl.where(scores == scores, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits), 0x7FFFFFFF)
    filled = (region // cols < rows_filled) & (region % cols < cols_filled)
    order = tl.where(filled[None, :], order, -0x7FFFFFFF - 1)
    order = order.to(tl.int64) * BLOCK_R + (BLOCK_R - 1 - region)[None, :]
    none: tl.constexpr = -(2**62)
    order = tl.where((region < count)[None, :], order, none)
    index += (batch * count + query) * topk
    best = tl.full((BLOCK_Q,), 2**62, tl.int64)
    for slot in range(topk):
        best = tl.max(tl.where(order < best[:, None], order, none), 1)
        chosen = BLOCK_R - 1 - (best & (BLOCK_R - 1)).to(tl.int32)
        tl.store(index + slot, chosen, mask=query < count)


@triton.jit(do_not_specialize=["count", "topk"])
def _invert_kernel(index, lists, numbers, count, topk, BLOCK: tl.constexpr):
    region = tl.program_id(0) % count
    batch = (tl.program_id(0) // count).to(tl.int64)
    index += batch * count * topk
    lists += (batch * count + region) * count
    number = 0
    for start in range(0, count, BLOCK):
        query = start + tl.arange(0, BLOCK)
        chose = tl.zeros((BLOCK,), tl.int32)
        for slot in range(topk):
            chosen = tl.load(index + query * topk + slot, mask=query < count, other=-1)
            chose += (chosen == region).to(tl.int32)
        tl.store(lists + number + tl.cumsum(chose, 0) - 1, query, mask=chose > 0)
        number += tl.sum(chose, 0)
    tl.store(numbers + batch * count + region, number)


def _means_options(channels: int, whole: bool) -> dict[str, Any]:
    return {"WHOLE": whole, "BLOCK_T": 32, "BLOCK_C": block(channels, 16, 64), "num_warps": 4, "num_stages": 3}


def _choice_options(count: int) -> dict[str, Any]:
    regions = block(count, 16, MAX_REGIONS)
    return {
        "BLOCK_Q": 16,
        "BLOCK_R": regions,
        "BLOCK_C": 16,
        "num_warps": 4 if regions <= 128 else 8,
        "num_stages": 2,
    }


def _invert_options(count: int) -> dict[str, Any]:
    return {"BLOCK": block(count, 64, 256), "num_warps": 2, "num_stages": 3}


def region_means(q: torch.Tensor, k: torch.Tensor, regions: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Two maps (B, H, W, C) -> two (B, R, C), float32; zero for a region off the map."""
    q, k = evenly_spaced(q), evenly_spaced(k)
    b, channels = q.shape[0], q.shape[3]
    count = regions[0] * regions[1]
    mean_q, mean_k = q.new_empty(2, b, count, channels, dtype=torch.float32)
    options = _means_options(channels, is_whole(q, regions))
    strides = q.stride(0), q.stride(2), k.stride(0), k.stride(2)
    with _dispatch.device_of(q):
        _means_kernel[(b * count, triton.cdiv(channels, options["BLOCK_C"]))](
            q, k, mean_q, mean_k, channels, *geometry(q, regions), *strides, **options
        )
    return mean_q, mean_k


def route(q: torch.Tensor, k: torch.Tensor, regions: tuple[int, int], topk: int) -> torch.Tensor:
    """As `cpu.route`, from maps (B, H, W, C) -> (B, R, topk) int32; of equal scores the first region comes first."""
    mean_q, mean_k = region_means(q, k, regions)
    b, count, channels = mean_q.shape
    height, width, cols, region_h, region_w, *_ = geometry(q, regions)
    # Empty regions are whole rows and columns of the grid.
    filled = triton.cdiv(height, region_h), triton.cdiv(width, region_w)
    if count > MAX_REGIONS:
        scores = match(mean_q, mean_k)
        grid = scores.unflatten(2, regions)
        grid[:, :, filled[0] :] = -float("inf")
        grid[:, :, :, filled[1] :] = -float("inf")
        return torch.topk(scores, topk, dim=-1)[1].int()
    index = torch.empty(b, count, topk, dtype=torch.int32, device=q.device)
    options = _choice_options(count)
    with _dispatch.device_of(q):
        _choice_kernel[(b * triton.cdiv(count, options["BLOCK_Q"]),)](
            mean_q, mean_k, index, channels, cols, count, *filled, topk, **options
        )
    return index


def inverted_index(index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which query regions chose each key region.

    Args:
        index: (B, R, topk) int32, the key regions of each query region.

    Returns:
        (B, R, R) int32, of each key region the query regions in ascending order, and (B, R) int32, how many they are;
        what lies beyond is undefined.
    """
    b, count, topk = index.shape
    lists, numbers = index.new_empty(b, count, count), index.new_empty(b, count)
    with _dispatch.device_of(index):
        _invert_kernel[(b * count,)](index, lists, numbers, count, topk, **_invert_options(count))
    return lists, numbers
