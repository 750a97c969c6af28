"""Triton's kernel of gated point-wise convolution on maps in channels_last: a matrix product, gated in registers."""

import torch
import triton
import triton.language as tl

from .. import _dispatch
from .triton import _processors, _rows


@triton.jit(do_not_specialize=("pixels", "blocks"))
def _gated_kernel(
    x,
    weight,
    bias,
    gate,
    out,
    grad,
    inner,
    sums,
    pixels,
    inputs,
    outputs,
    blocks,
    PRECISION: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """A gate (N, O) * (x (N, I) @ weight (O, I) transposed + bias): the product leaves the registers gated.

    Or, with the gradient of that, `grad`, the gate's own gradient as `out`; and the product's, grad * gate, as `inner`,
    of which BLOCK_P pixels each are added up in `sums` (N / BLOCK_P, O), float32. WHOLE says that BLOCK_I divides I.
    """
    # Programs of the same pixels follow each other: they share x in the cache.
    block = tl.program_id(0) // blocks
    pixel = block.to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    output = tl.program_id(0) % blocks * BLOCK_O + tl.arange(0, BLOCK_O)
    valid = pixel < pixels
    there = output < outputs
    channel = tl.arange(0, BLOCK_I)
    x_at = x + (pixel * inputs)[:, None] + channel[None, :]
    weight_at = weight + (output * inputs)[None, :] + channel[:, None]
    total = tl.zeros((BLOCK_P, BLOCK_O), tl.float32)
    for start in range(0, inputs, BLOCK_I):
        given = tl.full((BLOCK_I,), True, tl.int1) if WHOLE else start + channel < inputs
        a = tl.load(x_at, mask=valid[:, None] & given[None, :], other=0.0)
        b = tl.load(weight_at, mask=there[None, :] & given[:, None], other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
        x_at += BLOCK_I
        weight_at += BLOCK_I
    if bias is not None:
        total += tl.load(bias + output, mask=there, other=0.0).to(tl.float32)[None, :]
    at = (pixel * outputs)[:, None] + output[None, :]
    tile = valid[:, None] & there[None, :]
    factor = tl.load(gate + at, mask=tile, other=0.0).to(tl.float32)
    if grad is not None:
        above = tl.load(grad + at, mask=tile, other=0.0).to(tl.float32)
        factor *= above
        tl.store(inner + at, factor.to(inner.dtype.element_ty), mask=tile)
        if sums is not None:
            tl.store(sums + block * outputs + output, tl.sum(factor, axis=0), mask=there)
        factor = above
    tl.store(out + at, (total * factor).to(out.dtype.element_ty), mask=tile)


def _gated_options(
    pixels: int, inputs: int, outputs: int, itemsize: int, precision: str, backward: bool, processors: int
) -> dict[str, int]:
    """Constants and options of `_gated_kernel`: a large tile, if there are so many of them that the card is full."""
    high, wide, deep, stages = 64, 64, 64, 2
    if itemsize == 4:
        deep, stages = (16, 2) if precision == "ieee" else (32, 3)
    elif not backward and triton.cdiv(pixels, 128) * triton.cdiv(outputs, 64) >= 2 * processors:
        high, stages = 128, 3
    wide = min(wide, max(triton.next_power_of_2(outputs), 16))
    while deep > 16 and inputs % deep != 0:
        deep //= 2
    if 2 * triton.cdiv(pixels, high) * triton.cdiv(outputs, wide) < processors:
        high = 32
    return dict(BLOCK_P=high, BLOCK_I=deep, BLOCK_O=wide, num_warps=4, num_stages=stages, maxnreg=255)


def _gated(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    gate: torch.Tensor,
    out: torch.Tensor,
    grad: torch.Tensor | None = None,
    inner: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Fills `out`, and with `grad` also `inner`; gives the sums of `inner` that a bias needs, (blocks, O), float32.

    The maps are (B, H, W, channels), contiguous.
    """
    inputs, outputs = x.shape[3], gate.shape[3]
    pixels, precision = x.numel() // inputs, _dispatch.dot_precision()
    backward = grad is not None
    options = _gated_options(pixels, inputs, outputs, x.itemsize, precision, backward, _processors(x))
    high, wide = triton.cdiv(pixels, options["BLOCK_P"]), triton.cdiv(outputs, options["BLOCK_O"])
    sums = None
    if backward and bias is not None:
        sums = torch.empty(high, outputs, dtype=torch.float32, device=x.device)
    with _dispatch.device_of(x):
        _gated_kernel[(high * wide,)](
            x,
            weight.flatten(1).contiguous(),
            None if bias is None else bias.contiguous(),
            gate,
            out,
            grad,
            inner,
            sums,
            pixels,
            inputs,
            outputs,
            wide,
            PRECISION=precision,
            WHOLE=inputs % options["BLOCK_I"] == 0,
            **options,
        )
    return sums


def gated_pointwise_forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gate: torch.Tensor
) -> torch.Tensor:
    """`gate * pointwise(x)`, (B, O, H, W) in channels_last, into which x (B, I, H, W) and gate are copied if not."""
    factor = _rows(gate).contiguous()
    out = torch.empty_like(factor, dtype=torch.promote_types(x.dtype, gate.dtype))
    if out.numel() > 0:
        _gated(_rows(x).contiguous(), weight, bias, factor, out)
    return out.permute(0, 3, 1, 2)


def gated_pointwise_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gate: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of the ungated product, of the gate, both in channels_last, and of the bias, of no number without it.

    The ungated product is not kept: the gate's gradient computes it again.
    """
    factor = _rows(gate).contiguous()
    grad_gate, inner = torch.empty_like(factor), torch.empty_like(factor, dtype=x.dtype)
    sums = None
    if factor.numel() > 0:
        sums = _gated(_rows(x).contiguous(), weight, bias, factor, grad_gate, _rows(grad).contiguous(), inner)
    if bias is None:
        grad_bias = weight.new_empty(0)
    else:
        grad_bias = torch.zeros_like(bias) if sums is None else sums.sum(0).to(bias.dtype)
    return inner.permute(0, 3, 1, 2), grad_gate.permute(0, 3, 1, 2), grad_bias
