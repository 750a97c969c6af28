"""Places on maps (B, H, W, C) that Triton's kernels of routing attention share.

Regions and their tokens are numbered in raster order; every region has `tokens` tokens, the size of a whole one, of
which those that fall off the map are masked. Pixels are numbered in raster order too: the address of one is its number
times a map's distance of pixels.
"""

import torch
import triton
import triton.language as tl

# Integers that a kernel takes as they come: they differ from map to map.
SIZES = ["height", "width", "cols", "region_h", "region_w", "count", "cols_inverse", "region_w_inverse"]


@triton.jit
def divide(x, divisor, inverse):
    """Quotient and rest of integers of 0 to 2 ** 31 - 1; `inverse` is that of the function below."""
    # At most one too small.
    quotient = tl.umulhi(x.to(tl.uint32), inverse.to(tl.uint32)).to(tl.int32)
    rest = x - quotient * divisor
    more = rest >= divisor
    return quotient + more.to(tl.int32), tl.where(more, rest - divisor, rest)


@triton.jit
def places(region, token, height, width, cols, region_h, region_w, cols_inverse, region_w_inverse, WHOLE: tl.constexpr):
    """Numbers of the pixels of regions' tokens, and whether they lie on the map."""
    region_row, region_col = divide(region, cols, cols_inverse)
    token_row, token_col = divide(token, region_w, region_w_inverse)
    inside = token < region_h * region_w
    if WHOLE:
        # The same number as below, without the columns, which nothing else needs.
        first = region * region_w + region_row * (region_h * width - cols * region_w)
        pixel = first + token + token_row * (width - region_w)
    else:
        row, col = region_row * region_h + token_row, region_col * region_w + token_col
        pixel = row * width + col
        inside = inside & (row < height) & (col < width)
    return pixel, inside


@triton.jit
def tile(tokens, count, BLOCK: tl.constexpr):
    """This program's tokens, region and image."""
    # Unsigned numbers divide in half the instructions of signed ones.
    tiles = tl.cdiv(tokens, BLOCK).to(tl.uint32)
    program = tl.program_id(0).to(tl.uint32)
    place = program // tiles
    image = place // count.to(tl.uint32)
    token = (program - place * tiles).to(tl.int32) * BLOCK + tl.arange(0, BLOCK)
    return token, (place - image * count.to(tl.uint32)).to(tl.int32), image.to(tl.int64)


@triton.jit
def listed_pixels(
    regions,
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
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Pixels of BLOCK tokens, from the `start`-th, of the first `number` regions of a list, and which exist."""
    position = start + tl.arange(0, BLOCK)
    tokens = region_h * region_w
    listed = position < number * tokens
    slot, token = divide(position, tokens, tokens_inverse)
    region = tl.load(regions + slot, mask=listed, other=0)
    pixel, inside = places(
        region, token, height, width, cols, region_h, region_w, cols_inverse, region_w_inverse, WHOLE
    )
    if WHOLE:
        # Alone, it costs the layout of the scores no second computation of all places.
        inside = listed
    else:
        inside = inside & listed
    return pixel, inside


@triton.jit
def load(x, pixel, stride, inside, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """(tokens, BLOCK_D), zero off the map and beyond the head."""
    channel = tl.arange(0, BLOCK_D)
    mask = inside[:, None] & (channel < HEAD_DIM)[None, :]
    return tl.load(x + (pixel.to(tl.int64) * stride)[:, None] + channel[None, :], mask=mask, other=0.0)


@triton.jit
def store(x, pixel, stride, inside, value, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    channel = tl.arange(0, BLOCK_D)
    mask = inside[:, None] & (channel < HEAD_DIM)[None, :]
    at = x + (pixel.to(tl.int64) * stride)[:, None] + channel[None, :]
    tl.store(at, value.to(x.dtype.element_ty), mask=mask)


def evenly_spaced(x: torch.Tensor) -> torch.Tensor:
    """Copied if need be: the kernels take any distance between images and between pixels, but the same of all pixels.

    Views of one (B, H, W, 3 * C) pass as they are.
    """
    return x if x.stride(3) == 1 and x.stride(1) == x.shape[2] * x.stride(2) else x.contiguous()


def block(size: int, least: int, most: int) -> int:
    """A power of two that holds `size`, within limits."""
    return min(max(triton.next_power_of_2(size), least), most)


def inverse(divisor: int) -> int:
    """By which kernels multiply instead of dividing: 32 bits, whose first Triton takes for a sign."""
    bits = (2**32 - 1) // divisor
    return bits - 2**32 if bits >= 2**31 else bits


def geometry(x: torch.Tensor, regions: tuple[int, int]) -> tuple[int, int, int, int, int, int, int, int]:
    """The kernels' height, width, cols, region_h, region_w, count, cols_inverse and region_w_inverse."""
    (_, height, width, _), (rows, cols) = x.shape, regions
    region_h, region_w = triton.cdiv(height, rows), triton.cdiv(width, cols)
    return height, width, cols, region_h, region_w, rows * cols, inverse(cols), inverse(region_w)


def is_whole(x: torch.Tensor, regions: tuple[int, int]) -> bool:
    """Whether all regions have the same size."""
    return x.shape[1] % regions[0] == 0 and x.shape[2] % regions[1] == 0
