"""Neighborhood attention: its cases, its least work and its compilations."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from ....kernels import _dispatch, neighborhood_attention
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
    from ....kernels.neighborhood_attention import triton, triton_backward

    walks = (
        (triton._forward_kernel, triton._forward_options, False),
        (triton_backward._grad_query_kernel, triton_backward._grad_query_options, False),
        (triton_backward._grad_key_value_kernel, triton_backward._grad_key_value_options, True),
    )
    cases = []
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        for head_dim in (16, 32, 64, 128):
            given = dtype, head_dim, 7, _dispatch.dot_precision()
            for kernel, options, of_keys in walks:
                constants = triton.constants(options(*given), 7, head_dim, of_keys)
                # A tile in the midst of the map, and the rectangle that it sees or that sees it.
                height, width = constants["TILE_H"], constants["TILE_W"]
                steps = -(-(height + 6) * (width + 6) // constants["BLOCK_N"])
                count = (steps, height * width * 7**2)
                for wide in (False, True) if (name, head_dim) == ("bf16", 32) else (False,):
                    label = f"head_dim {head_dim}{', offsets of 64 bits' if wide else ''}"
                    cases.append(_case(kernel, name, label, constants | {"WIDE": wide}, *count))
            for kernel_size in (7, 15):
                chosen = triton_backward._grad_bias_options(dtype, head_dim, kernel_size, given[3])
                constants = triton_backward._bias_constants(chosen, kernel_size, head_dim)
                label = f"head_dim {head_dim}, kernel_size {kernel_size}"
                # One stretch of 56 rows, NAT's largest map.
                count = (56, 56 * constants["TILE_W"] * kernel_size)
                cases.append(_case(triton_backward._grad_bias_kernel, name, label, constants | {"WIDE": False}, *count))
        # The table does not depend on the channels.
        for kernel, options, of_keys in walks:
            constants = triton.constants(options(dtype, 32, 7, _dispatch.dot_precision()), 7, 32, of_keys)
            extra: dict[str, Any] = {"OF_KEYS": of_keys, "HAS_BIAS": True}
            extra |= triton._table_options(constants["TILE_H"] * constants["TILE_W"], constants["BLOCK_N"])
            cases.append(_case(triton._table_kernel, name, f"for {kernel.__name__}", constants | extra, 0, 0))
    return cases


def _case(kernel: Any, dtype: str, label: str, constants: dict[str, Any], steps: int, elements: int) -> StaticCase:
    from ....kernels.neighborhood_attention import triton

    types = {"scale": "fp32"} | dict.fromkeys(("table", "lse", "delta", "partial"), "*fp32")
    types |= dict.fromkeys((*triton.SIZES, "dilation", "classes_y", "classes_x"), "i32")
    strides = tuple(f"{tensor}_{axis}" for tensor in "gqkvd" for axis in "byx")
    types |= dict.fromkeys(strides, "i32")
    resources = constants["num_warps"], constants["num_stages"]
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {name: types.get(name, f"*{dtype}") for name in kernel.arg_names if name not in constants}
    return StaticCase(
        "neighborhood_attention", kernel, dtype, label, signature, constants, *resources,
        tuple(name for name in strides if name in signature), steps, elements,
    )  # fmt: skip
