"""Neighborhood attention in Triton: the backward pass, and the gradient of the bias table. See `triton`. No atomics."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from .. import _dispatch
from .triton import (
    LOG2_E,
    SIZES,
    block_of_channels,
    class_length,
    constants,
    dense_channels,
    first_key,
    is_wide,
    load_pixels,
    locate,
    on_tensor_cores,
    origin,
    origin_dense,
    pattern_of,
    rectangle,
    sizes,
    spacing,
    step_places,
    store_pixels,
    tile_places,
    walk,
)

# Programs of the bias table's gradient: fills a GPU several times over, and bounds the memory of their sums.
_BIAS_PROGRAMS = 8192


@triton.jit(do_not_specialize=SIZES)
def _grad_query_kernel(
    table, grad_out, q, k, v, out, lse, delta, grad_q, scale,
    height, width, heads, dilation, classes_y, classes_x, longest_y, longest_x,
    group, first_head, table_head, patterns_x, steps,
    g_b, g_y, g_x, q_b, q_y, q_x, k_b, k_y, k_x, v_b, v_y, v_x, d_b, d_y, d_x,
    KERNEL: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
    BLOCK_N: tl.constexpr, BORDER_H: tl.constexpr, BORDER_W: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of a tile of queries; leaves `delta`, the product of each output with its gradient, for the other kernels."""
    image, head, class_y, class_x, length_y, length_x, top, left = locate(
        tl.program_id(0), height, width, group, dilation, classes_y, classes_x, longest_y, longest_x, TILE_H, TILE_W
    )
    if (top >= length_y) | (left >= length_x):
        return
    added = pattern_of(
        table, head, top, left, length_y, length_x, longest_y, longest_x, table_head, patterns_x, steps,
        TILE_H, TILE_W, BLOCK_N, BORDER_H, BORDER_W,
    )  # fmt: skip
    head += first_head
    apart = spacing(dilation, WIDE)
    y, x = top * dilation + class_y, left * dilation + class_x
    row, col, exists = tile_places(top, left, length_y, length_x, TILE_H, TILE_W)
    q = origin(q, image, head, y, x, q_b, q_y, q_x, HEAD_DIM)
    query = load_pixels(q, row, col, apart * q_y, apart * q_x, HEAD_DIM, BLOCK_D)
    grad_out = origin(grad_out, image, head, y, x, g_b, g_y, g_x, HEAD_DIM)
    grad = load_pixels(grad_out, row, col, apart * g_y, apart * g_x, HEAD_DIM, BLOCK_D)
    out = origin_dense(out, image, head, y, x, height, width, heads, HEAD_DIM)
    step_x = apart * heads * HEAD_DIM
    result = load_pixels(out, row, col, step_x * width, step_x, HEAD_DIM, BLOCK_D)
    product = tl.sum(grad.to(tl.float32) * result.to(tl.float32), 1)
    pixel = ((image * heads + head) * height + y) * width + x
    place = row * (apart * width) + col * apart
    tl.store(delta + pixel + place, product, exists)
    norm = tl.load(lse + pixel + place)

    key_top, rows = rectangle(top, length_y, TILE_H, KERNEL, False)
    key_left, cols = rectangle(left, length_x, TILE_W, KERNEL, False)
    key_y, key_x = key_top * dilation + class_y, key_left * dilation + class_x
    k = origin(k, image, head, key_y, key_x, k_b, k_y, k_x, HEAD_DIM)
    v = origin(v, image, head, key_y, key_x, v_b, v_y, v_x, HEAD_DIM)
    acc = tl.zeros([TILE_H * TILE_W, BLOCK_D], tl.float32)
    for start in range(0, rows * cols, BLOCK_N):
        down, right = step_places(start, rows, cols, BLOCK_N)
        key = load_pixels(k, down, right, apart * k_y, apart * k_x, HEAD_DIM, BLOCK_D)
        value = load_pixels(v, down, right, apart * v_y, apart * v_x, HEAD_DIM, BLOCK_D)
        logits = tl.dot(query, tl.trans(key), input_precision=PRECISION) * (scale * LOG2_E)
        logits += tl.load(added + start * (TILE_H * TILE_W))
        weights = tl.exp2(logits - norm[:, None])
        grad_logits = weights * (tl.dot(grad, tl.trans(value), input_precision=PRECISION) - product[:, None])
        acc = tl.dot(grad_logits.to(key.dtype), key, acc, input_precision=PRECISION)
    grad_q = origin(grad_q, image, head, y, x, d_b, d_y, d_x, HEAD_DIM)
    store_pixels(grad_q, row, col, apart * d_y, apart * d_x, exists, acc * scale, HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=SIZES)
