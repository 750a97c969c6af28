"""Window attention in Triton: which kernels run, in which tiles, and their launches.

Windows are addresses: q, k and v are read where they lie in the map, and results are written where they belong. Where a
tile holds a window that sees itself alone, the kernels of `triton_tile` run, else those of `triton_large`.
"""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton

from .. import _dispatch
from .triton_bias import dense_bias, dense_size, grad_table
from .triton_large import _forward_kernel, _grad_bias_kernel, _grad_key_kernel, _grad_query_kernel
from .triton_tile import _tile_backward_kernel, _tile_forward_kernel

_LOG2_E = 1.4426950408889634
# Most pixels of a window in a tile.
_TILE = 64
# Most warps of programs for such windows: enough to fill a GPU evenly, few enough for what each program prepares. Those
# of the backward pass bound the memory of the bias's sums too.
_FORWARD_WARPS, _BACKWARD_WARPS = 8192, 4096
# Programs of the gradient of a larger window's bias: fills a GPU several times over, and bounds that memory likewise.
_BIAS_PROGRAMS = 1024
# Most bytes of a larger window's bias for all its queries and keys; kernels compute it from the table where it is more.
_DENSE_BYTES = 16 << 20
_INT32 = 2**31 - 1


@dataclass(frozen=True)
class _Geometry:
    """What fixes the launch of every kernel but the sizes of the map."""

    dtype: torch.dtype
    head_dim: int
    window: tuple[int, int]
    shifted: bool
    overlap: int
    has_bias: bool
    # Whether the bias of all queries and keys is laid out, which the kernels of small windows take for granted.
    dense: bool = True

    @property
    def key(self) -> tuple[int, int]:
        """Sides of a window of keys."""
        return self.window[0] + self.overlap, self.window[1] + self.overlap

    @property
    def area(self) -> int:
        """Queries of a window."""
        return self.window[0] * self.window[1]

    @property
    def in_tile(self) -> bool:
        """Whether a tile holds a window that sees itself alone."""
        return self.overlap == 0 and self.area <= _TILE

    def constants(self) -> dict[str, Any]:
        """Those that all kernels of attention share."""
        return {
            "WH": self.window[0],
            "WW": self.window[1],
            "SHIFTED": self.shifted,
            "HEAD_DIM": self.head_dim,
            "BLOCK_D": max(16, triton.next_power_of_2(self.head_dim)),
            "PRECISION": _dispatch.dot_precision(),
        }

    def exact(self) -> bool:
        """Whether products are in full float32, which tensor cores do not know."""
        return self.dtype == torch.float32 and _dispatch.dot_precision() == "ieee"


def _tile_warps(geometry: _Geometry, block: int) -> int:
    if not geometry.exact():
        return block // 16
    # Operands are spread over the registers, which also hold what is seen where no bias says it.
    few = geometry.head_dim <= 32 and (geometry.has_bias or block < 64)
    return block // 8 if few else block // 4


def _keeps_bias(geometry: _Geometry) -> bool:
    """Whether the bias stays in registers: operands of exact products, spread over few warps, leave no room for it."""
    return not (geometry.exact() and geometry.has_bias and geometry.head_dim <= 32)


def _tile_forward_options(geometry: _Geometry) -> dict[str, Any]:
    """Constants and launch options of `_tile_forward_kernel`: a tile of BLOCK pixels, of one window or of several."""
    block = max(16, triton.next_power_of_2(geometry.area))
    return geometry.constants() | {
        "HAS_BIAS": geometry.has_bias,
        "KEEP_BIAS": _keeps_bias(geometry),
        "BLOCK": block,
        "num_warps": _tile_warps(geometry, block),
        "num_stages": 1 if geometry.exact() else 2,
    }


def _tile_backward_options(geometry: _Geometry) -> dict[str, Any]:
    """Constants and launch options of `_tile_backward_kernel`: CHUNK channels at a time, as many as spill nothing."""
    block = max(16, triton.next_power_of_2(geometry.area))
    constants = geometry.constants()
    wide = constants["BLOCK_D"] > 32 and not geometry.exact()
    return constants | {
        "HAS_BIAS": geometry.has_bias,
        "KEEP_BIAS": _keeps_bias(geometry),
        "CHUNK": 16 if wide else constants["BLOCK_D"],
        "BLOCK": block,
        "num_warps": _tile_warps(geometry, block),
        "num_stages": 1,
    }


