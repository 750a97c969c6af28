"""Large-kernel attention and depth-wise convolution: their cases, their least work and their compilations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from ....kernels import depthwise_conv, large_kernel_attention, pointwise_conv
from ....kernels.large_kernel_attention import naive, operator
from ..cases import Case, sides, works
from ..compilation import StaticCase
from ..roofline import Work


def cases(image: tuple[int, int], batch: int, compiler: Callable) -> Iterator[Case]:
    """VAN-B2's attention, whole, and the convolutions it is made of; cuDNN runs the definition on a GPU."""
    for stage, dim in enumerate((64, 128, 320, 512), 1):
        shape = (batch, dim, *sides(image, 2 ** (stage + 1)))
        square = (dim, dim, 1, 1)
        yield Case(
            "large_kernel_attention",
            f"VAN-B2 stage {stage}",
            image,
            {
                "x": shape,
                "local": (dim, 1, 5, 5),
                "local_bias": (dim,),
                "dilated": (dim, 1, 7, 7),
                "dilated_bias": (dim,),
                "pointwise": square,
                "pointwise_bias": (dim,),
            },
            sum(operator.depthwise_operations(shape, (dim, 1, side, side)) for side in (5, 7))
            + operator.pointwise_operations(shape, square),
            {
                "triton": partial(large_kernel_attention, backend="triton"),
                "twin": partial(large_kernel_attention, backend="torch"),
                "definition": naive.large_kernel_attention,
                "compiled definition": compiler(naive.large_kernel_attention),
            },
            works(forward, backward, shape),
            {"local": 0.2, "dilated": 1 / 7, "pointwise": dim**-0.5},
        )
        for side, dilation in ((5, 1), (7, 3)):
            definition = partial(naive.depthwise_conv, dilation=dilation)
            yield Case(
                "depthwise_conv",
                f"VAN-B2 stage {stage}, depth-wise {side} x {side}, dilation {dilation}",
                image,
                {"x": shape, "weight": (dim, 1, side, side), "bias": (dim,)},
                operator.depthwise_operations(shape, (dim, 1, side, side)),
                {
                    "triton": partial(depthwise_conv, dilation=dilation, backend="triton"),
                    "twin": partial(depthwise_conv, dilation=dilation, backend="torch"),
                    "definition": definition,
                    "compiled definition": compiler(definition),
                },
                works(depthwise_forward, depthwise_backward, shape, (side, side)),
                {"weight": 1 / side},
            )
        yield Case(
            "pointwise_conv",
            f"VAN-B2 stage {stage}, gated",
            image,
            {"x": shape, "weight": square, "bias": (dim,), "gate": shape},
            operator.pointwise_operations(shape, square),
            {
                "triton": partial(pointwise_conv, backend="triton"),
                "twin": partial(pointwise_conv, backend="torch"),
                "definition": naive.pointwise_conv,
                "compiled definition": compiler(naive.pointwise_conv),
            },
            works(gated_forward, gated_backward, shape),
            {"weight": dim**-0.5},
        )


def depthwise_forward(shape: tuple[int, int, int, int], kernel: tuple[int, int], dtype: torch.dtype) -> Work:
    """Map, taps and bias in, map out; a multiply-add for each tap.

    Args:
        shape: of the map, (B, C, H, W).
        kernel: its sides.
        dtype: of map, taps and bias.
    """
    b, c, h, w = shape
    taps = kernel[0] * kernel[1]
    return Work(bytes=(2 * b * c * h * w + c * (taps + 1)) * dtype.itemsize, flops=2 * b * c * h * w * taps)


def depthwise_backward(shape: tuple[int, int, int, int], kernel: tuple[int, int], dtype: torch.dtype) -> Work:
    """Gradient, map and taps in, gradients of map, taps and bias out: two convolutions. Arguments as of the forward."""
    b, c, h, w = shape
    taps = kernel[0] * kernel[1]
    return Work(bytes=(3 * b * c * h * w + c * (2 * taps + 1)) * dtype.itemsize, flops=4 * b * c * h * w * taps)


def gated_forward(shape: tuple[int, int, int, int], dtype: torch.dtype) -> Work:
    """Map, gate, matrix and bias in, map out: a product of matrices. Arguments as of `depthwise_forward`."""
    b, c, h, w = shape
    return Work(bytes=(3 * b * c * h * w + c * c + c) * dtype.itemsize, flops=2 * b * c * c * h * w)


def gated_backward(shape: tuple[int, int, int, int], dtype: torch.dtype) -> Work:
    """Gradient, map, gate and matrix in, gradients of map, gate, matrix and bias out.

    Three products: the gate's gradient, which is the forward's product again, the map's and the matrix's. Arguments as
    of `depthwise_forward`.
    """
    b, c, h, w = shape
    return Work(bytes=(5 * b * c * h * w + 2 * c * c + c) * dtype.itemsize, flops=6 * b * c * c * h * w)


def forward(shape: tuple[int, int, int, int], dtype: torch.dtype) -> Work:
    """Of VAN's large-kernel attention, 5 x 5 and 7 x 7, as three kernels. Arguments as of `depthwise_forward`."""
    chain = depthwise_forward(shape, (5, 5), dtype) + depthwise_forward(shape, (7, 7), dtype)
    return chain + gated_forward(shape, dtype)


def backward(shape: tuple[int, int, int, int], dtype: torch.dtype) -> Work:
    """Of `forward`. Arguments as of `depthwise_forward`."""
    chain = depthwise_backward(shape, (5, 5), dtype) + depthwise_backward(shape, (7, 7), dtype)
    return chain + gated_backward(shape, dtype)