def _grad_key_value_kernel(
    table, grad_out, q, k, v, lse, delta, grad_k, grad_v, scale,
    height, width, heads, dilation, classes_y, classes_x, longest_y, longest_x,
    group, first_head, table_head, patterns_x, steps,
    g_b, g_y, g_x, q_b, q_y, q_x, k_b, k_y, k_x, v_b, v_y, v_x, d_b, d_y, d_x,
    KERNEL: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
    BLOCK_N: tl.constexpr, BORDER_H: tl.constexpr, BORDER_W: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of a tile of keys, over the rectangle of queries whose windows reach it."""
    image, head, class_y, class_x, length_y, length_x, top, left = locate(
        tl.program_id(0), height, width, group, dilation, classes_y, classes_x, longest_y, longest_x, TILE_H, TILE_W
    )
    if (top >= length_y) | (left >= length_x):
        return
    added = pattern_of(
        table, head, top, left, length_y, length_x, longest_y, longest_x, table_head, patterns_x, steps,
        TILE_H, TILE_W, BLOCK_N, BORDER_H, BORDER_W,
    )  # fmt: skip
    head += first_head
    apart = spacing(dilation, WIDE)
    y, x = top * dilation + class_y, left * dilation + class_x
    row, col, exists = tile_places(top, left, length_y, length_x, TILE_H, TILE_W)
    k = origin(k, image, head, y, x, k_b, k_y, k_x, HEAD_DIM)
    key = load_pixels(k, row, col, apart * k_y, apart * k_x, HEAD_DIM, BLOCK_D)
    v = origin(v, image, head, y, x, v_b, v_y, v_x, HEAD_DIM)
    value = load_pixels(v, row, col, apart * v_y, apart * v_x, HEAD_DIM, BLOCK_D)

    query_top, rows = rectangle(top, length_y, TILE_H, KERNEL, True)
    query_left, cols = rectangle(left, length_x, TILE_W, KERNEL, True)
    query_y, query_x = query_top * dilation + class_y, query_left * dilation + class_x
    q = origin(q, image, head, query_y, query_x, q_b, q_y, q_x, HEAD_DIM)
    grad_out = origin(grad_out, image, head, query_y, query_x, g_b, g_y, g_x, HEAD_DIM)
    pixel = ((image * heads + head) * height + query_y) * width + query_x
    acc_k = tl.zeros([TILE_H * TILE_W, BLOCK_D], tl.float32)
    acc_v = tl.zeros([TILE_H * TILE_W, BLOCK_D], tl.float32)
    for start in range(0, rows * cols, BLOCK_N):
        down, right = step_places(start, rows, cols, BLOCK_N)
        query = load_pixels(q, down, right, apart * q_y, apart * q_x, HEAD_DIM, BLOCK_D)
        grad = load_pixels(grad_out, down, right, apart * g_y, apart * g_x, HEAD_DIM, BLOCK_D)
        place = down * (apart * width) + right * apart
        norm = tl.load(lse + pixel + place)
        product = tl.load(delta + pixel + place)
        logits = tl.dot(key, tl.trans(query), input_precision=PRECISION) * (scale * LOG2_E)
        logits += tl.load(added + start * (TILE_H * TILE_W))
        weights = tl.exp2(logits - norm[None, :])
        acc_v = tl.dot(weights.to(grad.dtype), grad, acc_v, input_precision=PRECISION)
        grad_logits = weights * (tl.dot(value, tl.trans(grad), input_precision=PRECISION) - product[None, :])
        acc_k = tl.dot(grad_logits.to(query.dtype), query, acc_k, input_precision=PRECISION)
    grad_k = origin(grad_k, image, head, y, x, d_b, d_y, d_x, HEAD_DIM)
    store_pixels(grad_k, row, col, apart * d_y, apart * d_x, exists, acc_k * scale, HEAD_DIM, BLOCK_D)
    grad_v = origin(grad_v, image, head, y, x, d_b, d_y, d_x, HEAD_DIM)
    store_pixels(grad_v, row, col, apart * d_y, apart * d_x, exists, acc_v, HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=SIZES)
def _grad_bias_kernel(
    grad_out, q, k, v, bias, lse, delta, partial, scale,
    batch, height, width, heads, dilation, classes_y, classes_x, longest_y, longest_x,
    g_b, g_y, g_x, q_b, q_y, q_x, k_b, k_y, k_x, v_b, v_y, v_x,
    KERNEL: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, TILE_W: tl.constexpr, BLOCK_N: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of one row of a head's table, over a share of the queries.

    The row fixes how many rows of the class lie between query and key. So stretches of TILE_W queries of one row meet
    stretches of BLOCK_N keys of another, from KERNEL - 1 further left on, and the difference of their indices is the
    table's column: gradients of all stretches are added up in place, and along the diagonals at the end. Mask and bias
    are those of a stretch, and stay in registers while it goes down the rows.
    """
    SIDE: tl.constexpr = 2 * KERNEL - 1
    program = tl.program_id(0)
    table_row, head, share = program % SIDE, program // SIDE % heads, program // SIDE // heads
    shares = tl.num_programs(0) // SIDE // heads
    step = table_row - (KERNEL - 1)
    apart = spacing(dilation, WIDE)
    query_place, key_place = tl.arange(0, TILE_W), tl.arange(0, BLOCK_N)
    table_col = key_place[None, :] - query_place[:, None]
    in_table = (table_col >= 0) & (table_col < SIDE)
    added = tl.load(bias + head * SIDE * SIDE + table_row * SIDE + table_col, in_table, other=0.0).to(tl.float32)

    stretches = tl.cdiv(longest_x, TILE_W)
    acc = tl.zeros([TILE_W, BLOCK_N], tl.float32)
    for item in range(share, batch * classes_y * classes_x * stretches, shares):
        left, rest = item % stretches * TILE_W, item // stretches
        class_x, rest = rest % classes_x, rest // classes_x
        class_y, image = rest % classes_y, (rest // classes_y).to(tl.int64)
        length_y = class_length(class_y, height, longest_y, dilation)
        length_x = class_length(class_x, width, longest_x, dilation)
        query_x, key_x = left + query_place, left + key_place - (KERNEL - 1)
        window = first_key(query_x, length_x, KERNEL)[:, None]
        seen = (key_x[None, :] >= window) & (key_x[None, :] < window + KERNEL)
        seen = seen & (query_x < length_x)[:, None] & (key_x < length_x)[None, :]
        masked = tl.where(seen, added * LOG2_E, float("-inf"))
        # Pixels of the class stand for those outside.
        query_x = tl.minimum(query_x, length_x - 1) * apart
        key_x = tl.minimum(tl.maximum(key_x, 0), length_x - 1) * apart

        # Away from the border, windows reach KERNEL // 2 far; further only those that are moved inside.
        far = tl.abs(step)
        number = tl.maximum(tl.where(far <= KERNEL // 2, length_y, tl.minimum(length_y, KERNEL)) - far, 0)
        number = tl.where(left < length_x, number, 0)
        begin = tl.where(step < 0, length_y - number, 0)
        for query_y in range(begin, begin + number):
            y, key_y = query_y * dilation + class_y, (query_y + step) * dilation + class_y
            queries = origin(q, image, head, y, class_x, q_b, q_y, q_x, HEAD_DIM)
            query = load_pixels(queries, 0, query_x, q_y, q_x, HEAD_DIM, BLOCK_D)
            grads = origin(grad_out, image, head, y, class_x, g_b, g_y, g_x, HEAD_DIM)
            grad = load_pixels(grads, 0, query_x, g_y, g_x, HEAD_DIM, BLOCK_D)
            keys = origin(k, image, head, key_y, class_x, k_b, k_y, k_x, HEAD_DIM)
            key = load_pixels(keys, 0, key_x, k_y, k_x, HEAD_DIM, BLOCK_D)
            values = origin(v, image, head, key_y, class_x, v_b, v_y, v_x, HEAD_DIM)
            value = load_pixels(values, 0, key_x, v_y, v_x, HEAD_DIM, BLOCK_D)
            pixel = ((image * heads + head) * height + y) * width + class_x
            norm = tl.load(lse + pixel + query_x)
            product = tl.load(delta + pixel + query_x)
            logits = tl.dot(query, tl.trans(key), input_precision=PRECISION) * (scale * LOG2_E) + masked
            weights = tl.exp2(logits - norm[:, None])
            acc += weights * (tl.dot(grad, tl.trans(value), input_precision=PRECISION) - product[:, None])
    at = partial + ((share * heads + head) * SIDE + table_row) * SIDE
    for col in range(SIDE):
        tl.store(at + col, tl.sum(tl.where(table_col == col, acc, 0.0)))


def _grad_query_options(dtype: torch.dtype, block_d: int, kernel_size: int, precision: str) -> dict[str, int]:
    """Tiles and resources of `_grad_query_kernel`, chosen as those of the forward pass."""
    if not on_tensor_cores(dtype, precision):
        return dict(TILE_H=4, TILE_W=4, BLOCK_N=16, num_warps=1 if block_d <= 64 else 2, num_stages=2)
    size = block_d * dtype.itemsize
    if size <= 128:
        return dict(TILE_H=4, TILE_W=8, BLOCK_N=16, num_warps=1, num_stages=2)
    return dict(TILE_H=4, TILE_W=8, BLOCK_N=16, num_warps=2 if size <= 256 else 4, num_stages=2)


def _grad_key_value_options(dtype: torch.dtype, block_d: int, kernel_size: int, precision: str) -> dict[str, int]:
    """Tiles and resources of `_grad_key_value_kernel`, chosen as those of the forward pass."""
    if not on_tensor_cores(dtype, precision):
        if block_d > 64:
            return dict(TILE_H=4, TILE_W=4, BLOCK_N=16, num_warps=2, num_stages=3)
        return dict(TILE_H=4, TILE_W=4, BLOCK_N=16, num_warps=1 if block_d <= 32 else 4, num_stages=2)
    size = block_d * dtype.itemsize
    if size <= 64:
        return dict(TILE_H=4, TILE_W=8, BLOCK_N=16, num_warps=1, num_stages=2)
    if size <= 128:
        return dict(TILE_H=4, TILE_W=4, BLOCK_N=16, num_warps=1, num_stages=2)
    return dict(TILE_H=4, TILE_W=8, BLOCK_N=16, num_warps=2 if size <= 256 else 4, num_stages=2)


def _grad_bias_options(dtype: torch.dtype, block_d: int, kernel_size: int, precision: str) -> dict[str, int]:
    """Stretches and resources of `_grad_bias_kernel`: keys reach from a window's width before the queries to behind."""
    block_n = 32 if kernel_size <= 9 else 64
    if not on_tensor_cores(dtype, precision):
        if block_d >= 64 and block_n == 64:
            return dict(TILE_W=32, BLOCK_N=block_n, num_warps=8, num_stages=2)
        if block_d <= 32:
            return dict(TILE_W=16, BLOCK_N=block_n, num_warps=block_n // 16, num_stages=2 if block_d <= 16 else 1)
        return dict(TILE_W=16, BLOCK_N=block_n, num_warps=4 if block_d <= 64 else 8, num_stages=2)
    size = block_d * dtype.itemsize
    warps = 1 if size * block_n < 4096 else 2 if size * block_n <= 8192 else 4
    return dict(TILE_W=16, BLOCK_N=block_n, num_warps=warps, num_stages=3 if size == block_n == 64 else 2)


def _bias_constants(options: dict[str, int], kernel_size: int, head_dim: int) -> dict[str, Any]:
    """`constants` of `_grad_bias_kernel`, which walks in stretches."""
    wanted = constants(options | {"TILE_H": 1}, kernel_size, head_dim, False)
    return {name: value for name, value in wanted.items() if name not in ("TILE_H", "BORDER_H", "BORDER_W")}


def neighborhood_attention_backward(
    grad_out: torch.Tensor,
    maps: Sequence[torch.Tensor],
    bias_table: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
    grads: Sequence[torch.Tensor],
    num_heads: int,
    kernel_size: int,
    dilation: int,
    scale: float,
    learns: bool,
) -> torch.Tensor:
    """Writes the gradients of q, k and v into `grads`; returns that of the bias table where it `learns`, else (0,).

    Args:
        grad_out: of the result, (B, H, W, C), any strides.
        maps: q, k and v, like it.
        bias_table: as the forward pass took it.
        out: what the forward pass gave.
        lse: what it gave, too.
        grads: three maps of equal strides, channels adjacent.
        num_heads: as the forward pass took it, like the rest.
        kernel_size: see there.
        dilation: see there.
        scale: see there.
        learns: whether the gradient of the bias table is wanted.
    """
    q = maps[0]
    if q.shape[0] == 0:
        return bias_table.new_zeros(bias_table.shape) if bias_table is not None and learns else q.new_empty(0)
    head_dim = q.shape[3] // num_heads
    maps = [dense_channels(x) for x in (grad_out, *maps)]
    bias = None if bias_table is None else bias_table.contiguous()
    out, lse = out.contiguous(), lse.contiguous()
    delta = torch.empty_like(lse)
    of_maps = sizes(q, num_heads, dilation)
    strides = [stride for x in (*maps, grads[0]) for stride in x.stride()[:3]]
    wide = is_wide(dilation, *maps, out, grads[0])
    given = q.dtype, block_of_channels(head_dim), kernel_size, _dispatch.dot_precision()
    settings = wide, bias, num_heads, dilation, scale
    with _dispatch.device_of(q):
        options = constants(_grad_query_options(*given), kernel_size, head_dim, False)
        walk(_grad_query_kernel, options, False, (*maps, out, lse, delta, grads[0]), strides, *settings)
        options = constants(_grad_key_value_options(*given), kernel_size, head_dim, True)
        walk(_grad_key_value_kernel, options, True, (*maps, lse, delta, *grads[1:]), strides, *settings)
        if bias is None or not learns:
            return q.new_empty(0)
        options, side = _bias_constants(_grad_bias_options(*given), kernel_size, head_dim), 2 * kernel_size - 1
        *_, classes_y, classes_x, _, longest_x = of_maps
        stretches = q.shape[0] * classes_y * classes_x * triton.cdiv(longest_x, options["TILE_W"])
        shares = max(1, min(_BIAS_PROGRAMS // (num_heads * side), stretches))
        partial = torch.empty((shares, num_heads, side, side), dtype=torch.float32, device=q.device)
        _grad_bias_kernel[(shares * num_heads * side,)](
            *maps, bias, lse, delta, partial, scale, q.shape[0], *of_maps, *strides[:12], WIDE=wide, **options
        )
        return partial.sum(0).to(bias.dtype)
