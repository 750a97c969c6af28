"""Bias of window attention in Triton: what is added to the logits of a window, and the gradient of the bias table."""

from typing import Any

import torch
import triton
import triton.language as tl

from .. import _dispatch
from .triton_windows import _places


@triton.jit
def _bias(
    table, heads, head, q_row, q_col, q_exists, q_label, k_row, k_col, k_exists, k_label,
    WH: tl.constexpr, WW: tl.constexpr, KEY_H: tl.constexpr, KEY_W: tl.constexpr, HAS_BIAS: tl.constexpr,
    LABELED: tl.constexpr,
):  # fmt: skip
    """What is added to base-2 logits, (queries, keys): minus infinity where a query does not see a key.

    Places without a query see all keys, so that nothing divides by zero there.
    """
    seen = k_exists[None, :]
    if LABELED:
        seen = seen & (q_label[:, None] == k_label[None, :])
    if HAS_BIAS:
        COLS: tl.constexpr = WW + KEY_W - 1
        at = ((q_row + KEY_H - 1) * COLS + q_col + KEY_W - 1)[:, None] - (k_row * COLS + k_col)[None, :]
        bias = tl.load(table + at * heads + head, seen & q_exists[:, None], other=0.0).to(tl.float32)
        bias = bias * 1.4426950408889634
    else:
        bias = tl.zeros((q_row.shape[0], k_row.shape[0]), tl.float32)
    return tl.where(seen | (q_exists == 0)[:, None], bias, float("-inf"))