# Of VAN and MSCAN at 224 x 224 pixels: sides of the kernel, dilation, channels and side of the map. Kernels 21 x 1 are
# those of 1 x 21 with other strides.
_CONVOLUTIONS = (
    (5, 5, 1, 64, 56),
    (5, 5, 1, 512, 7),
    (7, 7, 3, 64, 56),
    (7, 7, 3, 320, 14),
    (7, 7, 3, 512, 7),
    (1, 21, 1, 64, 56),
    (1, 21, 1, 320, 14),
    (1, 21, 1, 512, 7),
    (31, 31, 1, 64, 56),
)
_BATCH = 16
# Of an H100.
_PROCESSORS = 132


def _seen(taps: int, dilation: int, side: int) -> int:
    """Pairs of a pixel and a tap along one axis of a map that lie on it; all of them where the map has an interior."""
    if side > (taps - 1) * dilation:
        return side * taps
    return sum(max(side - abs(i - taps // 2) * dilation, 0) for i in range(taps))


def static_cases() -> list[StaticCase]:
    """Every kernel at the sizes of VAN and MSCAN, and at 31 x 31.

    Elements are products of a tap and a number in the mean over a map's programs, of large maps in the interior; of
    the gated product they are numbers of the result.
    """
    cases: list[StaticCase] = []
    for dtype in ("fp32", "bf16", "fp16"):
        for rows, cols, dilation, channels, side in _CONVOLUTIONS:
            cases += _depthwise_cases(dtype, (rows, cols), dilation, channels, side)
        for channels, side in ((64, 56), (128, 28), (320, 14), (512, 7)):
            cases += _gated_cases(dtype, "ieee", channels, side)
    # Of float32 on tensor cores.
    return [*cases, *_gated_cases("fp32", "tf32", 512, 56), *_gated_cases("fp32", "tf32x3", 512, 56)]


def _depthwise_cases(
    dtype: str, kernel: tuple[int, int], dilation: int, channels: int, side: int
) -> Iterator[StaticCase]:
    from ....kernels.large_kernel_attention import triton

    itemsize = 4 if dtype == "fp32" else 2
    label = f"{kernel[0]} x {kernel[1]}, dilation {dilation}, map {side} x {side}"
    walk = triton._walk((_BATCH, channels, side, side), kernel, dilation)
    across, along = (_seen(taps, dilation, side) for taps in sorted(kernel))
    options: dict[str, Any] = {**walk.constants(), **triton._depthwise_options(walk, itemsize, _PROCESSORS)}
    # Rows of taps that a line's pixels see, in the mean, and the products of a program by one of them.
    rows = round(across / side)
    products = along * _BATCH * options["BLOCK_C"] // triton._blocks(walk, options)[0]
    count = rows * walk.cols // options["TAPS"], rows * products
    types = {"weight": "*fp32", "out": f"*{dtype}"}
    yield _case(
        triton._depthwise_kernel, dtype, f"forward, {label}", options | {"TURNED": False, "added": None}, count, types
    )
    if side == 56:
        options |= {"TURNED": True, "bias": None}
        yield _case(triton._depthwise_kernel, dtype, f"backward, {label}", options | {"added": None}, count, types)
        # As part of routing attention's backward pass.
        yield _case(triton._depthwise_kernel, dtype, f"backward, added, {label}", options, count, types)
    options = {**walk.constants(), **triton._taps_options(walk, itemsize, _PROCESSORS)}
    # The lines of a program, in the mean over the rows of taps, and the products of one of them.
    lines = round(across / walk.rows / options["parts"]) * options["strip"]
    products = along * _BATCH * options["BLOCK_C"] // triton._blocks(walk, options)[0]
    count = lines, lines * products // -(-walk.cols // options["TAPS"])
    yield _case(triton._taps_kernel, dtype, f"weights, {label}", options, count, {"out": "*fp32"})


def _gated_cases(dtype: str, precision: str, channels: int, side: int) -> Iterator[StaticCase]:
    from ....kernels.large_kernel_attention import triton_pointwise

    itemsize, pixels = 4 if dtype == "fp32" else 2, _BATCH * side * side
    for name in ("forward", "backward"):
        backward = name == "backward"
        options: dict[str, Any] = triton_pointwise._gated_options(
            pixels, channels, channels, itemsize, precision, backward, _PROCESSORS
        )
        count = channels // options["BLOCK_I"], options["BLOCK_P"] * options["BLOCK_O"]
        options |= {"PRECISION": precision, "WHOLE": channels % options["BLOCK_I"] == 0}
        if not backward:
            options |= {"grad": None, "inner": None, "sums": None}
        label = f"{name}, {precision}, {channels} channels, map {side} x {side}"
        types = {"weight": f"*{dtype}", "out": f"*{dtype}"}
        yield _case(triton_pointwise._gated_kernel, dtype, label, options, count, types)


def _case(
    kernel: Any, dtype: str, label: str, options: dict[str, Any], count: tuple[int, int], types: dict[str, str]
) -> StaticCase:
    """Of a launch; `count` are steps and elements, `types` those that are not of `dtype`, nor integers."""
    types = dict.fromkeys(("x", "bias", "added", "gate", "grad", "inner"), f"*{dtype}") | {"sums": "*fp32"} | types
    constants = {name: options[name] for name in kernel.arg_names if name.isupper() or options.get(name, 0) is None}
    return StaticCase(
        "large_kernel_attention",
        kernel,
        dtype,
        label,
        {name: types.get(name, "i32") for name in kernel.arg_names if name not in constants},
        constants,
        options["num_warps"],
        options["num_stages"],
        tuple(name for name in kernel.arg_names if name.endswith(("channels", "_image", "_line", "_column", "puts"))),
        *count,
        options.get("maxnreg"),
    )
