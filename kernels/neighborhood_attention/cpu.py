"""Neighborhood attention in plain PyTorch by blocks, and by columns of windows where a graph leaves sizes free.

Along an axis, pixel i stands at position i // dilation of residue class i % dilation, and attends to `kernel_size`
consecutive positions of its own class: those around it, the outermost ones where it is near the border, or all of a
class that has fewer. So the pixels of one class are a dense map of their own, and a tile of neighbouring queries needs
one block of keys that is little larger than the tile. Blocks are multiplied densely, keys outside of a query's window
masked away, and the tiles away from the borders share one mask and bias.

With a stride, so many neighbouring queries share the window of one of them, and a causal axis has no keys behind the
query: generalized neighborhood attention (`generalized.py`), of which the other is the case of stride 1.
"""

import torch
import torch.nn.functional as F

from .. import _derivatives
from ..tracing import leaves_sizes_free
from ..window_attention.cpu import attend_with_bias
from .naive import window

# What a window is along an axis: its size, its stride, whether it is causal.
Axis = tuple[int, int, bool]


def _table_index(query: torch.Tensor, key: torch.Tensor, length: int, axis: Axis) -> torch.Tensor:
    """Rows or columns of the bias table, for queries and keys of one axis by their positions in a residue class.

    Args:
        query: int64, broadcast against `key`.
        key: int64.
        length: of the class.
        axis: window.

    Returns:
        Key minus query plus `kernel_size - 1`; `2 * kernel_size - 1` for keys outside of the query's window.
    """
    kernel_size, stride, causal = axis
    group = query // stride * stride
    if causal:
        first = ((group + stride).clamp(max=length) - kernel_size).clamp(min=0)
        inside = (key >= first) & (key <= query)
    else:
        first = ((group + stride // 2).clamp(max=length - 1) - kernel_size // 2).clamp(max=length - kernel_size)
        first = first.clamp(min=0)
        inside = (key >= first) & (key < first + kernel_size)
    return torch.where(inside, key - query + kernel_size - 1, 2 * kernel_size - 1)


def _segments(length: int, axis: Axis) -> list[tuple[int, int, int, int, int]]:
    """Cuts an axis into runs of equal tiles: the first tile, those away from both ends, the last.

    Returns:
        Of each run: number and size of its tiles, their first query, size and start of the first tile's keys.
    """
    kernel_size, stride, causal = axis
    # Small, so that few keys of a block are masked, but a block must span no more than two tiles: see `_blocks`.
    tile = (kernel_size + stride - 1) // stride * stride
    # Away from both ends a tile's keys: how many there are, and how far they begin before its queries.
    size, before = tile - stride + kernel_size, kernel_size // 2 - stride // 2
    if causal:
        before = kernel_size - stride
    first = 1 if before > 0 else 0
    # The tile behind the last of these: as many as have all of their keys, or two tiles of them where they need these.
    end = (length + before - (2 * tile if size > tile else size)) // tile + 1
    # Shorter axes are hardly longer than a block.
    if end <= first:
        return [(1, length, 0, length, 0)]
    runs: list[tuple[int, int, int, int, int]] = []
    if first > 0:
        runs.append((1, tile, 0, size - before, 0))
    runs.append((end - first, tile, first * tile, size, first * tile - before))
    if length > end * tile:
        start = min(end * tile - before, length - kernel_size)
        runs.append((1, length - end * tile, end * tile, length - start, start))
    return runs


def _segment_index(
    segment: tuple[int, int, int, int, int], length: int, axis: Axis, like: torch.Tensor
) -> torch.Tensor:
    """`_table_index` of a run's tiles, (queries * keys of a tile,)."""
    query = torch.arange(segment[1], device=like.device)[:, None] + segment[2]
    key = torch.arange(segment[3], device=like.device) + segment[4]
    return _table_index(query, key, length, axis).flatten()


def _blocks(x: torch.Tensor, dim: int, count: int, step: int, start: int, size: int) -> torch.Tensor:
    """Replaces dimension `dim` by (count, size): blocks of at most `2 * step` positions that begin `step` apart."""
    if count == 1:
        return x.narrow(dim, start, size).unsqueeze(dim)
    blocks = x.narrow(dim, start, count * step).unflatten(dim, [count, step])
    if size > step:
        # Not `Tensor.unfold`: the gradient of a concatenation is made of views.
        following = x.narrow(dim, start + step, count * step).unflatten(dim, [count, step])
        blocks = torch.cat([blocks, following.narrow(dim + 1, 0, size - step)], dim + 1)
    return blocks


def _tokens(
    x: torch.Tensor, rows: tuple[int, int, int, int, int], cols: tuple[int, int, int, int, int], keys: bool
) -> torch.Tensor:
    """Queries or keys of two runs, (N, heads, H, W, D) -> (N * tiles, heads, pixels of a tile or block, D)."""
    if keys:
        x = _blocks(x, 2, rows[0], rows[1], rows[4], rows[3]).transpose(1, 2)
        x = _blocks(x, 4, cols[0], cols[1], cols[4], cols[3])
    else:
        x = _blocks(x, 2, rows[0], rows[1], rows[2], rows[1]).transpose(1, 2)
        x = _blocks(x, 4, cols[0], cols[1], cols[2], cols[1])
    return x.permute(0, 1, 4, 2, 3, 5, 6).flatten(4, 5).flatten(0, 2)


def _undilated(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    table: torch.Tensor,
    row_axis: Axis,
    col_axis: Axis,
    scale: float,
) -> torch.Tensor:
    """(N, heads, H, W, D) -> (N, H, W, heads, D); `table` has -inf in its last row and column."""
    n, heads, height, width, dim = q.shape
    col_segments = _segments(width, col_axis)
    col_indices = [_segment_index(cols, width, col_axis, q) for cols in col_segments]
    out_rows = []
    for rows in _segments(height, row_axis):
        row_table = table.index_select(1, _segment_index(rows, height, row_axis, q))
        out_cols = []
        for cols, index in zip(col_segments, col_indices):  # noqa: B905, TorchScript knows no `strict`
            bias = row_table.index_select(2, index).unflatten(2, [cols[1], cols[3]]).unflatten(1, [rows[1], rows[3]])
            bias = bias.transpose(2, 3).flatten(3, 4).flatten(1, 2)
            query = _tokens(q, rows, cols, keys=False)
            key, value = _tokens(k, rows, cols, keys=True), _tokens(v, rows, cols, keys=True)
            if torch.jit.is_scripting():
                out = _derivatives.attend(query, key, value, bias[None].to(q.dtype), scale)
            elif bias.requires_grad and not _derivatives.is_transformed():
                # What `scaled_dot_product_attention` would do for a bias that learns, in fewer passes.
                out = attend_with_bias(query, key, value, bias, heads, scale)
            else:
                out = _derivatives.attend(query, key, value, bias[None].to(q.dtype), scale)
            out = out.reshape(n, rows[0], cols[0], heads, rows[1], cols[1], dim).permute(0, 1, 4, 2, 5, 3, 6)
            out_cols.append(out.flatten(3, 4).flatten(1, 2))
        out_rows.append(torch.cat(out_cols, 2))
    return torch.cat(out_rows, 1)


def _classes(size: int, dilation: int) -> list[tuple[int, int, int]]:
    """Residue classes of equal length: the first class, their number, their length."""
    longer, length = size % dilation, size // dilation
    if longer == 0:
        return [(0, dilation, length)]
    if length == 0:
        return [(0, longer, 1)]
    return [(0, longer, length + 1), (longer, dilation - longer, length)]


def _tiled(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    row_axis: Axis,
    col_axis: Axis,
    dilation: tuple[int, int],
    table: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    b, height, width, c = q.shape
    # Beyond the map's sides every pixel is a class of its own: larger ones would but pad.
    down, right = min(dilation[0], height), min(dilation[1], width)
    length_h, length_w = (height + down - 1) // down, (width + right - 1) // right
    pad = (0, 0, 0, length_w * right - width, 0, length_h * down - height)
    maps = []
    for x in (q, k, v):
        if pad[3] > 0 or pad[5] > 0:
            x = F.pad(x, pad)
        x = x.unflatten(3, [num_heads, c // num_heads])
        x = x.unflatten(2, [length_w, right]).unflatten(1, [length_h, down])
        maps.append(x.permute(0, 2, 4, 5, 1, 3, 6))
    out_rows = []
    for top, count_h, h in _classes(height, down):
        out_cols = []
        for left, count_w, w in _classes(width, right):
            part = [x[:, top : top + count_h, left : left + count_w, :, :h, :w].flatten(0, 2) for x in maps]
            out = _undilated(part[0], part[1], part[2], table, row_axis, col_axis, scale)
            out = out.reshape(b, count_h, count_w, h, w, c).permute(0, 3, 1, 4, 2, 5)
            # Places that the shorter classes lack lie in the padding.
            out_cols.append(F.pad(out, (0, 0, 0, 0, 0, length_w - w, 0, 0, 0, length_h - h)))
        out_rows.append(torch.cat(out_cols, 4))
    out = torch.cat(out_rows, 2).flatten(3, 4).flatten(1, 2)
    return out[:, :height, :width]


def _gathered(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    row_axis: Axis,
    col_axis: Axis,
    dilation: tuple[int, int],
    table: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """`_tiled` without cuts that depend on sizes, which a graph leaves free; slower, a column of windows at a time.

    16-bit numbers are rounded once, as there: factors in float32 take the products and sums with them.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    height, width = q.shape[1], q.shape[2]
    rows, bias_rows = window(height, row_axis[0], dilation[0], q.device, row_axis[1], row_axis[2])
    cols, bias_cols = window(width, col_axis[0], dilation[1], q.device, col_axis[1], col_axis[2])
    query = (q.to(dtype) * scale).unflatten(3, [num_heads, -1])[:, :, None]
    # (B, H, rows of a window, W, heads, D)
    key = k.unflatten(3, [num_heads, -1]).index_select(1, rows.flatten()).unflatten(1, [height, row_axis[0]])
    value = v.unflatten(3, [num_heads, -1]).index_select(1, rows.flatten()).unflatten(1, [height, row_axis[0]])
    bias = table.index_select(1, bias_rows.flatten()).unflatten(1, [height, row_axis[0]]).permute(1, 2, 3, 0)
    scores = torch.stack(
        [
            (query * key.index_select(3, cols[:, j])).sum(-1) + bias.index_select(2, bias_cols[:, j]).to(q.dtype)
            for j in range(col_axis[0])
        ]
    )
    weights = (scores - scores.amax((0, 3), keepdim=True)).exp()
    weights = (weights / weights.sum((0, 3), keepdim=True))[..., None]
    out = (weights[0] * value.index_select(3, cols[:, 0])).sum(2)
    for j in range(1, col_axis[0]):
        out = out + (weights[j] * value.index_select(3, cols[:, j])).sum(2)
    return out.flatten(3).to(q.dtype)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    kernel_size: int,
    dilation: int,
    bias_table: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """`neighborhood_attention` of arguments that fit each other."""
    axis = (kernel_size, 1, False)
    return attend_along(q, k, v, num_heads, axis, axis, (dilation, dilation), bias_table, scale)


def attend_tiled(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    kernel_size: int,
    dilation: int,
    bias_table: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """`attend` for one size, quicker, and differentiable in any way."""
    axis, table = (kernel_size, 1, False), _table(q, kernel_size, kernel_size, bias_table)
    return _tiled(q, k, v, num_heads, axis, axis, (dilation, dilation), table, scale)


def attend_along(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    row_axis: Axis,
    col_axis: Axis,
    dilation: tuple[int, int],
    bias_table: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """`generalized_neighborhood_attention` of arguments that fit each other."""
    table = _table(q, row_axis[0], col_axis[0], bias_table)
    if torch.jit.is_scripting():
        return _tiled(q, k, v, num_heads, row_axis, col_axis, dilation, table, scale)
    else:
        # A graph of tiles is long and fits one size: what is compiled, exported or traced serves them all.
        if not torch.compiler.is_compiling() and not leaves_sizes_free():
            return _tiled(q, k, v, num_heads, row_axis, col_axis, dilation, table, scale)
        return _gathered(q, k, v, num_heads, row_axis, col_axis, dilation, table, scale)


def _table(q: torch.Tensor, rows: int, cols: int, bias_table: torch.Tensor | None) -> torch.Tensor:
    """The table of windows of these sides, with a row and a column more, for keys that are masked."""
    # In float32 at least: many a pair of query and key adds to the gradient of one entry.
    dtype = torch.promote_types(q.dtype, torch.float32)
    if bias_table is None:
        bias_table = torch.zeros([1, 2 * rows - 1, 2 * cols - 1], dtype=dtype, device=q.device)
    return F.pad(bias_table.to(dtype), [0, 1, 0, 1], value=float("-inf"))
