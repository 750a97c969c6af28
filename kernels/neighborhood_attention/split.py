"""Neighborhood attention in two halves, with the weights of every window between them: for what changes these.

Maps are (B, heads, H, W, D), weights (B, heads, H, W, K * L): a window's K rows of L keys one after the other. The two
halves and the third product, which is in the gradients of both, are each other's gradients, so that nothing is kept
for a backward pass but their arguments, and no window is ever gathered. Sums of 16-bit numbers are in float32 and
rounded once.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from .. import _derivatives
from ..tracing import are_sizes_free
from .naive import window


class Windows(NamedTuple):
    """The keys of every query.

    Attributes:
        rows: (H, K) int64, the rows of each row's windows.
        cols: (W, L) int64.
        bias_rows: (H, K) int64, the keys' rows in a bias table of 2 * K - 1.
        bias_cols: (W, L) int64.
        missing: (H, W, K * L) of bool, where a window has no key; None where all are whole.
    """

    rows: torch.Tensor
    cols: torch.Tensor
    bias_rows: torch.Tensor
    bias_cols: torch.Tensor
    missing: torch.Tensor | None

    @classmethod
    def of(
        cls,
        size: Sequence[int],
        kernel_size: Sequence[int],
        stride: Sequence[int],
        dilation: Sequence[int],
        is_causal: Sequence[bool],
        device: torch.device,
    ) -> "Windows":
        """Those of a map; arguments as of `generalized_neighborhood_attention`, each of rows and columns."""
        (rows, bias_rows), (cols, bias_cols) = (
            window(size[i], kernel_size[i], dilation[i], device, stride[i], is_causal[i]) for i in (0, 1)
        )
        missing = None
        lengths = kernel_size[0] * dilation[0], kernel_size[1] * dilation[1]
        if any(is_causal) or are_sizes_free() or size[0] < lengths[0] or size[1] < lengths[1]:
            sides = [2 * side - 1 for side in kernel_size]
            missing = (bias_rows == sides[0])[:, None, :, None] | (bias_cols == sides[1])[None, :, None, :]
            missing = missing.flatten(2)
            # Any place of a table does for them.
            bias_rows, bias_cols = bias_rows.clamp(max=sides[0] - 1), bias_cols.clamp(max=sides[1] - 1)
        return cls(rows, cols, bias_rows, bias_cols, missing)


def scores(query: torch.Tensor, key: torch.Tensor, bias_table: torch.Tensor | None, windows: Windows) -> torch.Tensor:
    """Dot products of each query with the keys of its window, and the bias; minus infinity where it has no key.

    Args:
        query: (B, heads, H, W, D).
        key: like `query`.
        bias_table: (heads, 2 * K - 1, 2 * L - 1).
        windows: of the map.

    Returns:
        (B, heads, H, W, K * L), dtype of `query`.
    """
    dtype = query.dtype
    if bias_table is not None:
        query = query.to(torch.promote_types(dtype, torch.float32))
    out = _apply(_Scores, _scores, query, key, windows.rows, windows.cols)
    if bias_table is not None:
        size, kernel_size = [windows.rows.shape[0], windows.cols.shape[0]], [x.shape[1] for x in windows[:2]]
        bias = bias_table.index_select(1, windows.bias_rows.flatten()).unflatten(1, [size[0], kernel_size[0]])
        bias = bias.index_select(3, windows.bias_cols.flatten()).unflatten(3, [size[1], kernel_size[1]])
        out = out + bias.transpose(2, 3).flatten(3).to(out.dtype)
    if windows.missing is not None:
        out = out.masked_fill(windows.missing, -torch.inf)
    return out.to(dtype)


def sums(weights: torch.Tensor, value: torch.Tensor, windows: Windows) -> torch.Tensor:
    """Sums of the values of each query's window by weights; those of keys that it lacks do not count.

    Args:
        weights: (B, heads, H, W, K * L), dtype of `value`.
        value: (B, heads, H, W, D).
        windows: of the map.

    Returns:
        (B, heads, H, W, D), dtype of `value`.
    """
    if windows.missing is not None:
        weights = weights.masked_fill(windows.missing, 0)
    return _apply(_Sums, _sums, weights, value, windows.rows, windows.cols)


def _apply(function: Any, written_out: Any, *args: torch.Tensor) -> torch.Tensor:
    """One of the products; transforms and forward mode differentiate it as it is written out."""
    return written_out(*args) if _derivatives.is_transformed() else function.apply(*args)


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _scores(query: torch.Tensor, key: torch.Tensor, rows: torch.Tensor, cols: torch.Tensor) -> torch.Tensor:
    """out[.., p, t] = query[.., p] . key[.., key t of query p]."""
    wide, out = _wide(query), []
    for i in range(rows.shape[1]):
        line = _wide(key.index_select(2, rows[:, i]))
        out += [(wide * line.index_select(3, cols[:, j])).sum(-1) for j in range(cols.shape[1])]
    return torch.stack(out, -1).to(query.dtype)


def _sums(weights: torch.Tensor, value: torch.Tensor, rows: torch.Tensor, cols: torch.Tensor) -> torch.Tensor:
    """out[.., p] = sum of weights[.., p, t] value[.., key t of query p] over t."""
    shares, out = _wide(weights).unbind(-1), torch.zeros_like(value, dtype=_wide(value[:0]).dtype)
    for i in range(rows.shape[1]):
        line = _wide(value.index_select(2, rows[:, i]))
        for j in range(cols.shape[1]):
            out = out + shares[i * cols.shape[1] + j][..., None] * line.index_select(3, cols[:, j])
    return out.to(value.dtype)


def _spread(weights: torch.Tensor, x: torch.Tensor, rows: torch.Tensor, cols: torch.Tensor) -> torch.Tensor:
    """out[.., m] = sum of weights[.., p, t] x[.., p] over all p and t with m the key t of query p."""
    shares, wide = _wide(weights).unbind(-1), _wide(x)
    out = torch.zeros_like(wide)
    for i in range(rows.shape[1]):
        line = torch.zeros_like(wide)
        for j in range(cols.shape[1]):
            line = line.index_add(3, cols[:, j], shares[i * cols.shape[1] + j][..., None] * wide)
        out = out.index_add(2, rows[:, i], line)
    return out.to(x.dtype)


class _Product(torch.autograd.Function):
    """Of two tensors, in which it is linear."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)


class _Scores(_Product):
    @staticmethod
    def forward(query, key, rows, cols):
        return _scores(query, key, rows, cols)

    @staticmethod
    def backward(ctx, grad):
        query, key, *places = ctx.saved_tensors
        return _apply(_Sums, _sums, grad, key, *places), _apply(_Spread, _spread, grad, query, *places), None, None


class _Sums(_Product):
    @staticmethod
    def forward(weights, value, rows, cols):
        return _sums(weights, value, rows, cols)

    @staticmethod
    def backward(ctx, grad):
        weights, value, *places = ctx.saved_tensors
        return (
            _apply(_Scores, _scores, grad, value, *places),
            _apply(_Spread, _spread, weights, grad, *places),
            None,
            None,
        )


class _Spread(_Product):
    @staticmethod
    def forward(weights, x, rows, cols):
        return _spread(weights, x, rows, cols)

    @staticmethod
    def backward(ctx, grad):
        weights, x, *places = ctx.saved_tensors
        return _apply(_Scores, _scores, x, grad, *places), _apply(_Sums, _sums, weights, grad, *places), None, None
