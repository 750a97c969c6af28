"""Bi-level routing attention in Triton: keys and values are read where they lie, by the index of the routing.

Everything works on maps (B, H, W, C) through their strides. The keys of a query region are one sequence, region after
chosen region, that tiles cut without regard to regions: small regions share a tile.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from .. import _dispatch
from .triton_places import (
    SIZES,
    block,
    evenly_spaced,
    geometry,
    inverse,
    is_whole,
    listed_pixels,
    load,
    places,
    store,
    tile,
)
from .triton_routing import inverted_index

_LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["heads", "topk", "tokens_inverse", *SIZES])
def _forward_kernel(
    q,
    k,
    v,
    index,
    out,
    logsumexp,
    scale,
    heads,
    topk,
    height,
    width,
    cols,
    region_h,
    region_w,
    count,
    cols_inverse,
    region_w_inverse,
    tokens_inverse,
    q_b,
    q_w,
    k_b,
    k_w,
    v_b,
    v_w,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_LISTED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Of a tile of a region's queries and one head; `scale`, to base 2, must be above zero."""
    tokens = region_h * region_w
    token, region, image = tile(tokens, count, BLOCK)
    head = tl.program_id(1)
    q += image * q_b + head * HEAD_DIM
    k += image * k_b + head * HEAD_DIM
    v += image * v_b + head * HEAD_DIM
    index += (image * count + region) * topk

    pixel, inside = places(
        region, token, height, width, cols, region_h, region_w, cols_inverse, region_w_inverse, WHOLE
    )
    query = load(q, pixel, q_w, inside, HEAD_DIM, BLOCK_D)
    # The best region comes first and is never empty, nor is its first token off the map: no maximum stays infinite.
    highest = tl.full((BLOCK,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    result = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    for start in range(0, topk * tokens, BLOCK_LISTED):
        key_pixel, there = listed_pixels(
            index,
            topk,
            start,
            height,
            width,
            cols,
            region_h,
            region_w,
            cols_inverse,
            region_w_inverse,
            tokens_inverse,
            WHOLE,
            BLOCK_LISTED,
        )
        key = load(k, key_pixel, k_w, there, HEAD_DIM, BLOCK_D)
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION)
        # Of whole regions the last tile alone may lack keys.
        if (not WHOLE) or start + BLOCK_LISTED > topk * tokens:
            scores = tl.where(there[None, :], scores, -float("inf"))
        # Scaled together with the subtraction: hence no scale that would turn the order round.
        higher = tl.maximum(highest, tl.max(scores, 1))
        weight = tl.exp2(scores * scale - (higher * scale)[:, None])
        shrink = tl.exp2((highest - higher) * scale)
        value = load(v, key_pixel, v_w, there, HEAD_DIM, BLOCK_D)
        total = total * shrink + tl.sum(weight, 1)
        result = result * shrink[:, None] + tl.dot(weight.to(value.dtype), value, input_precision=PRECISION)
        highest = higher
    channels = heads * HEAD_DIM
    out += image * height * width * channels + head * HEAD_DIM
    store(out, pixel, channels, inside, result * (1.0 / total)[:, None], HEAD_DIM, BLOCK_D)
    logsumexp += (image * heads + head) * height * width
    tl.store(logsumexp + pixel, highest * scale + tl.log2(total), mask=inside)


@triton.jit(do_not_specialize=["heads", "topk", "tokens_inverse", *SIZES])
def _query_gradient_kernel(
    q,
    k,
    v,
    index,
    out,
    logsumexp,
    grad,
    stats,
    grad_q,
    scale,
    heads,
    topk,
    height,
    width,
    cols,
    region_h,
    region_w,
    count,
    cols_inverse,
    region_w_inverse,
    tokens_inverse,
    q_b,
    q_w,
    k_b,
    k_w,
    v_b,
    v_w,
    grad_w,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_LISTED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Also what the other gradients need of a query, side by side: the log-sum-exp and rowsum(dO * O)."""
    tokens = region_h * region_w
    token, region, image = tile(tokens, count, BLOCK)
    head = tl.program_id(1)
    q += image * q_b + head * HEAD_DIM
    k += image * k_b + head * HEAD_DIM
    v += image * v_b + head * HEAD_DIM
    index += (image * count + region) * topk

    pixel, inside = places(
        region, token, height, width, cols, region_h, region_w, cols_inverse, region_w_inverse, WHOLE
    )
    query = load(q, pixel, q_w, inside, HEAD_DIM, BLOCK_D)
    channels = heads * HEAD_DIM
    first = image * height * width * channels + head * HEAD_DIM
    d_out = load(grad + first, pixel, channels, inside, HEAD_DIM, BLOCK_D)
    attended = load(out + first, pixel, channels, inside, HEAD_DIM, BLOCK_D)
    along = tl.sum(d_out.to(tl.float32) * attended.to(tl.float32), 1)
    first = (image * heads + head) * height * width
    lse = tl.load(logsumexp + first + pixel, mask=inside, other=0.0)
    pair = tl.arange(0, 2)[None, :]
    tl.store(stats + (first + pixel)[:, None] * 2 + pair, tl.join(lse, along), mask=inside[:, None])
    result = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    for start in range(0, topk * tokens, BLOCK_LISTED):
        key_pixel, there = listed_pixels(
            index,
            topk,
            start,
            height,
            width,
            cols,
            region_h,
            region_w,
            cols_inverse,
            region_w_inverse,
            tokens_inverse,
            WHOLE,
            BLOCK_LISTED,
        )
        key = load(k, key_pixel, k_w, there, HEAD_DIM, BLOCK_D)
        value = load(v, key_pixel, v_w, there, HEAD_DIM, BLOCK_D)
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        weight = tl.exp2(scores - lse[:, None])
        # Without the mask a low log-sum-exp would make the weight of a key off the map infinite.
        if (not WHOLE) or start + BLOCK_LISTED > topk * tokens:
            weight = tl.where(there[None, :], weight, 0.0)
        d_weight = tl.dot(d_out, tl.trans(value), input_precision=PRECISION)
        d_scores = weight * (d_weight - along[:, None])
        result += tl.dot(d_scores.to(key.dtype), key, input_precision=PRECISION)
    grad_q += image * height * width * grad_w + head * HEAD_DIM
    store(grad_q, pixel, grad_w, inside, result * (scale * _LN_2), HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=["heads", "tokens_inverse", *SIZES])
def _key_gradient_kernel(
    q,
    k,
    v,
    lists,
    numbers,
    grad,
    stats,
    grad_k,
    grad_v,
    scale,
    heads,
    height,
    width,
    cols,
    region_h,
    region_w,
    count,
    cols_inverse,
    region_w_inverse,
    tokens_inverse,
    q_b,
    q_w,
    k_b,
    k_w,
    v_b,
    v_w,
    grad_w,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_LISTED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Of a tile of a region's keys and one head, over the queries of the regions that chose it."""
    tokens = region_h * region_w
    token, region, image = tile(tokens, count, BLOCK)
    head = tl.program_id(1)
    channels = heads * HEAD_DIM
    q += image * q_b + head * HEAD_DIM
    k += image * k_b + head * HEAD_DIM
    v += image * v_b + head * HEAD_DIM
    grad += image * height * width * channels + head * HEAD_DIM
    stats += (image * heads + head) * height * width * 2
    lists += (image * count + region) * count
    number = tl.load(numbers + image * count + region)

    pixel, inside = places(
        region, token, height, width, cols, region_h, region_w, cols_inverse, region_w_inverse, WHOLE
    )
    key = load(k, pixel, k_w, inside, HEAD_DIM, BLOCK_D)
    value = load(v, pixel, v_w, inside, HEAD_DIM, BLOCK_D)
    pair = tl.arange(0, 2)[None, :]
    d_key = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    d_value = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    for start in range(0, number * tokens, BLOCK_LISTED):
        query_pixel, there = listed_pixels(
            lists,
            number,
            start,
            height,
            width,
            cols,
            region_h,
            region_w,
            cols_inverse,
            region_w_inverse,
            tokens_inverse,
            WHOLE,
            BLOCK_LISTED,
        )
        query = load(q, query_pixel, q_w, there, HEAD_DIM, BLOCK_D)
        d_out = load(grad, query_pixel, channels, there, HEAD_DIM, BLOCK_D)
        # As one tile of pairs: one by one, every thread would compute the places of all its columns' queries anew.
        pairs = tl.load(stats + query_pixel.to(tl.int64)[:, None] * 2 + pair, mask=there[:, None], other=0.0)
        lse, along = tl.split(pairs)
        # Queries off the map have zeros for gradients, and what keys off the map gather is not stored: no mask.
        scores = tl.dot(key, tl.trans(query), input_precision=PRECISION) * scale
        weight = tl.exp2(scores - lse[None, :])
        d_value += tl.dot(weight.to(d_out.dtype), d_out, input_precision=PRECISION)
        d_weight = tl.dot(value, tl.trans(d_out), input_precision=PRECISION)
        d_scores = weight * (d_weight - along[None, :])
        d_key += tl.dot(d_scores.to(query.dtype), query, input_precision=PRECISION)
    first = image * height * width * grad_w + head * HEAD_DIM
    store(grad_k + first, pixel, grad_w, inside, d_key * (scale * _LN_2), HEAD_DIM, BLOCK_D)
    store(grad_v + first, pixel, grad_w, inside, d_value, HEAD_DIM, BLOCK_D)


# Tiles of which few spill a register on sm_80 and sm_90. By the bytes of a token in one head, and by the tokens of a
# program's tile: listed tokens of a step, warps, stages of the pipeline, and the most registers of a thread. Left to
# choose these (None) the compiler takes fewer, and spills some, where that lets another program run beside; told that
# it may use all, it moves more loads ahead of their use, and in some kernels spills those.
_Tiles = dict[int, dict[int, tuple[int, int, int, int | None]]]
_FORWARD: _Tiles = {
    32: {16: (64, 1, 2, 255), 32: (128, 2, 2, 255), 64: (128, 4, 3, 255)},
    64: {16: (64, 1, 2, 255), 32: (128, 2, 2, None), 64: (128, 4, 3, 255)},
    128: {16: (32, 1, 2, 255), 32: (64, 2, 2, 255), 64: (128, 4, 1, 255)},
}
_QUERY_GRADIENT: _Tiles = {
    32: {16: (64, 1, 2, 255), 32: (64, 2, 2, 255), 64: (128, 4, 1, 255)},
    64: {16: (64, 1, 1, 255), 32: (64, 2, 1, 255), 64: (128, 4, 1, None)},
    128: {16: (32, 1, 2, 255), 32: (64, 2, 1, 255), 64: (32, 4, 1, 255)},
}
_KEY_GRADIENT: _Tiles = {
    32: {16: (64, 1, 2, 255), 32: (64, 2, 2, 255), 64: (64, 4, 2, 255)},
    64: {16: (64, 1, 2, None), 32: (64, 2, 1, 255), 64: (64, 4, 2, 255)},
    128: {16: (32, 1, 2, None), 32: (32, 2, 1, 255), 64: (32, 4, 2, None)},
}
# Of float32 whose products are rounded to TF32.
_FORWARD_TF32: _Tiles = {
    64: _FORWARD[64] | {32: (64, 2, 2, 255), 64: (128, 4, 3, None)},
    128: _FORWARD[128] | {64: (64, 4, 2, 255)},
    256: {16: (32, 1, 2, None), 32: (64, 2, 1, 255), 64: (32, 4, 2, 255)},
}
_QUERY_GRADIENT_TF32: _Tiles = {
    64: _QUERY_GRADIENT[64] | {64: (64, 4, 2, 255)},
    128: _QUERY_GRADIENT[128],
    256: {16: (32, 1, 1, 255), 32: (32, 2, 1, 255), 64: (32, 4, 1, None)},
}
_KEY_GRADIENT_TF32: _Tiles = {
    64: _KEY_GRADIENT[64] | {16: (32, 1, 2, 255), 32: (32, 2, 2, 255)},
    128: _KEY_GRADIENT[128] | {16: (16, 1, 2, 255)},
    256: {16: (16, 1, 1, 255), 32: (32, 2, 1, 255), 64: (16, 4, 2, 255)},
}
# Without tensor cores each thread holds its operands' rows and columns whole, and no loads ahead of their use.
_FORWARD_IEEE: _Tiles = {
    64: {16: (32, 2, 1, 255), 32: (16, 2, 1, 255), 64: (16, 4, 1, 255)},
    128: {16: (32, 2, 1, 255), 32: (16, 2, 1, None), 64: (16, 4, 1, 255)},
    256: {16: (32, 2, 1, 255), 32: (32, 4, 1, 255), 64: (16, 8, 1, 255)},
}
_QUERY_GRADIENT_IEEE: _Tiles = {
    64: {16: (32, 2, 1, 255), 32: (16, 2, 1, 255), 64: (16, 4, 1, 255)},
    128: {16: (16, 2, 1, 255), 32: (16, 2, 1, 255), 64: (16, 4, 1, 255)},
    256: {16: (16, 2, 1, 255), 32: (16, 4, 1, 255), 64: (16, 8, 1, 255)},
}
_KEY_GRADIENT_IEEE: _Tiles = {
    64: {16: (32, 2, 1, 255), 32: (16, 2, 1, 255), 64: (16, 4, 1, 255)},
    128: {16: (32, 2, 1, 255), 32: (16, 2, 1, 255), 64: (16, 4, 1, 255)},
    256: {16: (16, 2, 1, 255), 32: (16, 4, 1, 255), 64: (16, 8, 1, 255)},
}


def _attention_options(
    tiles: _Tiles,
    tiles_tf32: _Tiles,
    tiles_ieee: _Tiles,
    tokens: int,
    keys: int,
    head_dim: int,
    dtype: torch.dtype,
    precision: str,
    whole: bool,
) -> dict[str, Any]:
    """What fixes an attention kernel's machine code.

    Args:
        tiles: of the kernel, in 16 bits.
        tiles_tf32: in float32 on tensor cores.
        tiles_ieee: in float32 without them.
        tokens: of a region.
        keys: that a query sees.
        head_dim: channels of a head.
        dtype: of the maps.
        precision: of products of float32.
        whole: whether all regions have the same size.
    """
    size, block_d = block(tokens, 16, 64), block(head_dim, 16, 64)
    if dtype == torch.float32:
        tiles = tiles_ieee if precision == "ieee" else tiles_tf32
    listed, warps, stages, registers = tiles[block_d * dtype.itemsize][size]
    # No more than there are; nothing is loaded ahead of a single step.
    listed = min(listed, block(keys, 16, 128))
    return {
        "HEAD_DIM": head_dim,
        "BLOCK_D": block_d,
        "WHOLE": whole,
        "BLOCK": size,
        "BLOCK_LISTED": listed,
        "PRECISION": precision,
        "num_warps": warps,
        "num_stages": stages if keys > listed else 1,
        "maxnreg": registers,
    }


def _forward_options(*kind: Any) -> dict[str, Any]:
    return _attention_options(_FORWARD, _FORWARD_TF32, _FORWARD_IEEE, *kind)


def _query_gradient_options(*kind: Any) -> dict[str, Any]:
    return _attention_options(_QUERY_GRADIENT, _QUERY_GRADIENT_TF32, _QUERY_GRADIENT_IEEE, *kind)


def _key_gradient_options(*kind: Any) -> dict[str, Any]:
    return _attention_options(_KEY_GRADIENT, _KEY_GRADIENT_TF32, _KEY_GRADIENT_IEEE, *kind)


def _kind(q: torch.Tensor, num_heads: int, regions: tuple[int, int], topk: int) -> tuple[Any, ...]:
    """By which the tiles are chosen."""
    tokens = triton.cdiv(q.shape[1], regions[0]) * triton.cdiv(q.shape[2], regions[1])
    precision = _dispatch.dot_precision()
    return tokens, topk * tokens, q.shape[3] // num_heads, q.dtype, precision, is_whole(q, regions)


def _strides(*maps: torch.Tensor) -> list[int]:
    return [stride for x in maps for stride in (x.stride(0), x.stride(2))]


def attention_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    index: torch.Tensor,
    num_heads: int,
    regions: tuple[int, int],
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention to the regions of an index.

    Args:
        q: (B, H, W, C).
        k: like `q`.
        v: like `q`.
        index: (B, R, topk) int32, contiguous, as `route` gives it.
        num_heads: divides C.
        regions: (rows, columns).
        scale: factor of the dot products.

    Returns:
        (B, H, W, C), dtype of `q`, and the log-sum-exp to base 2 of the scores, (B, heads, H, W) float32.
    """
    if scale < 0:
        q, scale = -q, -scale
    q, k, v = (evenly_spaced(x) for x in (q, k, v))
    b, height, width, _ = q.shape
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    logsumexp = q.new_empty(b, num_heads, height, width, dtype=torch.float32)
    kind = _kind(q, num_heads, regions, index.shape[2])
    options = _forward_options(*kind)
    with _dispatch.device_of(q):
        _forward_kernel[(b * index.shape[1] * triton.cdiv(kind[0], options["BLOCK"]), num_heads)](
            q,
            k,
            v,
            index,
            out,
            logsumexp,
            # Times zero, minus infinity would be NaN.
            max(scale / _LN_2.value, torch.finfo(torch.float32).tiny),
            num_heads,
            index.shape[2],
            *geometry(q, regions),
            inverse(kind[0]),
            *_strides(q, k, v),
            **options,
        )
    return out, logsumexp


def attention_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    index: torch.Tensor,
    out: torch.Tensor,
    logsumexp: torch.Tensor,
    num_heads: int,
    regions: tuple[int, int],
    scale: float,
    gradients: Sequence[torch.Tensor],
) -> None:
    """Writes the gradients of q, k and v, always the same bits.

    Args:
        grad: of `out`.
        q: as `attention_forward` took it, as all to `scale`.
        k: like `q`.
        v: like `q`.
        index: the regions.
        out: as `attention_forward` gave it.
        logsumexp: as `attention_forward` gave it.
        num_heads: divides C.
        regions: (rows, columns).
        scale: factor of the dot products.
        gradients: three maps (B, H, W, C) to write to: contiguous, or the parts of a contiguous (B, H, W, 3 * C).
    """
    q, k, v = (evenly_spaced(x) for x in (q, k, v))
    grad = grad.contiguous()
    grad_q, grad_k, grad_v = gradients
    stats = logsumexp.new_empty(*logsumexp.shape, 2)
    lists, numbers = inverted_index(index)
    kind = _kind(q, num_heads, regions, index.shape[2])
    sizes = *geometry(q, regions), inverse(kind[0]), *_strides(q, k, v), grad_q.stride(2)
    options, key_options = _query_gradient_options(*kind), _key_gradient_options(*kind)
    scale = scale / _LN_2.value
    count = index.shape[0] * index.shape[1]
    with _dispatch.device_of(q):
        _query_gradient_kernel[(count * triton.cdiv(kind[0], options["BLOCK"]), num_heads)](
            q, k, v, index, out, logsumexp, grad, stats, grad_q, scale, num_heads, index.shape[2], *sizes, **options
        )
        _key_gradient_kernel[(count * triton.cdiv(kind[0], key_options["BLOCK"]), num_heads)](
            q, k, v, lists, numbers, grad, stats, grad_k, grad_v, scale, num_heads, *sizes, **key_options
        )
