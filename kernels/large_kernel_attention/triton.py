"""Triton kernels of depth-wise convolution on maps in channels_last.

A thread has runs of pixels along a line, as far apart as the taps are: neighbours in a run see mostly the same pixels,
which are loaded once, and the sums stay in registers.
"""

# Tuples of tensors grow within the kernels.
# mypy: disable-error-code="assignment, var-annotated"

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .. import _dispatch

# Of these no multiple is worth a compilation of its own.
_COUNTS = ("batch", "lines", "columns", "runs", "blocks", "bands", "strip", "parts")


@triton.jit(do_not_specialize=_COUNTS)
def _depthwise_kernel(
    x,
    weight,
    bias,
    added,
    out,
    batch,
    lines,
    columns,
    channels,
    x_image,
    x_line,
    x_column,
    out_image,
    out_line,
    out_column,
    runs,
    blocks,
    bands,
    strip,
    DILATION: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    TURNED: tl.constexpr,
    TAPS: tl.constexpr,
    RUN: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Taps (ROWS, COLS, C) over maps (B, lines, columns, C); TURNED by half a circle they give the map's gradient.

    `added`, None or a map that lies as the result does or is the result, goes into it. A program has BLOCK_R runs of
    all images' same lines, up to `strip` lines that are DILATION apart.
    """
    GROUPS: tl.constexpr = COLS // TAPS
    band = tl.program_id(0) % bands
    block = tl.program_id(0) // bands
    first = band // DILATION * (strip * DILATION) + band % DILATION
    run = block % blocks * BLOCK_R + tl.arange(0, BLOCK_R)
    place = run % runs
    column = place // DILATION * (RUN * DILATION) + place % DILATION
    channel = block // blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    there = channel < channels
    tile = (run // runs < batch)[:, None] & there[None, :]
    image = (run // runs).to(tl.int64)
    at = (image * x_image + column.to(tl.int64) * x_column)[:, None] + channel[None, :]
    step = x_column * tl.full((), DILATION, tl.int64)
    below = x_line * tl.full((), 1, tl.int64)
    out_at = (image * out_image + column.to(tl.int64) * out_column)[:, None] + channel[None, :]
    out_step = out_column * tl.full((), DILATION, tl.int64)
    out_below = out_line * tl.full((), 1, tl.int64)
    tap_stride = -channels if TURNED else channels
    start = tl.zeros((BLOCK_C,), tl.float32)
    if bias is not None:
        start = tl.load(bias + channel, mask=there, other=0.0).to(tl.float32)
    for line in range(first, tl.minimum(first + strip * DILATION, lines), DILATION):
        totals = ()
        for _ in tl.static_range(RUN):
            totals += (tl.zeros((BLOCK_R, BLOCK_C), tl.float32) + start[None, :],)
        # Of the taps above and below the map nothing is loaded.
        low = tl.maximum(ROWS // 2 - line // DILATION, 0)
        high = tl.minimum(ROWS // 2 + (lines - 1 - line) // DILATION + 1, ROWS)
        for group in range(low * GROUPS, high * GROUPS):
            i = group // GROUPS
            tap = group % GROUPS * TAPS
            source = x + (line + (i - ROWS // 2) * DILATION) * below + (tap - COLS // 2) * step
            pixels = ()
            for k in tl.static_range(RUN + TAPS - 1):
                seen = column + (tap + k - COLS // 2) * DILATION
                mask = ((seen >= 0) & (seen < columns))[:, None] & tile
                pixels += (tl.load(source + k * step + at, mask=mask, other=0.0).to(tl.float32),)
            own = i * COLS + tap
            own = weight + (ROWS * COLS - 1 - own if TURNED else own) * channels + channel
            factors = ()
            for j in tl.static_range(TAPS):
                factors += (tl.load(own + j * tap_stride, mask=there, other=0.0)[None, :],)
            sums = ()
            for k in tl.static_range(RUN):
                total = totals[k]
                for j in tl.static_range(TAPS):
                    total += factors[j] * pixels[k + j]
                sums += (total,)
            totals = sums
        for k in tl.static_range(RUN):
            target = line * out_below + k * out_step + out_at
            mask = (column + k * DILATION < columns)[:, None] & tile
            total = totals[k]
            if added is not None:
                total += tl.load(added + target, mask=mask, other=0.0).to(tl.float32)
            tl.store(out + target, total.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=_COUNTS)
def _taps_kernel(
    x,
    grad,
    out,
    batch,
    lines,
    columns,
    channels,
    x_image,
    x_line,
    x_column,
    grad_image,
    grad_line,
    grad_column,
    runs,
    blocks,
    strip,
    parts,
    DILATION: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    TAPS: tl.constexpr,
    RUN: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Gradient of TAPS taps of one row over a strip of pixels, (strips, ROWS, COLS, C) in float32.

    A strip is one of `parts` parts of the lines, of `strip` blocks of BLOCK_R runs.
    """
    GROUPS: tl.constexpr = (COLS + TAPS - 1) // TAPS
    i = tl.program_id(0) // GROUPS
    tap = tl.program_id(0) % GROUPS * TAPS
    down = (i - ROWS // 2) * DILATION
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    there = channel < channels
    part = tl.program_id(2) % parts
    begin = tl.program_id(2) // parts * strip
    top = tl.maximum(-down, 0)
    seen_lines = lines - tl.abs(down)
    step = x_column * tl.full((), DILATION, tl.int64)
    below = x_line * tl.full((), 1, tl.int64)
    grad_step = grad_column * tl.full((), DILATION, tl.int64)
    grad_below = grad_line * tl.full((), 1, tl.int64)
    totals = ()
    for _ in tl.static_range(TAPS):
        totals += (tl.zeros((BLOCK_R, BLOCK_C), tl.float32),)
    for block in range(begin, tl.minimum(begin + strip, blocks)):
        run = block * BLOCK_R + tl.arange(0, BLOCK_R)
        tile = (run // runs < batch)[:, None] & there[None, :]
        phase = run % runs % DILATION
        own = run % runs // DILATION * (RUN * DILATION) + phase
        # A run that would leave the map begins before, at pixels of the run before it, which do not count again: beside
        # a pixel that is not there, one that is infinite would spoil sums of which it is no part.
        column = tl.minimum(own, phase + ((columns - 1 - phase) // DILATION + 1 - RUN) * DILATION)
        image = (run // runs).to(tl.int64)
        at = (image * x_image + column.to(tl.int64) * x_column)[:, None] + channel[None, :]
        grad_at = (image * grad_image + column.to(tl.int64) * grad_column)[:, None] + channel[None, :]
        for line in range(top + seen_lines * part // parts, top + seen_lines * (part + 1) // parts):
            source = grad + line * grad_below
            above = ()
            for k in tl.static_range(RUN):
                mask = (column + k * DILATION >= own)[:, None] & tile
                above += (tl.load(source + k * grad_step + grad_at, mask=mask, other=0.0).to(tl.float32),)
            source = x + (line + down) * below
            pixels = ()
            for k in tl.static_range(RUN + TAPS - 1):
                seen = column + (tap + k - COLS // 2) * DILATION
                mask = ((seen >= 0) & (seen < columns))[:, None] & tile
                pixel = tl.load(source + (tap + k - COLS // 2) * step + at, mask=mask, other=0.0)
                pixels += (pixel.to(tl.float32),)
            sums = ()
            for j in tl.static_range(TAPS):
                total = totals[j]
                for k in tl.static_range(RUN):
                    total += above[k] * pixels[k + j]
                sums += (total,)
            totals = sums
    target = out + ((tl.program_id(2).to(tl.int64) * ROWS + i) * COLS + tap) * channels
    for j in tl.static_range(TAPS):
        tl.store(target + j * channels + channel, tl.sum(totals[j], axis=0), mask=there & (tap + j < COLS))


class _Walk(NamedTuple):
    """How kernels walk over maps: runs of pixels lie along the columns of `lines` lines, which are those of the map, or
    its columns where the kernel is higher than wide. Taps that see nothing of any map are left out.
    """

    batch: int
    lines: int
    columns: int
    channels: int
    rows: int
    cols: int
    dilation: int
    transposed: bool

    def sizes(self) -> dict[str, int]:
        """Arguments of both kernels."""
        return dict(batch=self.batch, lines=self.lines, columns=self.columns, channels=self.channels)

    def strides(self, name: str, rows: torch.Tensor) -> dict[str, int]:
        """Arguments of the kernels that take the map (B, H, W, C) by this name."""
        image, line, column, _ = rows.stride()
        if self.transposed:
            line, column = column, line
        return {f"{name}_image": image, f"{name}_line": line, f"{name}_column": column}

    def constants(self) -> dict[str, int]:
        """Constants of both kernels."""
        return dict(DILATION=self.dilation, ROWS=self.rows, COLS=self.cols)


def _walk(shape: Sequence[int], kernel: Sequence[int], dilation: int) -> _Walk:
    """Of maps (B, C, H, W) and a kernel (K, L)."""
    batch, channels, height, width = shape
    rows, cols = (min(k, (size - 1) // dilation * 2 + 1) for k, size in zip(kernel, (height, width), strict=True))
    if rows > cols:
        return _Walk(batch, width, height, channels, cols, rows, dilation, True)
    return _Walk(batch, height, width, channels, rows, cols, dilation, False)


def _runs(length: int, run: int, dilation: int) -> int:
    """How many runs of pixels, `dilation` apart, cover a line."""
    spans = triton.cdiv(length, run * dilation)
    return (spans - 1) * dilation + min(length - (spans - 1) * run * dilation, dilation)


# A load with its mask and conversions, in multiply-adds: from instructions of the compiled kernels.
_LOAD = 2.5
_WARPS = 4


def _tile(channels: int, itemsize: int, width: int = 16) -> dict[str, int]:
    """Runs and channels of a program of which each thread loads `width` bytes of a pixel.

    Compilers that choose the registers of a thread themselves spill some, to have more threads.
    """
    sizes = [size for size in (64, 32, 16) if size * itemsize <= 128]
    block = min(sizes, key=lambda size: (-channels % size, -size))
    runs = _WARPS * 32 * width // (itemsize * block)
    return dict(BLOCK_R=runs, BLOCK_C=block, num_warps=_WARPS, num_stages=1, maxnreg=255)


def _blocks(walk: _Walk, options: dict[str, int]) -> tuple[int, int]:
    """Of runs and of channels."""
    runs = walk.batch * _runs(walk.columns, options["RUN"], walk.dilation)
    return triton.cdiv(runs, options["BLOCK_R"]), triton.cdiv(walk.channels, options["BLOCK_C"])


def _depthwise_options(walk: _Walk, itemsize: int, processors: int) -> dict[str, int]:
    """Constants and options of `_depthwise_kernel`, and how many lines a program has at most, `strip`.

    Of long runs a thread loads each pixel for many taps; of short ones there are more threads.
    """
    taps = max((taps for taps in range(3, 12) if walk.cols % taps == 0), default=walk.cols)
    # Of long rows of taps that cannot be divided, 16 bytes of each pixel are more than the registers of a thread.
    tile = _tile(walk.channels, itemsize, 16 if taps <= 13 else 8)

    def cost(run: int) -> float:
        programs = walk.lines * math.prod(_blocks(walk, {"RUN": run, **tile}))
        # Two programs fill a processor.
        return (run * taps + _LOAD * (run + taps - 1)) * max(programs / (2 * processors), 1)

    options = {"TAPS": taps, "RUN": min(range(1, 9 if taps <= 11 else 4), key=cost), **tile}
    programs = walk.lines * math.prod(_blocks(walk, options))
    # Lines of one program share what they load, in the cache.
    return {**options, "strip": min(max(programs // (4 * processors), 1), 4)}


def _taps_options(walk: _Walk, itemsize: int, processors: int) -> dict[str, int]:
    """Constants and options of `_taps_kernel`, and a program's share: blocks of runs, `strip`, parts of lines, `parts`.

    The more strips there are, the fuller is the card, but a program of few lines adds up less than it takes to begin
    and to end: eight programs of a processor have eight lines at least, two of them any number.
    """
    taps = triton.cdiv(walk.cols, triton.cdiv(walk.cols, 8))
    tile = _tile(walk.channels, itemsize)

    def cost(run: int) -> float:
        return _blocks(walk, {"RUN": run, **tile})[0] * (run * taps + _LOAD * (2 * run + taps - 1))

    # What a thread holds of taps and pixels grows with both; eight of each are more than its registers.
    longest = min(max(walk.columns // walk.dilation, 1), 8, 15 - taps)
    options = {"TAPS": taps, "RUN": min(range(1, longest + 1), key=cost), **tile}
    blocks, others = _blocks(walk, options)
    others *= walk.rows * triton.cdiv(walk.cols, taps)
    least = max(blocks * walk.lines // 8, triton.cdiv(2 * processors, others))
    strips = min(triton.cdiv(8 * processors, others), least)
    parts = min(max(strips // blocks, 1), walk.lines)
    return {**options, "strip": triton.cdiv(blocks, strips), "parts": parts}


def _processors(x: torch.Tensor) -> int:
    """Of the GPU; one in the interpreter, which so has few programs."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1


def _rows(x: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) as (B, H, W, C) with a pixel's channels in a row: a view where they are, as in channels_last."""
    rows = x.permute(0, 2, 3, 1)
    return rows if rows.stride(3) == 1 else rows.contiguous()


def _inner(weight: torch.Tensor, walk: _Walk) -> torch.Tensor:
    """The taps (C, 1, K, L) that `walk` has, a view (ROWS, COLS, C)."""
    taps = weight.squeeze(1).permute(2, 1, 0) if walk.transposed else weight.squeeze(1).permute(1, 2, 0)
    above, left = (taps.shape[0] - walk.rows) // 2, (taps.shape[1] - walk.cols) // 2
    return taps[above : above + walk.rows, left : left + walk.cols]


def depthwise_forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    dilation: int,
    turned: bool = False,
    added: torch.Tensor | None = None,
    total: torch.Tensor | None = None,
) -> torch.Tensor:
    """(B, C, H, W) -> the same, in channels_last, into which `x` is copied if a pixel's channels are not in a row.

    Args:
        x: (B, C, H, W).
        weight: (C, 1, K, L).
        bias: (C,) or None.
        dilation: of both axes, in pixels.
        turned: by the kernel turned by half a circle, for the gradient.
        added: another map to add, contiguous in channels_last; or None.
        total: a map to which the result is added, and which is returned: its channels are in a row. None for a new one.
    """
    rows = _rows(x)
    if total is not None:
        out = added = total.permute(0, 2, 3, 1)
    else:
        out = torch.empty(rows.shape, dtype=x.dtype, device=x.device)
        added = None if added is None else added.permute(0, 2, 3, 1)
    if out.numel() == 0:
        return out.permute(0, 3, 1, 2)
    walk = _walk(x.shape, weight.shape[2:], dilation)
    options = _depthwise_options(walk, x.itemsize, _processors(x))
    blocks, others = _blocks(walk, options)
    bands = _runs(walk.lines, options["strip"], dilation)
    taps = torch.empty(walk.rows, walk.cols, walk.channels, dtype=torch.float32, device=x.device)
    taps.copy_(_inner(weight, walk))
    with _dispatch.device_of(x):
        _depthwise_kernel[(bands * blocks * others,)](
            rows,
            taps,
            None if bias is None else bias.contiguous(),
            added,
            out,
            **walk.sizes(),
            **walk.strides("x", rows),
            **walk.strides("out", out),
            runs=_runs(walk.columns, options["RUN"], dilation),
            blocks=blocks,
            bands=bands,
            **walk.constants(),
            TURNED=turned,
            **options,
        )
    return out.permute(0, 3, 1, 2)


def depthwise_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, dilation: int, total: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of `x`, in channels_last, and of `weight`: sums over strips of pixels, added up in their order.

    The gradient of `x` is added to `total` instead, if that is given: a map whose channels are in a row.
    """
    grad_x = depthwise_forward(grad, weight, None, dilation, turned=True, total=total)
    grad_weight = torch.zeros_like(weight, memory_format=torch.contiguous_format)
    if x.numel() == 0:
        return grad_x, grad_weight
    walk = _walk(x.shape, weight.shape[2:], dilation)
    options = _taps_options(walk, x.itemsize, _processors(x))
    blocks, others = _blocks(walk, options)
    strips = triton.cdiv(blocks, options["strip"]) * options["parts"]
    sums = torch.empty(strips, walk.rows, walk.cols, walk.channels, dtype=torch.float32, device=x.device)
    groups = walk.rows * triton.cdiv(walk.cols, options["TAPS"])
    rows, above = _rows(x), _rows(grad)
    with _dispatch.device_of(x):
        _taps_kernel[(groups, others, strips)](
            rows,
            above,
            sums,
            **walk.sizes(),
            **walk.strides("x", rows),
            **walk.strides("grad", above),
            runs=_runs(walk.columns, options["RUN"], dilation),
            blocks=blocks,
            **walk.constants(),
            **options,
        )
    _inner(grad_weight, walk).copy_(sums.sum(0))
    return grad_x, grad_weight
