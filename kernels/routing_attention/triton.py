"""Bi-level routing attention in Triton: keys and values are read where they lie, by the index of the routing.

Everything works on maps (B, H, W, C) through their strides. A region's tokens are numbered in raster order, those of
all regions to `tokens`, the size of a whole one; what falls off the map is masked. The keys of a query region are one
sequence, region after chosen region, that tiles cut without regard to regions: small regions share a tile.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from .. import _dispatch
from .cpu import match

_LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _divide(x, divisor):
    """Quotient and rest of integers, quotients below 2 ** 22; at a third of the instructions of `//` and `%`."""
    quotient = (x.to(tl.float32) * (1.0 / divisor)).to(tl.int32)
    rest = x - quotient * divisor
    # Rounding may have gone one too far either way.
    step = (rest >= divisor).to(tl.int32) - (rest < 0).to(tl.int32)
    return quotient + step, rest - step * divisor


@triton.jit
def _tile(tokens, count, BLOCK: tl.constexpr):
    """This program's tokens, region and image."""
    tiles = tl.cdiv(tokens, BLOCK)
    program = tl.program_id(0)
    token = program % tiles * BLOCK + tl.arange(0, BLOCK)
    return token, program // tiles % count, (program // tiles // count).to(tl.int64)


@triton.jit
def _place(region, token, cols, region_h, region_w, height, width, WHOLE: tl.constexpr):
    """Row and column of a region's token, and whether they lie on the map."""
    region_row, region_col = _divide(region, cols)
    token_row, token_col = _divide(token, region_w)
    row, col = region_row * region_h + token_row, region_col * region_w + token_col
    inside = token < region_h * region_w
    if not WHOLE:
        inside = inside & (row < height) & (col < width)
    return row, col, inside


@triton.jit
def _listed(regions, number, start, cols, region_h, region_w, height, width, WHOLE: tl.constexpr, BLOCK: tl.constexpr):
    """Places of BLOCK tokens, from the `start`-th, of the first `number` regions of a list."""
    position = start + tl.arange(0, BLOCK)
    tokens = region_h * region_w
    listed = position < number * tokens
    slot, token = _divide(position, tokens)
    region = tl.load(regions + slot, mask=listed, other=0)
    row, col, inside = _place(region, token, cols, region_h, region_w, height, width, WHOLE)
    if WHOLE:
        # Alone, it costs the layout of the scores no second computation of all places.
        inside = listed
    else:
        inside = inside & listed
    return row, col, inside


@triton.jit
def _offsets(row, col, stride_h, stride_w):
    return row.to(tl.int64) * stride_h + col.to(tl.int64) * stride_w