@triton.jit(do_not_specialize=("heads", "shift_h", "shift_w"))
def _dense_kernel(
    table, dense, heads, shift_h, shift_w,
    WH: tl.constexpr, WW: tl.constexpr, KEY_H: tl.constexpr, KEY_W: tl.constexpr, PACK: tl.constexpr,
    SHIFTED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A tile of `_bias` of windows inside the map, at its right border, at its lower one, and at both.

    They lie behind each other, (1 or 4, heads, ROWS, COLUMNS).
    """
    program = tl.program_id(0)
    column = program % (COLUMNS // BLOCK_N) * BLOCK_N + tl.arange(0, BLOCK_N)
    program = program // (COLUMNS // BLOCK_N)
    row = program % (ROWS // BLOCK_M) * BLOCK_M + tl.arange(0, BLOCK_M)
    program = program // (ROWS // BLOCK_M)
    head, kind = program % heads, program // heads
    q_row, q_col, q_exists, q_label = _places(row, kind >= 2, kind % 2 == 1, shift_h, shift_w, WH, WW, PACK, SHIFTED)
    k_row, k_col, k_exists, k_label = _places(
        column, kind >= 2, kind % 2 == 1, shift_h, shift_w, KEY_H, KEY_W, PACK, SHIFTED
    )
    bias = _bias(
        table, heads, head, q_row, q_col, q_exists, q_label, k_row, k_col, k_exists, k_label,
        WH, WW, KEY_H, KEY_W, True, SHIFTED or PACK > 1,
    )  # fmt: skip
    tl.store(dense + program.to(tl.int64) * (ROWS * COLUMNS) + row[:, None] * COLUMNS + column[None, :], bias)


@triton.jit(do_not_specialize=("heads",))
def _grad_table_kernel(
    dense, table, heads,
    WH: tl.constexpr, WW: tl.constexpr, KEY_H: tl.constexpr, KEY_W: tl.constexpr, PACK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A row of a head's part of the table (R * S, heads): sums of (heads, ROWS, COLUMNS) at the same distance."""
    TABLE_ROWS: tl.constexpr = WH + KEY_H - 1
    TABLE_COLS: tl.constexpr = WW + KEY_W - 1
    program = tl.program_id(0)
    head, row = (program // TABLE_ROWS).to(tl.int64), program % TABLE_ROWS
    dense += head * (ROWS * COLUMNS)
    col = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    first, stop = tl.maximum(row - KEY_H + 1, 0), tl.minimum(row + 1, WH)
    for query in range(first * WW, stop * WW):
        k_row, k_col = query // WW + KEY_H - 1 - row, query % WW + KEY_W - 1 - col
        valid = (k_col >= 0) & (k_col < KEY_W)
        for slot in tl.static_range(PACK):
            at = (query + slot * WH * WW) * COLUMNS + k_row * KEY_W + k_col + slot * KEY_H * KEY_W
            total += tl.load(dense + at, valid, other=0.0)
    tl.store(table + (row * TABLE_COLS + col) * heads + head, total.to(table.dtype.element_ty), col < TABLE_COLS)


def _padded(count: int) -> int:
    """Rows or columns of a dense bias for so many places: tiles of a power of two, at most 128, divide it."""
    return max(16, triton.next_power_of_2(count)) if count <= 128 else triton.cdiv(count, 128) * 128


def dense_size(window: tuple[int, int], key: tuple[int, int], pack: int) -> tuple[int, int]:
    """ROWS and COLUMNS of `dense_bias`."""
    return _padded(pack * window[0] * window[1]), _padded(pack * key[0] * key[1])


def _dense_options(window: tuple[int, int], key: tuple[int, int], pack: int) -> dict[str, Any]:
    """Constants and launch options of `_dense_kernel`, but for SHIFTED."""
    rows, columns = dense_size(window, key, pack)
    return {
        "WH": window[0],
        "WW": window[1],
        "KEY_H": key[0],
        "KEY_W": key[1],
        "PACK": pack,
        "ROWS": rows,
        "COLUMNS": columns,
        "BLOCK_M": 16,
        "BLOCK_N": min(columns, 128),
        "num_warps": 4,
        "num_stages": 2,
    }


def dense_bias(
    table: torch.Tensor, window: tuple[int, int], key: tuple[int, int], shift: tuple[int, int], pack: int
) -> torch.Tensor:
    """A bias table laid out for the tiles of kernels, with what is unseen in each kind of window.

    Args:
        table: (R * S, heads).
        window: sides of the windows of queries, pixels.
        key: sides of the windows of keys, pixels.
        shift: of the windows, pixels.
        pack: windows in a tile.

    Returns:
        (1 or 4, heads, ROWS, COLUMNS), float32, in base 2: four with a shift, for windows inside the map, at its right
        border, at its lower one, and at both.
    """
    heads, shifted = table.shape[1], shift != (0, 0)
    options = _dense_options(window, key, pack)
    rows, columns = options["ROWS"], options["COLUMNS"]
    dense = torch.empty((4 if shifted else 1, heads, rows, columns), dtype=torch.float32, device=table.device)
    tiles = rows // options["BLOCK_M"] * (columns // options["BLOCK_N"])
    with _dispatch.device_of(table):
        _dense_kernel[(dense.shape[0] * heads * tiles,)](
            table.contiguous(), dense, heads, *shift, SHIFTED=shifted, **options
        )
    return dense


def _grad_table_options(
    window: tuple[int, int], key: tuple[int, int], pack: int, rows: int, columns: int
) -> dict[str, Any]:
    """Constants and launch options of `_grad_table_kernel`."""
    return {
        "WH": window[0],
        "WW": window[1],
        "KEY_H": key[0],
        "KEY_W": key[1],
        "PACK": pack,
        "ROWS": rows,
        "COLUMNS": columns,
        "BLOCK": triton.next_power_of_2(window[1] + key[1] - 1),
        "num_warps": 1,
        "num_stages": 2,
    }


def grad_table(
    dense: torch.Tensor, table: torch.Tensor, window: tuple[int, int], key: tuple[int, int], pack: int
) -> torch.Tensor:
    """The gradient of a bias table, in its dtype, from that of the bias of all queries and keys.

    Args:
        dense: (heads, ROWS, COLUMNS), float32, the sum over all windows.
        table: (R * S, heads).
        window: sides of the windows of queries, pixels.
        key: sides of the windows of keys, pixels.
        pack: windows in a tile.
    """
    grad = torch.empty(table.shape, dtype=table.dtype, device=table.device)
    heads, rows, columns = dense.shape
    with _dispatch.device_of(table):
        _grad_table_kernel[(heads * (window[0] + key[0] - 1),)](
            dense, grad, heads, **_grad_table_options(window, key, pack, rows, columns)
        )
    return grad