def _large_options(
    geometry: _Geometry, keys: tuple[int, int], block_m: int, block_n: int, num_warps: int, num_stages: int
) -> dict[str, Any]:
    """Constants and launch options of a kernel that walks windows in tiles of at most so many queries and keys."""
    dense = geometry.has_bias and geometry.dense
    rows, columns = dense_size(geometry.window, geometry.key, 1) if dense else (0, 0)
    return geometry.constants() | {
        "MARGIN": geometry.overlap // 2,
        "HAS_BIAS": geometry.has_bias,
        "ROWS": rows,
        "COLUMNS": columns,
        "BLOCK_M": min(block_m, max(16, triton.next_power_of_2(geometry.area))),
        "BLOCK_N": min(block_n, max(16, triton.next_power_of_2(keys[0] * keys[1]))),
        "num_warps": num_warps,
        "num_stages": num_stages,
    }


def _query_rows(geometry: _Geometry) -> int:
    """Most queries of a tile that walks over keys on tensor cores: fewer where more of them would be empty."""
    wasteful = triton.cdiv(geometry.area, 128) * 128 > triton.cdiv(geometry.area, 64) * 64
    return 64 if geometry.head_dim > 64 or wasteful else 128


def _forward_options(geometry: _Geometry) -> dict[str, Any]:
    """Constants and launch options of `_forward_kernel`: larger tiles do not fit the registers."""
    if geometry.exact():
        return _large_options(geometry, geometry.key, 64 if geometry.head_dim <= 32 else 32, 16, 4, 1)
    return _large_options(geometry, geometry.key, _query_rows(geometry), 32, 4, 2)


def _grad_query_options(geometry: _Geometry) -> dict[str, Any]:
    """Constants and launch options of `_grad_query_kernel`."""
    if geometry.exact():
        return _large_options(geometry, geometry.key, 32, 16, 4, 1)
    return _large_options(geometry, geometry.key, _query_rows(geometry), 32, 4, 2)


def _grad_key_options(geometry: _Geometry) -> dict[str, Any]:
    """Constants and launch options of `_grad_key_kernel`, which owns keys of a window of queries."""
    if geometry.exact():
        return _large_options(geometry, geometry.window, 16, 32, 4, 1)
    if geometry.head_dim <= 32:
        return _large_options(geometry, geometry.window, 64, 64, 4, 1)
    return _large_options(geometry, geometry.window, 32, 64 if geometry.head_dim <= 64 else 32, 4, 1)


def _grad_bias_options(geometry: _Geometry) -> dict[str, Any]:
    """Constants and launch options of `_grad_bias_kernel`."""
    if geometry.exact():
        return _large_options(geometry, geometry.key, 32, 32, 4, 1)
    return _large_options(geometry, geometry.key, 64 if geometry.head_dim <= 64 else 32, 64, 4, 1)


