"""Neighborhood attention in Triton: the tables of mask and bias, and the forward pass; the rest in `triton_backward`.

The pixels of one residue class are a dense map of their own (see `cpu`), which programs walk in tiles: of queries
in the forward pass and for the gradient of q, of keys for those of k and v. What a tile attends to, or is attended by,
is a rectangle of the same class. Which query sees which key there, and with what bias, is the same for all tiles far
from the borders, and for those that lie alike near one. Each such pattern has a dense table, which a kernel of its own
makes first, with minus infinity where a query does not see a key. Softmaxes are in base 2.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from .. import _dispatch

# One compiled kernel serves all sizes.
SIZES = (
    "batch",
    "height",
    "width",
    "heads",
    "group",
    "first_head",
    "longest_y",
    "longest_x",
    "table_head",
    "patterns_y",
    "patterns_x",
    "steps",
)
LOG2_E = tl.constexpr(1.4426950408889634)
# Where a running maximum begins: not at minus infinity, which minus itself is no number.
_LOWEST = tl.constexpr(-3.4028234663852886e38)
# Of a table: heads whose tables are larger together take turns.
_TABLE_BYTES = 2**25
# Offsets within an image above it take 64 bits.
_LARGEST = 2**31 - 1


@triton.jit
def _split(number, count):
    """Quotient and remainder of what is not negative: of unsigned numbers the machine has them in less instructions."""
    number, count = tl.cast(number, tl.uint32), tl.cast(count, tl.uint32)
    quotient = number // count
    return quotient.to(tl.int32), (number - quotient * count).to(tl.int32)


@triton.jit
def class_length(residue, size, longest, dilation):
    """Pixels of a residue class on an axis of `size` pixels, in whose longest class there are `longest`."""
    return longest - ((longest - 1) * dilation + residue >= size).to(tl.int32)


@triton.jit
def locate(
    program, height, width, group, dilation, classes_y, classes_x, longest_y, longest_x,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr,
):  # fmt: skip
    """Image, head, residue class and first position of a program's tile; the tiles of a class are neighbours.

    Returns:
        image, head of `group`, class_y, class_x, length_y, length_x, top, left. Where classes differ in length, the
        tile may lie outside: top >= length_y or left >= length_x.
    """
    program, left = _split(program, tl.cdiv(longest_x, TILE_W))
    program, top = _split(program, tl.cdiv(longest_y, TILE_H))
    program, class_x = _split(program, classes_x)
    program, class_y = _split(program, classes_y)
    image, head = _split(program, group)
    length_y = class_length(class_y, height, longest_y, dilation)
    length_x = class_length(class_x, width, longest_x, dilation)
    return image.to(tl.int64), head, class_y, class_x, length_y, length_x, top * TILE_H, left * TILE_W


@triton.jit
def first_key(position, length, KERNEL: tl.constexpr):
    """Position of a query's first key, on an axis of a residue class of `length` pixels."""
    return tl.maximum(tl.minimum(position - KERNEL // 2, length - KERNEL), 0)


@triton.jit
def _keys_of(first, length, TILE: tl.constexpr, KERNEL: tl.constexpr):
    """First key and number of keys that a tile's queries see, on an axis."""
    last = tl.minimum(first + TILE, length) - 1
    begin = first_key(first, length, KERNEL)
    return begin, tl.minimum(first_key(last, length, KERNEL) + KERNEL, length) - begin


@triton.jit
def _queries_of(first, length, TILE: tl.constexpr, KERNEL: tl.constexpr):
    """First query and number of queries that see a tile's keys, on an axis: windows are moved inside at the borders."""
    last = tl.minimum(first + TILE, length) - 1
    begin = tl.where(first < KERNEL, 0, first - KERNEL // 2)
    return begin, tl.where(last >= length - KERNEL, length, last + KERNEL // 2 + 1) - begin


@triton.jit
def rectangle(first, length, TILE: tl.constexpr, KERNEL: tl.constexpr, OF_KEYS: tl.constexpr):
    """First pixel and number of pixels, on an axis, that a tile of queries sees, or that see a tile of keys."""
    if OF_KEYS:
        begin, number = _queries_of(first, length, TILE, KERNEL)
    else:
        begin, number = _keys_of(first, length, TILE, KERNEL)
    return begin, number


@triton.jit
def _patterns(longest, TILE: tl.constexpr, BORDER: tl.constexpr):
    """Number of patterns on an axis, in classes of either length: of tiles that lie alike.

    BORDER tiles at the beginning, those in the midst, which are all alike, and BORDER + 1 at the end, as the last tile
    may be cut.
    """
    return tl.minimum(tl.cdiv(longest, TILE), 2 * BORDER + 2)


@triton.jit
def _pattern(first, length, longest, TILE: tl.constexpr, BORDER: tl.constexpr):
    """Number of a tile's pattern on an axis, in a class of `length` pixels: those of shorter classes come second."""
    tile = first // TILE
    alike = tl.maximum(tl.cdiv(length, TILE) - (2 * BORDER + 2), 0)
    number = tl.maximum(tl.minimum(tile, BORDER), tile - alike)
    return number + (longest - length) * _patterns(longest, TILE, BORDER)


@triton.jit
def _example(pattern, longest, TILE: tl.constexpr, BORDER: tl.constexpr):
    """First position of a tile of this pattern, and the length of its class, outside of which the tile may lie."""
    patterns = _patterns(longest, TILE, BORDER)
    length, number = longest - pattern // patterns, pattern % patterns
    alike = tl.maximum(tl.cdiv(length, TILE) - (2 * BORDER + 2), 0)
    return (number + tl.where(number > BORDER, alike, 0)) * TILE, length


@triton.jit
def _places(start, cols, BLOCK_N: tl.constexpr):
    """Rows and columns of BLOCK_N places of a rectangle, from number `start` on."""
    place = start + tl.arange(0, BLOCK_N)
    # A division by `cols`, exact where the product of both is below 2 ** 20.
    row = place * ((1 << 20) // cols + 1) >> 20
    return row, place - row * cols


@triton.jit(do_not_specialize=SIZES)
def _table_kernel(
    table, bias, longest_y, longest_x, patterns_y, patterns_x, steps,
    KERNEL: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_N: tl.constexpr,
    BORDER_H: tl.constexpr, BORDER_W: tl.constexpr, OF_KEYS: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Of one head and pattern: the pixels of a tile by the places of its rectangle that a step takes."""
    PIXELS: tl.constexpr = TILE_H * TILE_W
    program = tl.program_id(0)
    table += program.to(tl.int64) * (PIXELS * BLOCK_N)
    program, step = _split(program, steps)
    program, pattern_x = _split(program, patterns_x)
    head, pattern_y = _split(program, patterns_y)
    tile_top, length_y = _example(pattern_y, longest_y, TILE_H, BORDER_H)
    tile_left, length_x = _example(pattern_x, longest_x, TILE_W, BORDER_W)
    top, rows = rectangle(tile_top, length_y, TILE_H, KERNEL, OF_KEYS)
    left, cols = rectangle(tile_left, length_x, TILE_W, KERNEL, OF_KEYS)
    if (tile_top >= length_y) | (tile_left >= length_x) | (step * BLOCK_N >= rows * cols):
        return
    pixel = tl.arange(0, PIXELS)[:, None]
    # As in `tile_places`.
    tile_y = tl.minimum(tile_top + pixel // TILE_W, length_y - 1)
    tile_x = tl.minimum(tile_left + pixel % TILE_W, length_x - 1)
    row, col = _places(step * BLOCK_N, cols, BLOCK_N)
    row, col = row[None, :], col[None, :]
    if OF_KEYS:
        query_y, query_x, key_y, key_x = top + row, left + col, tile_y, tile_x
    else:
        query_y, query_x, key_y, key_x = tile_y, tile_x, top + row, left + col
    first_y, first_x = first_key(query_y, length_y, KERNEL), first_key(query_x, length_x, KERNEL)
    seen = (key_y >= first_y) & (key_y < first_y + KERNEL) & (key_x >= first_x) & (key_x < first_x + KERNEL)
    seen = seen & (row < rows)
    added = tl.zeros([PIXELS, BLOCK_N], tl.float32)
    if HAS_BIAS:
        SIDE: tl.constexpr = 2 * KERNEL - 1
        index = (key_y - query_y + KERNEL - 1) * SIDE + key_x - query_x + KERNEL - 1
        added = tl.load(bias + head * SIDE * SIDE + index, seen, other=0.0).to(tl.float32) * LOG2_E
    at = table + (pixel * BLOCK_N + tl.arange(0, BLOCK_N)[None, :])
    tl.store(at, tl.where(seen, added, float("-inf")))


@triton.jit
def pattern_of(
    table, head, top, left, length_y, length_x, longest_y, longest_x, table_head, patterns_x, steps,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_N: tl.constexpr, BORDER_H: tl.constexpr, BORDER_W: tl.constexpr,
):  # fmt: skip
    """Pointers, (TILE_H * TILE_W, BLOCK_N), to the table's first step for a tile; the others follow one another."""
    pattern_y = _pattern(top, length_y, longest_y, TILE_H, BORDER_H)
    pattern_x = _pattern(left, length_x, longest_x, TILE_W, BORDER_W)
    PIXELS: tl.constexpr = TILE_H * TILE_W
    table += head.to(tl.int64) * table_head + (pattern_y * patterns_x + pattern_x) * steps * (PIXELS * BLOCK_N)
    return table + tl.arange(0, PIXELS)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]


@triton.jit
def spacing(dilation, WIDE: tl.constexpr):
    """The dilation, in 64 bits where offsets within an image may need them: products with it take its type."""
    return tl.cast(dilation, tl.int64 if WIDE else tl.int32)


@triton.jit
def origin(at, image, head, y, x, stride_b, stride_y, stride_x, HEAD_DIM: tl.constexpr):
    """Pointer to a head's first channel in one pixel of an image."""
    return at + image * stride_b + y.to(tl.int64) * stride_y + x.to(tl.int64) * stride_x + head * HEAD_DIM


@triton.jit
def origin_dense(at, image, head, y, x, height, width, heads, HEAD_DIM: tl.constexpr):
    """`origin` in a contiguous map."""
    return at + (((image * height + y) * width + x) * heads + head) * HEAD_DIM


@triton.jit
def tile_places(top, left, length_y, length_x, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """Rows and columns of a tile's pixels, (TILE_H * TILE_W,), counted from its first, and whether they exist.

    The last row and column of the class stand for those outside.
    """
    place = tl.arange(0, TILE_H * TILE_W)
    row, col = place // TILE_W, place % TILE_W
    exists = (row < length_y - top) & (col < length_x - left)
    return tl.minimum(row, length_y - top - 1), tl.minimum(col, length_x - left - 1), exists


@triton.jit
def step_places(start, rows, cols, BLOCK_N: tl.constexpr):
    """Rows and columns of a step's pixels, (BLOCK_N,), counted from the rectangle's first.

    The rectangle's last row stands for those below.
    """
    row, col = _places(start, cols, BLOCK_N)
    return tl.minimum(row, rows - 1), col


@triton.jit
def load_pixels(at, row, col, step_y, step_x, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """(pixels, BLOCK_D), zero where there is no channel; `at` is the `origin` of row and column 0."""
    channel = tl.arange(0, BLOCK_D)
    pixels = at + ((row * step_y + col * step_x)[:, None] + channel[None, :])
    if HEAD_DIM == BLOCK_D:
        value = tl.load(pixels)
    else:
        value = tl.load(pixels, (channel < HEAD_DIM)[None, :], other=0.0)
    return value


@triton.jit
def store_pixels(at, row, col, step_y, step_x, exists, value, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rounds and writes what `load_pixels` would read, where pixels exist."""
    channel = tl.arange(0, BLOCK_D)
    pixels = at + ((row * step_y + col * step_x)[:, None] + channel[None, :])
    tl.store(pixels, value.to(at.dtype.element_ty), exists[:, None] & (channel < HEAD_DIM)[None, :])


@triton.jit(do_not_specialize=SIZES)
def _forward_kernel(
    table, q, k, v, out, lse, scale,
    height, width, heads, dilation, classes_y, classes_x, longest_y, longest_x,
    group, first_head, table_head, patterns_x, steps,
    q_b, q_y, q_x, k_b, k_y, k_x, v_b, v_y, v_x,
    KERNEL: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
    BLOCK_N: tl.constexpr, BORDER_H: tl.constexpr, BORDER_W: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of a tile of queries, with the logarithm of their softmax's denominators."""
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
    key_top, rows = rectangle(top, length_y, TILE_H, KERNEL, False)
    key_left, cols = rectangle(left, length_x, TILE_W, KERNEL, False)
    key_y, key_x = key_top * dilation + class_y, key_left * dilation + class_x
    k = origin(k, image, head, key_y, key_x, k_b, k_y, k_x, HEAD_DIM)
    v = origin(v, image, head, key_y, key_x, v_b, v_y, v_x, HEAD_DIM)
    largest = tl.full([TILE_H * TILE_W], _LOWEST, tl.float32)
    total = tl.zeros([TILE_H * TILE_W], tl.float32)
    acc = tl.zeros([TILE_H * TILE_W, BLOCK_D], tl.float32)
    for start in range(0, rows * cols, BLOCK_N):
        down, right = step_places(start, rows, cols, BLOCK_N)
        key = load_pixels(k, down, right, apart * k_y, apart * k_x, HEAD_DIM, BLOCK_D)
        value = load_pixels(v, down, right, apart * v_y, apart * v_x, HEAD_DIM, BLOCK_D)
        logits = tl.dot(query, tl.trans(key), input_precision=PRECISION) * (scale * LOG2_E)
        logits += tl.load(added + start * (TILE_H * TILE_W))
        grown = tl.maximum(largest, tl.max(logits, 1))
        weights = tl.exp2(logits - grown[:, None])
        shrink = tl.exp2(largest - grown)
        total = total * shrink + tl.sum(weights, 1)
        acc = tl.dot(weights.to(value.dtype), value, acc * shrink[:, None], input_precision=PRECISION)
        largest = grown
    acc *= (1 / total)[:, None]
    out = origin_dense(out, image, head, y, x, height, width, heads, HEAD_DIM)
    step_x = apart * heads * HEAD_DIM
    store_pixels(out, row, col, step_x * width, step_x, exists, acc, HEAD_DIM, BLOCK_D)
    lse += ((image * heads + head) * height + y) * width + x
    tl.store(lse + (row * (apart * width) + col * apart), largest + tl.log2(total), exists)


def on_tensor_cores(dtype: torch.dtype, precision: str) -> bool:
    """Whether products are made there, of few registers; else by every thread in its own."""
    return dtype != torch.float32 or precision != "ieee"


def _forward_options(dtype: torch.dtype, block_d: int, kernel_size: int, precision: str) -> dict[str, int]:
    """Tiles and resources of `_forward_kernel`: of those that spill no registers, what takes least instructions."""
    if not on_tensor_cores(dtype, precision):
        return dict(TILE_H=4, TILE_W=4, BLOCK_N=16, num_warps=1 if block_d <= 64 else 4, num_stages=2)
    # Bytes of a pixel: a warp holds whole ones.
    size = block_d * dtype.itemsize
    if size <= 128:
        return dict(TILE_H=4, TILE_W=8, BLOCK_N=32 if size <= 64 else 16, num_warps=1, num_stages=2)
    return dict(TILE_H=4, TILE_W=8, BLOCK_N=32 if size <= 256 else 16, num_warps=2 if size <= 256 else 4, num_stages=2)


def _patterns_of(size: int, dilation: int, tile: int, border: int) -> int:
    """Patterns of an axis, of residue classes of all lengths."""
    lengths = 1 if size % dilation == 0 or size < dilation else 2
    return lengths * min(triton.cdiv(triton.cdiv(size, dilation), tile), 2 * border + 2)


def _extent(longest: int, tile: int, kernel_size: int, of_keys: bool) -> int:
    """The largest number that `rectangle` gives on an axis, in classes of `longest` pixels and of one less."""
    if not of_keys:
        return min(longest, tile + kernel_size - 1)
    # Queries see keys from farther away at a border; on a short axis, both borders may be those of one tile.
    far = tile + kernel_size - 1 + kernel_size // 2
    return longest if longest < 2 * kernel_size + tile else far


def block_of_channels(head_dim: int) -> int:
    """Channels that kernels compute of a head."""
    return max(16, triton.next_power_of_2(head_dim))


def constants(options: dict[str, int], kernel_size: int, head_dim: int, of_keys: bool) -> dict[str, Any]:
    """Constants of a kernel that walks in tiles of queries or of keys, but for `WIDE`, and its resources."""
    reach = kernel_size if of_keys else kernel_size // 2
    return {
        "KERNEL": kernel_size,
        "HEAD_DIM": head_dim,
        "BLOCK_D": block_of_channels(head_dim),
        # Tiles at either end of an axis that differ from those in its midst.
        "BORDER_H": triton.cdiv(reach, options["TILE_H"]),
        "BORDER_W": triton.cdiv(reach, options["TILE_W"]),
        "PRECISION": _dispatch.dot_precision(),
        **options,
    }


def sizes(q: torch.Tensor, num_heads: int, dilation: int) -> tuple[int, ...]:
    """Height, width, heads, dilation, then numbers of residue classes and lengths of the longest, on both axes."""
    _, height, width, _ = q.shape
    classes = min(dilation, height), min(dilation, width)
    return height, width, num_heads, dilation, *classes, triton.cdiv(height, dilation), triton.cdiv(width, dilation)


def is_wide(dilation: int, *maps: torch.Tensor) -> bool:
    """Whether offsets within an image of any of the maps, (B, H, W, C), need 64 bits."""
    return any(
        max(x.shape[1], dilation) * x.stride(1) + max(x.shape[2], dilation) * x.stride(2) + x.shape[3] > _LARGEST
        for x in maps
    )


def _table_options(pixels: int, block_n: int) -> dict[str, int]:
    """Resources of `_table_kernel`, by the sides of what a program makes."""
    return dict(num_warps=max(1, pixels * block_n // 512), num_stages=1)


def walk(
    kernel: Any,
    options: dict[str, Any],
    of_keys: bool,
    tensors: Sequence[torch.Tensor],
    strides: Sequence[int],
    wide: bool,
    bias: torch.Tensor | None,
    num_heads: int,
    dilation: int,
    scale: float,
) -> None:
    """Makes the tables of a kernel that walks in tiles, and launches it, for as many heads at a time as memory allows.

    Args:
        kernel: takes a table, `tensors`, `scale`, `sizes`, which heads, the table's sizes and `strides`.
        options: as `constants` gives them.
        of_keys: whether tiles are of keys.
        tensors: the first, (B, H, W, C), is of the size of all maps.
        strides: of maps: image, row and column.
        wide: see `is_wide`.
        bias: (num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1), contiguous; None for masks alone.
        num_heads: divides C.
        dilation: at most the larger of H and W.
        scale: of the products.
    """
    names = ("KERNEL", "TILE_H", "TILE_W", "BLOCK_N", "BORDER_H", "BORDER_W")
    kernel_size, tile_h, tile_w, block_n, border_h, border_w = given = [options[name] for name in names]
    batch = tensors[0].shape[0]
    height, width, _, _, classes_y, classes_x, longest_y, longest_x = of_maps = sizes(tensors[0], num_heads, dilation)
    patterns_y = _patterns_of(height, dilation, tile_h, border_h)
    patterns_x = _patterns_of(width, dilation, tile_w, border_w)
    places = _extent(longest_y, tile_h, kernel_size, of_keys) * _extent(longest_x, tile_w, kernel_size, of_keys)
    steps = triton.cdiv(places, block_n)
    shape = (patterns_y * patterns_x, steps, tile_h * tile_w, block_n)
    group = num_heads
    if bias is not None:
        # Float32. The last turn takes hardly less than the others.
        turns = triton.cdiv(num_heads, max(1, _TABLE_BYTES // (4 * math.prod(shape))))
        group = triton.cdiv(num_heads, turns)
    tables = 1 if bias is None else group
    table = torch.empty((tables, *shape), dtype=torch.float32, device=tensors[0].device)
    programs = classes_y * classes_x * triton.cdiv(longest_y, tile_h) * triton.cdiv(longest_x, tile_w)
    for first in range(0, num_heads, group):
        heads = min(group, num_heads - first)
        _table_kernel[(min(tables, heads) * patterns_y * patterns_x * steps,)](
            table, None if bias is None else bias[first:], longest_y, longest_x, patterns_y, patterns_x, steps,
            **dict(zip(names, given, strict=True)), OF_KEYS=of_keys, HAS_BIAS=bias is not None,
            **_table_options(tile_h * tile_w, block_n),
        )  # fmt: skip
        kernel[(batch * heads * programs,)](
            table, *tensors, scale, *of_maps, heads, first, 0 if bias is None else table.stride(0), patterns_x, steps,
            *strides, WIDE=wide, **options,
        )  # fmt: skip


def dense_channels(x: torch.Tensor) -> torch.Tensor:
    """Kernels take the other strides as they are: q, k and v are usually parts of one tensor."""
    return x if x.stride(3) == 1 else x.contiguous()


def neighborhood_attention_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias_table: torch.Tensor | None,
    num_heads: int,
    kernel_size: int,
    dilation: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Arguments as `neighborhood_attention`, a head of at most 128 channels.

    Returns:
        (B, H, W, C), dtype of `q`; base-2 logarithm of the softmaxes' denominators, (B, num_heads, H, W), float32.
    """
    b, height, width, channels = q.shape
    head_dim = channels // num_heads
    out = torch.empty((b, height, width, channels), dtype=q.dtype, device=q.device)
    lse = torch.empty((b, num_heads, height, width), dtype=torch.float32, device=q.device)
    if b == 0:
        return out, lse
    q, k, v = (dense_channels(x) for x in (q, k, v))
    bias = None if bias_table is None else bias_table.contiguous()
    chosen = _forward_options(q.dtype, block_of_channels(head_dim), kernel_size, _dispatch.dot_precision())
    options = constants(chosen, kernel_size, head_dim, False)
    strides = [stride for x in (q, k, v) for stride in x.stride()[:3]]
    wide = is_wide(dilation, q, k, v, out)
    with _dispatch.device_of(q):
        walk(_forward_kernel, options, False, (q, k, v, out, lse), strides, wide, bias, num_heads, dilation, scale)
    return out, lse
