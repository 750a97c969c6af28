"""Window attention: its cases, its least work and its compilations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from ....kernels import window_attention
from ....kernels.window_attention import naive
from ....kernels.window_attention.operator import operations
from ..cases import Case, flex, multiple, sides, works
from ..compilation import StaticCase
from ..roofline import Work


def cases(image: tuple[int, int], batch: int, compiler: Callable) -> Iterator[Case]:
    """HAT-S and Swin-T.

    HAT-S: 6 heads of 24 channels, windows of 16, on maps of the image's own size; plain, shifted, overlapping. Swin-T:
    heads of 32 channels, windows of 7; shifted as every other block.
    """
    window = 16
    side = (multiple(image[0], window), multiple(image[1], window))
    for name, shift, overlap in (("window", 0, 0), ("shifted", 8, 0), ("overlapping", 0, 8)):
        yield _measured(f"HAT-S {name}", image, (batch, *side, 144), 6, window, shift, overlap, compiler)
    for stage in (1, 2, 3):
        height, width = (multiple(side, 7) for side in sides(image, 2 ** (stage + 1)))
        dim = 96 * 2 ** (stage - 1)
        yield _measured(f"Swin-T stage {stage}", image, (batch, height, width, dim), dim // 32, 7, 3, 0, compiler)


def _measured(
    setting: str,
    image: tuple[int, int],
    shape: tuple[int, int, int, int],
    heads: int,
    window: int,
    shift: int,
    overlap: int,
    compiler: Callable,
) -> Case:
    scale = (shape[3] // heads) ** -0.5
    fixed = dict(num_heads=heads, window_size=window, shift=shift, overlap=overlap, scale=scale)

    def public(q, k, v, table, backend):
        return window_attention(q, k, v, bias_table=table, backend=backend, **fixed)

    def definition(q, k, v, table):
        return naive.window_attention(q, k, v, bias_table=table, **fixed)

    def by(attend, q, k, v, table):
        """`attend` over windows that are laid out."""
        queries, keys, values, mask = naive.laid_out(q, k, v, heads, window, shift, overlap, table)
        return naive.put_back(attend(queries, keys, values, mask, scale), q.shape, window, shift)

    forms = {
        "triton": partial(public, backend="triton"),
        "twin": partial(public, backend="torch"),
        "definition": definition,
        "compiled definition": compiler(definition),
        "sdpa": partial(by, _fused),
    }
    if shift == 0:
        forms["flex"] = partial(by, partial(_flex_window, compiler=compiler))
    return Case(
        "window_attention",
        setting,
        image,
        dict.fromkeys(("q", "k", "v"), shape) | {"table": ((2 * window - 1 + overlap) ** 2, heads)},
        operations(shape, (window, window), overlap),
        forms,
        works(forward, backward, shape, heads, (window, window), (shift, shift), overlap, True),
        {},
    )


def _fused(q, k, v, mask, scale):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=scale)


def _flex_window(q, k, v, bias, scale, compiler):
    """Attention of windows that are laid out already, the bias read by the kernel."""

    def add(score, b, h, query, key):
        return score + bias[0, h, query, key]

    return flex(compiler)(q, k, v, score_mod=add, scale=scale)


def _pairs(size: int, window: int, shift: int, overlap: int) -> int:
    """Pairs of query and key along an axis that see each other; keys beyond the border are known to be zero."""
    if shift > 0:
        # The window that wraps falls into two.
        return (size // window - 1) * window**2 + shift**2 + (window - shift) ** 2
    half = overlap // 2
    return sum(window * (min(start + window + half, size) - max(start - half, 0)) for start in range(0, size, window))


def _attention(
    shape: tuple[int, int, int, int],
    num_heads: int,
    window: tuple[int, int],
    shift: tuple[int, int],
    overlap: int,
    biased: bool,
    dtype: torch.dtype,
    maps: int,
    tables: int,
    products: int,
) -> Work:
    """Moves so many maps and tables and the log-sum-exp, and multiplies all queries with their keys so many times."""
    b, height, width, c = shape
    pairs = b * _pairs(height, window[0], shift[0], overlap) * _pairs(width, window[1], shift[1], overlap)
    table = num_heads * (2 * window[0] - 1 + overlap) * (2 * window[1] - 1 + overlap) if biased else 0
    return Work(
        bytes=(maps * b * height * width * c + tables * table) * dtype.itemsize + b * height * width * num_heads * 4,
        flops=2 * products * pairs * c,
    )


def forward(
    shape: tuple[int, int, int, int],
    num_heads: int,
    window: tuple[int, int],
    shift: tuple[int, int],
    overlap: int,
    biased: bool,
    dtype: torch.dtype,
) -> Work:
    """q, k, v and the bias table in, the result and the log-sum-exp out; scores and result are products.

    Args:
        shape: of q, (B, H, W, C).
        num_heads: divides C.
        window: sides of the windows of queries, pixels.
        shift: of the windows, pixels.
        overlap: pixels by which windows of keys are larger.
        biased: with a bias table.
        dtype: of q and of the table.
    """
    return _attention(shape, num_heads, window, shift, overlap, biased, dtype, maps=4, tables=1, products=2)


def backward(
    shape: tuple[int, int, int, int],
    num_heads: int,
    window: tuple[int, int],
    shift: tuple[int, int],
    overlap: int,
    biased: bool,
    dtype: torch.dtype,
) -> Work:
    """q, k, v, the result, its gradient, the log-sum-exp and the bias table in, four gradients out.

    Five products: the scores again, the gradients of the weights, and those of v, q and k. Arguments as of `forward`.
    """
    return _attention(shape, num_heads, window, shift, overlap, biased, dtype, maps=8, tables=2, products=5)


# Windows and heads of the launches whose steps are counted: Swin-T's first stage, 64 images of 224 x 224.
_WINDOWS, _HEADS = 4096, 3


def static_cases() -> list[StaticCase]:
    """Of every kernel and dtype: Swin's windows, LITv2's, HAT's shifted and overlapping ones.

    Steps and elements are those of a program in the interior of a map, in the mean over its tiles. The first of larger
    windows, which tests compile, have tiles with sides that differ.
    """
    from ....kernels.window_attention import triton
    from ....kernels.window_attention.operator import max_head_dim

    cases = []
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        dims = [d for d in (16, 32, 64, 128) if d <= max_head_dim(dtype)]
        named = [(f"7x7 shifted, head_dim {d}", triton._Geometry(dtype, d, (7, 7), True, 0, True)) for d in dims]
        named += [
            ("7x7, head_dim 32", triton._Geometry(dtype, 32, (7, 7), False, 0, True)),
            ("7x7 without bias, head_dim 32", triton._Geometry(dtype, 32, (7, 7), True, 0, False)),
            ("8x8, head_dim 32", triton._Geometry(dtype, 32, (8, 8), False, 0, True)),
            ("4x4, head_dim 32", triton._Geometry(dtype, 32, (4, 4), False, 0, True)),
            ("16x16 overlap 8, head_dim 30", triton._Geometry(dtype, 30, (16, 16), False, 8, True)),
            ("4x4 overlap 2, head_dim 16", triton._Geometry(dtype, 16, (4, 4), False, 2, True)),
            ("2x2, head_dim 32", triton._Geometry(dtype, 32, (2, 2), False, 0, False)),
            ("12x12 shifted, head_dim 32", triton._Geometry(dtype, 32, (12, 12), True, 0, True)),
            ("16x16 shifted, head_dim 30", triton._Geometry(dtype, 30, (16, 16), True, 0, True)),
        ]
        # What many heads of large windows have, whose bias would be too large; wider heads, which have other tiles.
        named.append(("24x24 from the table, head_dim 32", triton._Geometry(dtype, 32, (24, 24), True, 0, True, False)))
        named += [
            (f"16x16 shifted, head_dim {d}", triton._Geometry(dtype, d, (16, 16), True, 0, True)) for d in dims[2:]
        ]
        for label, geometry in named:
            cases += _tile_cases(name, label, geometry) if geometry.in_tile else _large_cases(name, label, geometry)
    for window, key, shifted in (((7, 7), (7, 7), True), ((16, 16), (24, 24), False)):
        cases += _bias_cases(f"{window[0]}x{window[1]}, keys {key[0]}x{key[1]}", window, key, shifted)
    return cases


def _tile_cases(dtype: str, label: str, geometry: Any) -> list[StaticCase]:
    """Forward and backward of windows that a tile holds."""
    from ....kernels.window_attention import triton, triton_tile

    cases = []
    for kernel, options, most in (
        (triton_tile._tile_forward_kernel, triton._tile_forward_options(geometry), triton._FORWARD_WARPS),
        (triton_tile._tile_backward_kernel, triton._tile_backward_options(geometry), triton._BACKWARD_WARPS),
    ):
        if kernel is triton_tile._tile_backward_kernel:
            options["LEARNS"] = geometry.has_bias
        if not geometry.has_bias:
            options |= dict.fromkeys({"bias", "partial"}.intersection(kernel.arg_names))
        pack = options["BLOCK"] // geometry.area
        steps = -(-_WINDOWS // pack * _HEADS // (most // options["num_warps"]))
        cases.append(_case(kernel, dtype, label, geometry, options, steps, steps * pack * geometry.area**2))
    return cases


def _large_cases(dtype: str, label: str, geometry: Any) -> list[StaticCase]:
    """Forward and backward of larger windows, and of those that overlap."""
    from ....kernels.window_attention import triton, triton_large

    kernels = [
        (triton_large._forward_kernel, triton._forward_options(geometry)),
        (triton_large._grad_query_kernel, triton._grad_query_options(geometry)),
        (triton_large._grad_key_kernel, triton._grad_key_options(geometry)),
    ]
    if geometry.has_bias:
        kernels.append((triton_large._grad_bias_kernel, triton._grad_bias_options(geometry)))
    cases = []
    for kernel, options in kernels:
        if not geometry.has_bias:
            options["bias"] = None
        count = _large_steps_and_pairs(kernel, geometry, options)
        cases.append(_case(kernel, dtype, label, geometry, options, *count))
    return cases


def _large_steps_and_pairs(kernel: Any, geometry: Any, options: dict[str, Any]) -> tuple[int, int]:
    """Of the loop of a program: its steps, and pairs of a query and a key that see each other."""
    from ....kernels.window_attention import triton, triton_large

    keys = geometry.key[0] * geometry.key[1]
    pairs = geometry.area * keys
    query_tiles, key_tiles = -(-geometry.area // options["BLOCK_M"]), -(-keys // options["BLOCK_N"])
    if kernel is triton_large._grad_bias_kernel:
        share = -(-_WINDOWS * _HEADS // max(triton._BIAS_PROGRAMS // (query_tiles * key_tiles), 1))
        return share, round(share * pairs / (query_tiles * key_tiles))
    if kernel is triton_large._grad_key_kernel:
        own_tiles = -(-geometry.area // options["BLOCK_N"])
        return round(_seen_by(geometry, options["BLOCK_N"]) * query_tiles), round(pairs / own_tiles)
    return key_tiles, round(pairs / query_tiles)


def _seen_by(geometry: Any, block: int) -> float:
    """Windows that a tile of keys walks over, in the mean over the tiles of a window."""
    if geometry.overlap == 0:
        return 1.0
    (height, width), margin = geometry.window, geometry.overlap // 2
    reach = -(-margin // height), -(-margin // width)
    rows = []
    for start in range(0, height * width, block):
        top, bottom = start // width, (min(start + block, height * width) - 1) // width
        rows.append((bottom + margin) // height - (top - margin + reach[0] * height) // height + reach[0] + 1)
    return sum(rows) / len(rows) * (2 * reach[1] + 1)


def _case(
    kernel: Any, dtype: str, label: str, geometry: Any, options: dict[str, Any], steps: int, pairs: int
) -> StaticCase:
    from ....kernels.window_attention.triton_windows import SIZES

    # q, k and v are parts of one map, the gradients are not.
    options |= {"PACKED": True, "UNIT": math.gcd(16, geometry.head_dim), "WIDE": False}
    if "PACKED_GRADS" in kernel.arg_names:
        options["PACKED_GRADS"] = False
    num_warps, num_stages = options.pop("num_warps"), options.pop("num_stages")
    types = dict.fromkeys(SIZES, "i32") | {"scale": "fp32"}
    types |= dict.fromkeys(("bias", "lse", "delta", "partial"), "*fp32")
    signature = {name: types.get(name, f"*{dtype}") for name in kernel.arg_names if name not in options}
    return StaticCase(
        "window_attention", kernel, dtype, label, signature, options, num_warps, num_stages, (), steps, pairs
    )


def _bias_cases(label: str, window: tuple[int, int], key: tuple[int, int], shifted: bool) -> Iterator[StaticCase]:
    """A bias table laid out, and the gradient back in its order."""
    from ....kernels.window_attention import triton_bias

    for kernel, options in (
        (triton_bias._dense_kernel, triton_bias._dense_options(window, key, 1)),
        (
            triton_bias._grad_table_kernel,
            triton_bias._grad_table_options(window, key, 1, window[0] * window[1], key[0] * key[1]),
        ),
    ):
        options |= {"SHIFTED": shifted} if kernel is triton_bias._dense_kernel else {}
        num_warps, num_stages = options.pop("num_warps"), options.pop("num_stages")
        for dtype in ("fp32", "bf16", "fp16"):
            types = {"table": f"*{dtype}", "dense": "*fp32"}
            signature = {name: types.get(name, "i32") for name in kernel.arg_names if name not in options}
            yield StaticCase("window_attention", kernel, dtype, label, signature, options, num_warps, num_stages)