@triton.jit
def _load(x, offset, inside, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """(tokens, BLOCK_D), zero off the map and beyond the head."""
    channel = tl.arange(0, BLOCK_D)
    mask = inside[:, None] & (channel < HEAD_DIM)[None, :]
    return tl.load(x + offset[:, None] + channel[None, :], mask=mask, other=0.0)


@triton.jit
def _store(x, offset, inside, value, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    channel = tl.arange(0, BLOCK_D)
    mask = inside[:, None] & (channel < HEAD_DIM)[None, :]
    tl.store(x + offset[:, None] + channel[None, :], value.to(x.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["channels", "height", "width", "cols", "region_h", "region_w", "count"])
def _means_kernel(
    x,
    means,
    channels,
    height,
    width,
    cols,
    region_h,
    region_w,
    count,
    x_b,
    x_h,
    x_w,
    WHOLE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    region = tl.program_id(0) % count
    batch = (tl.program_id(0) // count).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    there = channel < channels
    x += batch * x_b
    total = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
    for start in range(0, region_h * region_w, BLOCK_T):
        token = start + tl.arange(0, BLOCK_T)
        row, col, inside = _place(region, token, cols, region_h, region_w, height, width, WHOLE)
        pointers = x + _offsets(row, col, x_h, x_w)[:, None] + channel[None, :]
        total += tl.load(pointers, mask=inside[:, None] & there[None, :], other=0.0).to(tl.float32)
    rows_inside = tl.minimum(region_h, height - region // cols * region_h)
    cols_inside = tl.minimum(region_w, width - region % cols * region_w)
    number = tl.maximum(tl.maximum(rows_inside, 0) * tl.maximum(cols_inside, 0), 1)
    mean = tl.sum(total, 0) / number
    tl.store(means + (batch * count + region) * channels + channel, mean.to(means.dtype.element_ty), mask=there)


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


@triton.jit(do_not_specialize=["heads", "height", "width", "cols", "region_h", "region_w", "count", "topk"])
def _forward_kernel(
    q,
    k,
    v,
    index,
    out,
    logsumexp,
    scale,
    heads,
    height,
    width,
    cols,
    region_h,
    region_w,
    count,
    topk,
    q_b,
    q_h,
    q_w,
    k_b,
    k_h,
    k_w,
    v_b,
    v_h,
    v_w,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_LISTED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tokens = region_h * region_w
    token, region, batch = _tile(tokens, count, BLOCK)
    head = tl.program_id(1)
    q += batch * q_b + head * HEAD_DIM
    k += batch * k_b + head * HEAD_DIM
    v += batch * v_b + head * HEAD_DIM
    index += (batch * count + region) * topk

    row, col, inside = _place(region, token, cols, region_h, region_w, height, width, WHOLE)
    query = _load(q, _offsets(row, col, q_h, q_w), inside, HEAD_DIM, BLOCK_D)
    # The best region comes first and is never empty, nor is its first token off the map: no maximum stays infinite.
    highest = tl.full((BLOCK,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    result = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    for start in range(0, topk * tokens, BLOCK_LISTED):
        key_row, key_col, there = _listed(
            index, topk, start, cols, region_h, region_w, height, width, WHOLE, BLOCK_LISTED
        )
        key = _load(k, _offsets(key_row, key_col, k_h, k_w), there, HEAD_DIM, BLOCK_D)
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        scores = tl.where(there[None, :], scores, -float("inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        weight = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(highest - higher)
        value = _load(v, _offsets(key_row, key_col, v_h, v_w), there, HEAD_DIM, BLOCK_D)
        total = total * shrink + tl.sum(weight, 1)
        result = result * shrink[:, None] + tl.dot(weight.to(value.dtype), value, input_precision=PRECISION)
        highest = higher
    out += batch * height * width * (heads * HEAD_DIM) + head * HEAD_DIM
    pixel = row * width + col
    _store(out, pixel.to(tl.int64) * (heads * HEAD_DIM), inside, result / total[:, None], HEAD_DIM, BLOCK_D)
    logsumexp += (batch * heads + head) * height * width
    tl.store(logsumexp + pixel, highest + tl.log2(total), mask=inside)


@triton.jit(do_not_specialize=["heads", "height", "width", "cols", "region_h", "region_w", "count", "topk"])
def _query_gradient_kernel(
    q,
    k,
    v,
    index,
    out,
    logsumexp,
    grad,
    delta,
    grad_q,
    scale,
    heads,
    height,
    width,
    cols,
    region_h,
    region_w,
    count,
    topk,
    q_b,
    q_h,
    q_w,
    k_b,
    k_h,
    k_w,
    v_b,
    v_h,
    v_w,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_LISTED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tokens = region_h * region_w
    token, region, batch = _tile(tokens, count, BLOCK)
    head = tl.program_id(1)
    q += batch * q_b + head * HEAD_DIM
    k += batch * k_b + head * HEAD_DIM
    v += batch * v_b + head * HEAD_DIM
    index += (batch * count + region) * topk

    row, col, inside = _place(region, token, cols, region_h, region_w, height, width, WHOLE)
    query = _load(q, _offsets(row, col, q_h, q_w), inside, HEAD_DIM, BLOCK_D)
    first = batch * height * width * (heads * HEAD_DIM) + head * HEAD_DIM
    pixel = row * width + col
    offset = pixel.to(tl.int64) * (heads * HEAD_DIM)
    d_out = _load(grad + first, offset, inside, HEAD_DIM, BLOCK_D)
    along = tl.sum(d_out.to(tl.float32) * _load(out + first, offset, inside, HEAD_DIM, BLOCK_D).to(tl.float32), 1)
    first_of_head = (batch * heads + head) * height * width
    tl.store(delta + first_of_head + pixel, along, mask=inside)
    lse = tl.load(logsumexp + first_of_head + pixel, mask=inside, other=0.0)
    result = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    for start in range(0, topk * tokens, BLOCK_LISTED):
        key_row, key_col, there = _listed(
            index, topk, start, cols, region_h, region_w, height, width, WHOLE, BLOCK_LISTED
        )
        key = _load(k, _offsets(key_row, key_col, k_h, k_w), there, HEAD_DIM, BLOCK_D)
        value = _load(v, _offsets(key_row, key_col, v_h, v_w), there, HEAD_DIM, BLOCK_D)
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        # Without the mask a low log-sum-exp would make the weight of a key off the map infinite.
        weight = tl.where(there[None, :], tl.exp2(scores - lse[:, None]), 0.0)
        d_weight = tl.dot(d_out, tl.trans(value), input_precision=PRECISION)
        d_scores = weight * (d_weight - along[:, None])
        result += tl.dot(d_scores.to(key.dtype), key, input_precision=PRECISION)
    _store(grad_q + first, offset, inside, result * (scale * _LN_2), HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=["heads", "height", "width", "cols", "region_h", "region_w", "count"])
def _key_gradient_kernel(
    q,
    k,
    v,
    lists,
    numbers,
    logsumexp,
    grad,
    delta,
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
    q_b,
    q_h,
    q_w,
    k_b,
    k_h,
    k_w,
    v_b,
    v_h,
    v_w,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_LISTED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tokens = region_h * region_w
    token, region, batch = _tile(tokens, count, BLOCK)
    head = tl.program_id(1)
    q += batch * q_b + head * HEAD_DIM
    k += batch * k_b + head * HEAD_DIM
    v += batch * v_b + head * HEAD_DIM
    first = batch * height * width * (heads * HEAD_DIM) + head * HEAD_DIM
    grad += first
    logsumexp += (batch * heads + head) * height * width
    delta += (batch * heads + head) * height * width
    lists += (batch * count + region) * count
    number = tl.load(numbers + batch * count + region)

    row, col, inside = _place(region, token, cols, region_h, region_w, height, width, WHOLE)
    key = _load(k, _offsets(row, col, k_h, k_w), inside, HEAD_DIM, BLOCK_D)
    value = _load(v, _offsets(row, col, v_h, v_w), inside, HEAD_DIM, BLOCK_D)
    d_key = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    d_value = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    for start in range(0, number * tokens, BLOCK_LISTED):
        query_row, query_col, there = _listed(
            lists, number, start, cols, region_h, region_w, height, width, WHOLE, BLOCK_LISTED
        )
        query = _load(q, _offsets(query_row, query_col, q_h, q_w), there, HEAD_DIM, BLOCK_D)
        pixel = query_row * width + query_col
        d_out = _load(grad, pixel.to(tl.int64) * (heads * HEAD_DIM), there, HEAD_DIM, BLOCK_D)
        lse = tl.load(logsumexp + pixel, mask=there, other=0.0)
        along = tl.load(delta + pixel, mask=there, other=0.0)
        # Queries off the map have zeros for gradients, and what keys off the map gather is not stored: no mask.
        scores = tl.dot(key, tl.trans(query), input_precision=PRECISION) * scale
        weight = tl.exp2(scores - lse[None, :])
        d_value += tl.dot(weight.to(d_out.dtype), d_out, input_precision=PRECISION)
        d_weight = tl.dot(value, tl.trans(d_out), input_precision=PRECISION)
        d_scores = weight * (d_weight - along[None, :])
        d_key += tl.dot(d_scores.to(query.dtype), query, input_precision=PRECISION)
    offset = (row * width + col).to(tl.int64) * (heads * HEAD_DIM)
    _store(grad_k + first, offset, inside, d_key * (scale * _LN_2), HEAD_DIM, BLOCK_D)
    _store(grad_v + first, offset, inside, d_value, HEAD_DIM, BLOCK_D)


def _strides(x: torch.Tensor) -> tuple[int, int, int]:
    return x.stride(0), x.stride(1), x.stride(2)


def _dense_channels(x: torch.Tensor) -> torch.Tensor:
    """The kernels take any strides but the last: views of one (B, H, W, 3 * C) pass as they are."""
    return x if x.stride(3) == 1 else x.contiguous()


def _geometry(x: torch.Tensor, regions: tuple[int, int]) -> tuple[int, int, int, int, int, int]:
    """The kernels' height, width, cols, region_h, region_w and count."""
    (_, height, width, _), (rows, cols) = x.shape, regions
    return height, width, cols, triton.cdiv(height, rows), triton.cdiv(width, cols), rows * cols


def _block(size: int, least: int, most: int) -> int:
    return min(max(triton.next_power_of_2(size), least), most)


def _whole(x: torch.Tensor, regions: tuple[int, int]) -> bool:
    return x.shape[1] % regions[0] == 0 and x.shape[2] % regions[1] == 0


def _means_options(channels: int, whole: bool) -> dict[str, Any]:
    return {"WHOLE": whole, "BLOCK_T": 32, "BLOCK_C": _block(channels, 16, 64), "num_warps": 4}


def _invert_options(count: int) -> dict[str, Any]:
    return {"BLOCK": _block(count, 64, 256), "num_warps": 2}


def _attention_options(
    tokens: int, head_dim: int, dtype: torch.dtype, precision: str, whole: bool, keys: bool = False
) -> dict[str, Any]:
    """What fixes an attention kernel's machine code: tiles that leave no register spilled on sm_80 and sm_90.

    With `keys` that of the gradients of keys and values, which holds most.
    """
    block_d = _block(head_dim, 16, 64)
    row = block_d * dtype.itemsize
    if dtype == torch.float32 and precision == "ieee":
        # Without tensor cores each thread holds its operands' rows and columns whole, and no loads ahead of their use.
        block, listed = _block(tokens, 16, min(block_d, 32)), 32 if block_d <= 32 else 16
        warps, stages = block // 4, 1
    else:
        block = _block(tokens, 16, 64)
        if keys:
            listed = 16 if row == 256 else 32
        else:
            listed = 64 if row == 64 else 32
        warps = block // 16 if row <= 64 or (block == 16 and row == 128) else block // 8
        stages = 1 if row == 256 else 2
    return {
        "HEAD_DIM": head_dim,
        "BLOCK_D": block_d,
        "WHOLE": whole,
        "BLOCK": block,
        "BLOCK_LISTED": listed,
        "PRECISION": precision,
        "num_warps": warps,
        "num_stages": stages,
    }


def region_means(x: torch.Tensor, regions: tuple[int, int]) -> torch.Tensor:
    """(B, H, W, C) -> (B, R, C), float32; zero for a region off the map."""
    x = _dense_channels(x)
    b, channels = x.shape[0], x.shape[3]
    geometry = _geometry(x, regions)
    means = x.new_empty(b, geometry[-1], channels, dtype=torch.float32)
    options = _means_options(channels, _whole(x, regions))
    grid = (b * geometry[-1], triton.cdiv(channels, options["BLOCK_C"]))
    with _dispatch.device_of(x):
        _means_kernel[grid](x, means, channels, *geometry, *_strides(x), **options)
    return means


def route(q: torch.Tensor, k: torch.Tensor, regions: tuple[int, int], topk: int) -> torch.Tensor:
    """As `cpu.route`, from maps (B, H, W, C) -> (B, R, topk) int32."""
    scores = match(region_means(q, regions), region_means(k, regions))
    height, width, _, region_h, region_w, _ = _geometry(q, regions)
    # Empty regions are whole rows and columns of the grid.
    grid = scores.unflatten(2, regions)
    grid[:, :, triton.cdiv(height, region_h) :] = -float("inf")
    grid[:, :, :, triton.cdiv(width, region_w) :] = -float("inf")
    return torch.topk(scores, topk, dim=-1)[1].int()


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
    q, k, v = (_dense_channels(x) for x in (q, k, v))
    b, height, width, channels = q.shape
    geometry = _geometry(q, regions)
    tokens = geometry[3] * geometry[4]
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    logsumexp = q.new_empty(b, num_heads, height, width, dtype=torch.float32)
    options = _attention_options(tokens, channels // num_heads, q.dtype, _dispatch.dot_precision(), _whole(q, regions))
    grid = (index.shape[0] * index.shape[1] * triton.cdiv(tokens, options["BLOCK"]), num_heads)
    strides = (*_strides(q), *_strides(k), *_strides(v))
    with _dispatch.device_of(q):
        _forward_kernel[grid](
            q,
            k,
            v,
            index,
            out,
            logsumexp,
            scale / _LN_2.value,
            num_heads,
            *geometry,
            index.shape[2],
            *strides,
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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v, each (B, H, W, C), from what `attention_forward` took and gave; always the same bits."""
    q, k, v = (_dense_channels(x) for x in (q, k, v))
    grad = grad.contiguous()
    geometry = _geometry(q, regions)
    tokens, head_dim = geometry[3] * geometry[4], q.shape[3] // num_heads
    delta = torch.empty_like(logsumexp)
    grad_q, grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    strides = (*_strides(q), *_strides(k), *_strides(v))
    scale = scale / _LN_2.value
    lists, numbers = inverted_index(index)
    kind = (tokens, head_dim, q.dtype, _dispatch.dot_precision(), _whole(q, regions))
    options = _attention_options(*kind)
    grid = (index.shape[0] * index.shape[1] * triton.cdiv(tokens, options["BLOCK"]), num_heads)
    with _dispatch.device_of(q):
        _query_gradient_kernel[grid](
            q,
            k,
            v,
            index,
            out,
            logsumexp,
            grad,
            delta,
            grad_q,
            scale,
            num_heads,
            *geometry,
            index.shape[2],
            *strides,
            **options,
        )
        _key_gradient_kernel[grid](
            q,
            k,
            v,
            lists,
            numbers,
            logsumexp,
            grad,
            delta,
            grad_k,
            grad_v,
            scale,
            num_heads,
            *geometry,
            *strides,
            **_attention_options(*kind, keys=True),
        )
    return grad_q, grad_k, grad_v
