"""Windows as addresses, for the kernels in Triton: which windows a program takes, and where their pixels lie."""

import triton
import triton.language as tl

# One compiled kernel serves all sizes and strides: UNIT says by what powers of two strides can be divided.
SIZES = (
    "images", "rows", "cols", "heads", "shift_h", "shift_w", "each", "right_from", "bottom_from", "corner_from",
    "stride_b", "stride_h", "stride_w",
)  # fmt: skip


@triton.jit
def _parts(x, y, z, head, channels, HEAD_DIM: tl.constexpr, PACKED: tl.constexpr):
    """A head's first channel in three maps: if PACKED, `channels` apart in the pixels of `x`, whose alignment shows."""
    x += head * HEAD_DIM
    if PACKED:
        return x, x + channels, x + 2 * channels
    else:
        return x, y + head * HEAD_DIM, z + head * HEAD_DIM


@triton.jit
def _places(
    place, down, right, shift_h, shift_w,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PACK: tl.constexpr, SHIFTED: tl.constexpr,
):  # fmt: skip
    """Of places in PACK windows of HEIGHT x WIDTH pixels, one after the other.

    Returns:
        Row and column in the window; whether there is such a place; a label that a query and a key must share to see
        each other: 4 times the window, plus 2 where the place lies beyond the lower border, at which the window wraps
        round, plus 1 where it lies beyond the right one.
    """
    AREA: tl.constexpr = HEIGHT * WIDTH
    if PACK == 1:
        row, label = place // WIDTH, place * 0
    else:
        row, label = place % AREA // WIDTH, place // AREA * 4
    col = place % WIDTH
    if SHIFTED:
        label += (down & (row >= HEIGHT - shift_h)).to(tl.int32) * 2
        label += (right & (col >= WIDTH - shift_w)).to(tl.int32)
    return row, col, place < PACK * AREA, label


@triton.jit
def _pixels(row, col, label, height, width, WIDE: tl.constexpr):
    """Pixels of places relative to the first pixel of their window: those beyond the border wrap round it.

    In 64 bits if WIDE: where offsets within an image need them.
    """
    y, x = row - (label >> 1 & 1) * height, col - (label & 1) * width
    if WIDE:
        return y.to(tl.int64), x.to(tl.int64)
    else:
        return y, x


@triton.jit
def _share_of(
    share, images, rows, cols, shift_h, shift_w, each, right_from, bottom_from, corner_from,
    PACK: tl.constexpr, SHIFTED: tl.constexpr,
):  # fmt: skip
    """The windows of a program: `each` groups of PACK windows side by side, in raster order.

    Shares are sorted by what cuts their windows: nothing, the right border, the lower one, both.

    Returns:
        Whether the lower and the right border cut them; the first and the stop row and column of windows that these
        cut; image, row and column of its first window; how many groups there are.
    """
    down, right = share < 0, share < 0
    top, left, bottom, end = 0, 0, rows, cols
    if SHIFTED:
        down = share >= bottom_from
        right = ((share >= right_from) & (share < bottom_from)) | (share >= corner_from)
        whole_rows, whole_cols = rows - (shift_h > 0).to(tl.int32), cols - (shift_w > 0).to(tl.int32)
        top, bottom = tl.where(down, whole_rows, 0), tl.where(down, rows, whole_rows)
        left, end = tl.where(right, whole_cols, 0), tl.where(right, cols, whole_cols)
        begin = tl.where(share >= corner_from, corner_from, tl.where(down, bottom_from, right_from))
        share -= tl.where(down | right, begin, 0)
    across = (end - left + PACK - 1) // PACK
    first = share * each
    line = first // across
    image = line // (bottom - top)
    count = tl.minimum(each, images * (bottom - top) * across - first)
    return down, right, top, bottom, left, end, image, top + line % (bottom - top), left + first % across * PACK, count


@triton.jit
def _next(image, row, col, top, bottom, left, end, PACK: tl.constexpr):
    """The group of windows after this one."""
    col += PACK
    row, col = tl.where(col < end, row, row + 1), tl.where(col < end, col, left)
    image, row = tl.where(row < bottom, image, image + 1), tl.where(row < bottom, row, top)
    return image, row, col