def _alike(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """With the same strides, channels side by side: views of one tensor (B, H, W, 3 * C) are that already."""
    if q.stride(3) == 1 and q.stride() == k.stride() == v.stride():
        return q, k, v
    return q.contiguous(), k.contiguous(), v.contiguous()


def _addresses(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Where maps of the same strides lie: constants of the kernels, and the strides, in units."""
    _, height, width, channels = q.shape
    part = channels * q.element_size()
    unit = math.gcd(16, *q.stride()[:3])
    # With room for what lies beyond the border. The gradients may be parts of one map.
    most = 2 * max(height * q.stride(1) + width * q.stride(2), height * width * 3 * channels)
    constants = {
        "PACKED": k.data_ptr() - q.data_ptr() == part and v.data_ptr() - k.data_ptr() == part,
        "UNIT": unit,
        "WIDE": most > _INT32,
    }
    return constants, tuple(stride // unit for stride in q.stride()[:3])


def window_attention_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    table: torch.Tensor | None,
    num_heads: int,
    window: tuple[int, int],
    shift: tuple[int, int],
    overlap: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Arguments as `window_attention`, heads of at most 128 channels.

    Returns:
        (B, H, W, C), dtype of `q`; base-2 logarithm of the softmaxes' denominators, (B, H, W, num_heads), float32.
    """
    b, height, width, channels = q.shape
    out = torch.empty((b, height, width, channels), dtype=q.dtype, device=q.device)
    lse = torch.empty((b, height, width, num_heads), dtype=torch.float32, device=q.device)
    if out.numel() == 0:
        return out, lse
    q, k, v = _alike(q, k, v)
    addresses, strides = _addresses(q, k, v)
    geometry = _Geometry(q.dtype, channels // num_heads, window, shift != (0, 0), overlap, table is not None)
    rows, cols = height // window[0], width // window[1]
    if geometry.in_tile:
        options = _tile_forward_options(geometry)
        bias = _tile_bias(geometry, table, shift, options["BLOCK"])
        pack = options["BLOCK"] // geometry.area
        shares, sizes = _shares((b, rows, cols), pack, num_heads, shift, _FORWARD_WARPS // options["num_warps"])
        with _dispatch.device_of(q):
            _tile_forward_kernel[(shares * num_heads,)](
                q, k, v, bias, out, lse, scale * _LOG2_E, *sizes, *strides, **addresses, **options
            )
        return out, lse
    geometry, bias = _large_bias(geometry, table, num_heads, shift)
    options = _forward_options(geometry)
    with _dispatch.device_of(q):
        _forward_kernel[(b * rows * cols * num_heads * triton.cdiv(geometry.area, options["BLOCK_M"]),)](
            q, k, v, bias, out, lse, scale * _LOG2_E, rows, cols, num_heads, *shift, *strides, **addresses, **options
        )
    return out, lse


def window_attention_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    table: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
    grads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    num_heads: int,
    window: tuple[int, int],
    shift: tuple[int, int],
    overlap: int,
    scale: float,
    learns: bool,
) -> torch.Tensor:
    """Writes the gradients of q, k and v.

    Args:
        grad: of the result.
        q: as in the forward pass, and so the others.
        k: likewise.
        v: likewise.
        table: likewise.
        out: what the forward pass gave.
        lse: likewise.
        grads: what is written, (B, H, W, C) each: three contiguous maps, or the parts of one (B, H, W, 3 * C).
        num_heads: as in the forward pass, and so the others.
        window: likewise.
        shift: likewise.
        overlap: likewise.
        scale: likewise.
        learns: whether the table asks for a gradient.

    Returns:
        The gradient of the bias table where it `learns`: else (0,).
    """
    if q.numel() == 0:
        return q.new_empty(0) if table is None or not learns else torch.zeros_like(table)
    q, k, v = _alike(q, k, v)
    grad, out, lse = grad.contiguous(), out.contiguous(), lse.contiguous()
    geometry = _Geometry(q.dtype, q.shape[3] // num_heads, window, shift != (0, 0), overlap, table is not None)
    if geometry.in_tile:
        grad_bias = _tile_backward(geometry, grad, (q, k, v), table, lse, grads, num_heads, shift, scale, learns)
    else:
        grad_bias = _large_backward(geometry, grad, (q, k, v), table, out, lse, grads, num_heads, shift, scale, learns)
    return q.new_empty(0) if grad_bias is None else grad_bias


def _tile_bias(
    geometry: _Geometry, table: torch.Tensor | None, shift: tuple[int, int], block: int
) -> torch.Tensor | None:
    if table is None:
        return None
    return dense_bias(table, geometry.window, geometry.window, shift, block // geometry.area)


def _large_bias(
    geometry: _Geometry, table: torch.Tensor | None, num_heads: int, shift: tuple[int, int]
) -> tuple[_Geometry, torch.Tensor | None]:
    """A larger window's bias, for all queries and keys or, where that is too large, for each distance.

    Returns:
        The geometry, which says which of the two; the bias.
    """
    if table is None:
        return geometry, None
    rows, columns = dense_size(geometry.window, geometry.key, 1)
    if (4 if geometry.shifted else 1) * num_heads * rows * columns * 4 > _DENSE_BYTES:
        return replace(geometry, dense=False), table.contiguous()
    return geometry, dense_bias(table, geometry.window, geometry.key, shift, 1)


def _shares(
    windows: tuple[int, int, int], pack: int, num_heads: int, shift: tuple[int, int], programs: int
) -> tuple[int, tuple[int, ...]]:
    """How windows are shared among programs that take many.

    Args:
        windows: images, and rows and columns of windows in each.
        pack: windows that a program takes at a time, side by side.
        num_heads: each has programs of its own.
        shift: of the windows, pixels.
        programs: at most, but for those that are not full.

    Returns:
        Shares of a head; the arguments `images` to `corner_from` of the kernels.
    """
    images, rows, cols = windows
    whole_rows, whole_cols = rows - (shift[0] > 0), cols - (shift[1] > 0)
    groups = [
        images * down * triton.cdiv(across, pack)
        for down in (whole_rows, rows - whole_rows)
        for across in (whole_cols, cols - whole_cols)
    ]
    each = triton.cdiv(sum(groups) * num_heads, max(programs, 1))
    *starts, shares = itertools.accumulate(triton.cdiv(count, each) for count in groups)
    return shares, (images, rows, cols, num_heads, *shift, each, *starts)


def _tile_backward(
    geometry: _Geometry,
    grad: torch.Tensor,
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    table: torch.Tensor | None,
    lse: torch.Tensor,
    grads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    num_heads: int,
    shift: tuple[int, int],
    scale: float,
    learns: bool,
) -> torch.Tensor | None:
    """Writes the gradients of q, k and v; returns that of the table where it learns."""
    q = inputs[0]
    b, height, width, _ = q.shape
    options = _tile_backward_options(geometry)
    block, learns = options["BLOCK"], learns and table is not None
    windows = b, height // geometry.window[0], width // geometry.window[1]
    pack = block // geometry.area
    shares, sizes = _shares(windows, pack, num_heads, shift, _BACKWARD_WARPS // options["num_warps"])
    addresses, strides = _addresses(*inputs)
    bias, partial = _tile_bias(geometry, table, shift, block), None
    if learns:
        partial = torch.empty((shares, num_heads, block, block), dtype=torch.float32, device=q.device)
    with _dispatch.device_of(q):
        _tile_backward_kernel[(shares * num_heads,)](
            grad, *inputs, bias, lse, *grads, partial, scale * _LOG2_E, *sizes, *strides, LEARNS=learns,
            PACKED_GRADS=grads[0].stride(2) > q.shape[3], **addresses, **options,
        )  # fmt: skip
    if table is None or partial is None:
        return None
    return grad_table(partial.sum(0), table, geometry.window, geometry.key, pack)


def _large_backward(
    geometry: _Geometry,
    grad: torch.Tensor,
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    table: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
    grads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    num_heads: int,
    shift: tuple[int, int],
    scale: float,
    learns: bool,
) -> torch.Tensor | None:
    """Writes the gradients of q, k and v; returns that of the table where it learns."""
    q = inputs[0]
    b, height, width, _ = q.shape
    delta = torch.empty_like(lse)
    geometry, bias = _large_bias(geometry, table, num_heads, shift)
    rows, cols = height // geometry.window[0], width // geometry.window[1]
    area, keys = geometry.area, geometry.key[0] * geometry.key[1]
    addresses, strides = _addresses(*inputs)
    packed_grads = grads[0].stride(2) > q.shape[3]
    sizes = (scale * _LOG2_E, rows, cols, num_heads, *shift, *strides)
    with _dispatch.device_of(q):
        options = _grad_query_options(geometry)
        _grad_query_kernel[(b * rows * cols * num_heads * triton.cdiv(area, options["BLOCK_M"]),)](
            grad, *inputs, bias, out, lse, delta, grads[0], *sizes, PACKED_GRADS=packed_grads, **addresses, **options
        )
        options = _grad_key_options(geometry)
        _grad_key_kernel[(b * rows * cols * num_heads * triton.cdiv(area, options["BLOCK_N"]),)](
            grad, *inputs, bias, lse, delta, *grads, *sizes, PACKED_GRADS=packed_grads, **addresses, **options
        )
        if table is None or not learns:
            return None
        options = _grad_bias_options(geometry)
        tiles = triton.cdiv(area, options["BLOCK_M"]) * triton.cdiv(keys, options["BLOCK_N"])
        shares, counts = _shares((b, rows, cols), 1, num_heads, shift, _BIAS_PROGRAMS // tiles)
        partial = torch.empty((shares, num_heads, area, keys), dtype=torch.float32, device=q.device)
        _grad_bias_kernel[(shares * num_heads * tiles,)](
            grad, *inputs, bias, lse, delta, partial, scale * _LOG2_E, *counts, *strides, **addresses, **options
        )
    return grad_table(partial.sum(0), table, geometry.window, geometry.key, 1)
