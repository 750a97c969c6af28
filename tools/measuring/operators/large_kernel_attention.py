"""Large-kernel attention and depth-wise convolution: their cases, their least work and their compilations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

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


def static_cases() -> list[StaticCase]:
    """Every kernel at the sizes of VAN and MSCAN, and at 31 x 31."""
    from ....kernels.large_kernel_attention import triton

    cases = []
    integers = ("height", "width", "channels", "pixels", "strip", "inputs", "outputs")
    kernels = {(5, 5): 1, (7, 7): 3, (1, 21): 1, (21, 1): 1, (31, 31): 1}
    for dtype, itemsize in (("fp32", 4), ("bf16", 2), ("fp16", 2)):
        types = dict.fromkeys(("x", "weight", "bias", "gate", "grad", "out"), f"*{dtype}")
        types |= dict.fromkeys(integers, "i32")

        def case(kernel, label, constants, dtype=dtype, **replaced):
            names = {name: {**types, **replaced}[name] for name in kernel.arg_names if name not in constants}  # noqa: B023
            cases.append(
                StaticCase(
                    "large_kernel_attention",
                    kernel,
                    dtype,
                    label,
                    names,
                    constants,
                    num_warps=triton._WARPS,
                    multiples=("channels", "inputs", "outputs"),
                )
            )

        for (rows, cols), dilation in kernels.items():
            taps = dict(DILATION=dilation, ROWS=rows, COLS=cols)
            patch = triton._patch(rows, cols, 64, itemsize)
            label = f"{rows} x {cols}, dilation {dilation}"
            case(triton._depthwise_kernel, f"forward, {label}", {**taps, "TURNED": False, **patch})
            case(triton._depthwise_kernel, f"backward, {label}", {**taps, "TURNED": True, "bias": None, **patch})
            case(triton._taps_kernel, f"weights, {label}", {**taps, **triton._group(cols)}, out="*fp32")
        case(triton._gated_kernel, "gated, 64 channels", {"PRECISION": "ieee", **triton._product(64, itemsize)})
    return cases
