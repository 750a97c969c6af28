"""Neighborhood attention: its cases, its least work and its compilations."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from ....kernels import neighborhood_attention
from ....kernels.neighborhood_attention import naive
from ....kernels.neighborhood_attention.operator import operations
from ..cases import Case, block_mask, flex, sides, works
from ..compilation import StaticCase
from ..roofline import Work


def cases(image: tuple[int, int], batch: int, compiler: Callable) -> Iterator[Case]:
    """NAT-Tiny: head dimension 32, kernel 7; DiNAT-Tiny's largest dilation of the first stages."""
    for stage in (1, 2, 3):
        dim, (height, width) = 32 * 2**stage, sides(image, 2 ** (stage + 1))
        for dilation in sorted({1, min(height, width) // 7}):
            shape, heads = (batch, height, width, dim), dim // 32
            fixed = dict(num_heads=heads, kernel_size=7, dilation=dilation, scale=32**-0.5)

            def public(q, k, v, table, backend, fixed=fixed):
                return neighborhood_attention(q, k, v, bias_table=table, backend=backend, **fixed)

            def definition(q, k, v, table, fixed=fixed):
                return naive.neighborhood_attention(q, k, v, bias_table=table, **fixed)

            forms = {
                "triton": partial(public, backend="triton"),
                "twin": partial(public, backend="torch"),
                "definition": definition,
                "compiled definition": compiler(definition),
            }
            count = (shape, heads, 7, dilation)
            yield Case(
                "neighborhood_attention",
                f"NAT-T stage {stage}, dilation {dilation}",
                image,
                dict.fromkeys(("q", "k", "v"), shape) | {"table": (heads, 13, 13)},
                operations(shape, 7),
                forms | _natten(fixed),
                works(forward, backward, *count),
                {},
                prepared={"flex": partial(_flex_neighborhood, **fixed, compiler=compiler)},
            )


def _natten(fixed: dict[str, Any]) -> dict[str, Callable[..., torch.Tensor]]:
    """NATTEN's operator, which has no bias: compared in time, without the table's gradient."""
    if importlib.util.find_spec("natten") is None:
        return {}
    from natten.functional import na2d

    def form(q, k, v, table):
        q, k, v = (x.unflatten(3, (fixed["num_heads"], -1)) for x in (q, k, v))
        return na2d(q, k, v, kernel_size=7, dilation=fixed["dilation"], scale=fixed["scale"]).flatten(3)

    return {"natten": form}


def _flex_neighborhood(q, k, v, table, num_heads, kernel_size, dilation, scale, compiler):
    """A block mask of the pixels' windows, and their bias, from indices."""
    _, height, width, _ = q.shape
    rows, cols = (naive.window(side, kernel_size, dilation, q.device)[0] for side in (height, width))
    first, last = (rows[:, 0], cols[:, 0]), (rows[:, -1], cols[:, -1])

    def sees(b, h, query, key):
        y, x, i, j = query // width, query % width, key // width, key % width
        near = (i >= first[0][y]) & (i <= last[0][y]) & (j >= first[1][x]) & (j <= last[1][x])
        return near & ((i - y) % dilation == 0) & ((j - x) % dilation == 0)

    mask = block_mask(sees, None, height * width, q.device, compiler)
    attend = flex(compiler)

    def form(q, k, v, table):
        def add(score, b, h, query, key):
            y, x, i, j = query // width, query % width, key // width, key % width
            row, column = ((to - at) // dilation + kernel_size - 1 for at, to in ((y, i), (x, j)))
            return score + table[h, row.clamp(0, 2 * kernel_size - 2), column.clamp(0, 2 * kernel_size - 2)]

        q, k, v = (x.flatten(1, 2).unflatten(2, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        out = attend(q, k, v, score_mod=add, block_mask=mask, scale=scale)
        return out.transpose(1, 2).flatten(2).unflatten(1, (height, width))

    return form


def _seen(size: int, kernel_size: int, dilation: int) -> int:
    """Pairs of query and key along an axis: a window, or all of a shorter residue class."""
    lengths = [(size - 1 - residue) // dilation + 1 for residue in range(min(dilation, size))]
    return sum(length * min(length, kernel_size) for length in lengths)


def _attention(
    shape: tuple[int, int, int, int],
    num_heads: int,
    kernel_size: int,
    dilation: int,
    dtype: torch.dtype,
    maps: int,
    tables: int,
    products: int,
) -> Work:
    """Moves so many maps and tables and the log-sum-exp, and multiplies all queries with their keys so many times."""
    b, height, width, c = shape
    pairs = b * _seen(height, kernel_size, dilation) * _seen(width, kernel_size, dilation)
    table = num_heads * (2 * kernel_size - 1) ** 2
    return Work(
        bytes=(maps * b * height * width * c + tables * table) * dtype.itemsize + b * num_heads * height * width * 4,
        flops=2 * products * pairs * c,
    )


def forward(
    shape: tuple[int, int, int, int], num_heads: int, kernel_size: int, dilation: int, dtype: torch.dtype
) -> Work:
    """q, k, v and the bias table in, the result out; scores and result are products.

    Args:
        shape: of q, (B, H, W, C).
        num_heads: divides C.
        kernel_size: odd, 3 to 15.
        dilation: at least 1.
        dtype: of q and of the table.
    """
    return _attention(shape, num_heads, kernel_size, dilation, dtype, maps=4, tables=1, products=2)


def backward(
    shape: tuple[int, int, int, int], num_heads: int, kernel_size: int, dilation: int, dtype: torch.dtype
) -> Work:
    """q, k, v, the result, its gradient and the bias table in, four gradients out.

    Five products: the scores again, the gradients of the weights, and those of v, q and k. Arguments as of `forward`.
    """
    return _attention(shape, num_heads, kernel_size, dilation, dtype, maps=8, tables=2, products=5)


def static_cases() -> list[StaticCase]:
    """Of every kernel and dtype, with the bias, at NAT's kernel size; the bias table's gradient at larger ones too."""
    from ....kernels.neighborhood_attention import triton

    cases = []
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        for head_dim in (16, 32, 64, 128):
            launch = triton._tiles(dtype, head_dim)
            for kernel in (triton._forward_kernel, triton._grad_query_kernel, triton._grad_key_value_kernel):
                constants = triton._constants(launch, 7, head_dim, has_bias=True)
                cases.append(_case(kernel, name, f"head_dim {head_dim}", launch, constants))
            for kernel_size in (7, 15):
                launch = triton._stretches(dtype, head_dim, kernel_size)
                constants = triton._stretch_constants(launch, kernel_size, head_dim)
                label = f"head_dim {head_dim}, kernel_size {kernel_size}"
                cases.append(_case(triton._grad_bias_kernel, name, label, launch, constants))
    return cases


def _case(kernel: Any, dtype: str, label: str, launch: Any, constants: dict[str, object]) -> StaticCase:
    from ....kernels.neighborhood_attention import triton

    types = {"scale": "fp32", "lse": "*fp32", "delta": "*fp32", "partial": "*fp32"}
    types |= dict.fromkeys((*triton._SIZES, "dilation"), "i32")
    strides = tuple(f"{tensor}_{axis}" for tensor in "gqkv" for axis in "byx")
    types |= dict.fromkeys(strides, "i32")
    signature = {name: types.get(name, f"*{dtype}") for name in kernel.arg_names if name not in constants}
    return StaticCase(
        "neighborhood_attention", kernel, dtype, label, signature, constants, launch.num_warps, launch.num_stages,
        tuple(name for name in strides if name in signature),
    )  # fmt: skip
