"""Triton kernels of depth-wise convolution and of the gated point-wise one, on maps in channels_last.

A tile is a patch of pixels by some channels. Tap after tap the patch is loaded at another shift, from the cache after
the first, and added up in registers, times the tap's weights, which all of the patch's pixels share.
"""

import torch
import triton
import triton.language as tl

from .. import _dispatch


@triton.jit
def _depthwise_kernel(
    x,
    weight,
    bias,
    out,
    height,
    width,
    channels,
    DILATION: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    TURNED: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Taps (ROWS, COLS, C) over a map (B, H, W, C); TURNED by half a circle they give the gradient of the map."""
    patches = tl.cdiv(width, BLOCK_W)
    patch = tl.program_id(0)
    pixel = tl.arange(0, BLOCK_H * BLOCK_W)
    line = patch // patches * BLOCK_H + pixel // BLOCK_W
    column = patch % patches * BLOCK_W + pixel % BLOCK_W
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    there = channel < channels
    first = (tl.program_id(2).to(tl.int64) * height + line) * width + column
    at = (first * channels)[:, None] + channel[None, :]
    total = tl.zeros((BLOCK_H * BLOCK_W, BLOCK_C), tl.float32)
    for i in range(ROWS):
        down = (i - ROWS // 2) * DILATION
        in_height = (line + down >= 0) & (line + down < height)
        for j in range(COLS):
            right = (j - COLS // 2) * DILATION
            valid = in_height & (column + right >= 0) & (column + right < width)
            shift = (down * width + right).to(tl.int64) * channels
            pixels = tl.load(x + at + shift, mask=valid[:, None] & there[None, :], other=0.0).to(tl.float32)
            tap = (ROWS - 1 - i) * COLS + COLS - 1 - j if TURNED else i * COLS + j
            factor = tl.load(weight + tap * channels + channel, mask=there, other=0.0).to(tl.float32)
            total += factor[None, :] * pixels
    if bias is not None:
        total += tl.load(bias + channel, mask=there, other=0.0).to(tl.float32)[None, :]
    valid = (line < height) & (column < width)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=valid[:, None] & there[None, :])


@triton.jit
def _taps_kernel(
    x,
    grad,
    out,
    height,
    width,
    channels,
    pixels,
    strip,
    DILATION: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Gradient of BLOCK_T taps of one row over a strip of pixels, (strips, ROWS, COLS, C) in float32.

    The gradient of the output is loaded once for the taps, which differ in their shift of the map alone.
    """
    groups: tl.constexpr = (COLS + BLOCK_T - 1) // BLOCK_T
    i = tl.program_id(0) // groups
    tap = tl.program_id(0) % groups * BLOCK_T + tl.arange(0, BLOCK_T)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    there = channel < channels
    shift = (tap - COLS // 2) * DILATION
    down = (i - ROWS // 2) * DILATION
    begin = tl.program_id(2) * strip
    total = tl.zeros((BLOCK_T, BLOCK_P, BLOCK_C), tl.float32)
    for start in range(0, tl.minimum(strip, pixels - begin), BLOCK_P):
        pixel = begin + start + tl.arange(0, BLOCK_P)
        valid = pixel < pixels
        at = (pixel.to(tl.int64) * channels)[:, None] + channel[None, :]
        above = tl.load(grad + at, mask=valid[:, None] & there[None, :], other=0.0).to(tl.float32)
        line = pixel // width % height + down
        column = (pixel % width)[None, :] + shift[:, None]
        inside = (valid & (line >= 0) & (line < height))[None, :] & (column >= 0) & (column < width)
        inside = inside & (tap < COLS)[:, None]
        source = (pixel + down * width)[None, :] + shift[:, None]
        at = (source.to(tl.int64) * channels)[:, :, None] + channel[None, None, :]
        shifted = tl.load(x + at, mask=inside[:, :, None] & there[None, None, :], other=0.0).to(tl.float32)
        total += shifted * above[None, :, :]
    at = ((tl.program_id(2).to(tl.int64) * ROWS + i) * COLS + tap) * channels
    tl.store(out + at[:, None] + channel[None, :], tl.sum(total, axis=1), mask=(tap < COLS)[:, None] & there[None, :])


@triton.jit
def _gated_kernel(
    x,
    weight,
    bias,
    gate,
    out,
    pixels,
    inputs,
    outputs,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """A gate (N, O) * (x (N, I) @ weight (O, I) transposed + bias): the product leaves the registers gated."""
    pixel = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    output = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    valid = pixel < pixels
    there = output < outputs
    total = tl.zeros((BLOCK_P, BLOCK_O), tl.float32)
    for start in range(0, inputs, BLOCK_I):
        channel = start + tl.arange(0, BLOCK_I)
        given = channel < inputs
        a = tl.load(x + (pixel * inputs)[:, None] + channel[None, :], mask=valid[:, None] & given[None, :], other=0.0)
        b = tl.load(
            weight + (output * inputs)[None, :] + channel[:, None], mask=there[None, :] & given[:, None], other=0.0
        )
        total = tl.dot(a, b, total, input_precision=PRECISION)
    if bias is not None:
        total += tl.load(bias + output, mask=there, other=0.0).to(tl.float32)[None, :]
    at = (pixel * outputs)[:, None] + output[None, :]
    tile = valid[:, None] & there[None, :]
    total *= tl.load(gate + at, mask=tile, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=tile)


# Patches of 8 x 8 pixels reuse most of what a 7 x 7 kernel loads; strips of a 1 x 21 kernel lie along it.
_WARPS = 4
_STRIP = 1024


def _patch(rows: int, cols: int, channels: int, itemsize: int) -> dict[str, int]:
    block = min(max(triton.next_power_of_2(channels), 16), 32)
    numbers = 64 * 32 if itemsize == 2 else 32 * 32
    pixels = numbers // block
    high = pixels if cols == 1 else 1 if rows == 1 else 8
    return dict(BLOCK_H=high, BLOCK_W=pixels // high, BLOCK_C=block)


def _group(cols: int) -> dict[str, int]:
    taps = min(triton.next_power_of_2(cols), 8)
    return dict(BLOCK_T=taps, BLOCK_P=64 // taps, BLOCK_C=32)


def _product(inputs: int, itemsize: int) -> dict[str, int]:
    block = min(max(triton.next_power_of_2(inputs), 16), 32)
    return dict(BLOCK_P=32, BLOCK_I=16, BLOCK_O=32) if itemsize == 4 else dict(BLOCK_P=64, BLOCK_I=block, BLOCK_O=64)


def _rows(x: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) as (B, H, W, C), contiguous; a view of a map in channels_last."""
    return x.permute(0, 2, 3, 1).contiguous()


def _taps(weight: torch.Tensor) -> torch.Tensor:
    """(C, 1, K, L) -> (K * L, C)."""
    return weight.flatten(1).t().contiguous()


def depthwise_forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dilation: int, turned: bool = False
) -> torch.Tensor:
    """(B, C, H, W) -> the same, in channels_last, into which `x` is copied if it is not.

    Args:
        x: (B, C, H, W).
        weight: (C, 1, K, L).
        bias: (C,) or None.
        dilation: of both axes, in pixels.
        turned: by the kernel turned by half a circle, for the gradient.
    """
    rows = _rows(x)
    batch, height, width, channels = rows.shape
    out = torch.empty_like(rows)
    if out.numel() == 0:
        return out.permute(0, 3, 1, 2)
    tile = _patch(weight.shape[2], weight.shape[3], channels, x.itemsize)
    patches = triton.cdiv(height, tile["BLOCK_H"]) * triton.cdiv(width, tile["BLOCK_W"])
    with _dispatch.device_of(x):
        _depthwise_kernel[(patches, triton.cdiv(channels, tile["BLOCK_C"]), batch)](
            rows,
            _taps(weight),
            None if bias is None else bias.contiguous(),
            out,
            height,
            width,
            channels,
            DILATION=dilation,
            ROWS=weight.shape[2],
            COLS=weight.shape[3],
            TURNED=turned,
            **tile,
            num_warps=_WARPS,
        )
    return out.permute(0, 3, 1, 2)


def depthwise_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, dilation: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of `x`, in channels_last, and of `weight`: sums over strips of pixels, added up in their order."""
    grad_x = depthwise_forward(grad, weight, None, dilation, turned=True)
    rows, above = _rows(x), _rows(grad)
    _, height, width, channels = rows.shape
    kernel_h, kernel_w = weight.shape[2:]
    pixels = rows.numel() // channels
    # A strip's sums take an eighth of its pixels' memory at most.
    strip = max(_STRIP, triton.next_power_of_2(32 * kernel_h * kernel_w))
    strips = triton.cdiv(pixels, strip)
    sums = torch.empty(strips, kernel_h, kernel_w, channels, dtype=torch.float32, device=x.device)
    tile = _group(kernel_w)
    if sums.numel() > 0:
        groups = kernel_h * triton.cdiv(kernel_w, tile["BLOCK_T"])
        with _dispatch.device_of(x):
            _taps_kernel[(groups, triton.cdiv(channels, tile["BLOCK_C"]), strips)](
                rows,
                above,
                sums,
                height,
                width,
                channels,
                pixels,
                strip,
                DILATION=dilation,
                ROWS=kernel_h,
                COLS=kernel_w,
                **tile,
                num_warps=_WARPS,
            )
    return grad_x, sums.sum(0).permute(2, 0, 1).unsqueeze(1).to(weight.dtype)


def gated_pointwise_forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gate: torch.Tensor
) -> torch.Tensor:
    """`gate * pointwise(x)`, (B, O, H, W) in channels_last, into which x (B, I, H, W) and gate are copied if not."""
    rows, factor = _rows(x), _rows(gate)
    inputs, outputs = rows.shape[3], factor.shape[3]
    out = torch.empty_like(factor, dtype=torch.promote_types(x.dtype, gate.dtype))
    if out.numel() == 0:
        return out.permute(0, 3, 1, 2)
    tile = _product(inputs, x.itemsize)
    pixels = rows.numel() // inputs
    with _dispatch.device_of(x):
        _gated_kernel[(triton.cdiv(pixels, tile["BLOCK_P"]), triton.cdiv(outputs, tile["BLOCK_O"]))](
            rows,
            weight.flatten(1).contiguous(),
            None if bias is None else bias.contiguous(),
            factor,
            out,
            pixels,
            inputs,
            outputs,
            PRECISION=_dispatch.dot_precision(),
            **tile,
            num_warps=_WARPS,
        )
    return out.permute(0, 3, 1, 2)
