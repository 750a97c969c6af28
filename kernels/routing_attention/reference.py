"""The definition of bi-level routing attention in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch.fx.experimental.symbolic_shapes import statically_known_true

from .. import _derivatives
from .._precision import own_precision
from ..tracing import is_exporting


def _is_traced() -> bool:
    """Whether `torch.jit.trace` is at work: there a branch on a size would bind the graph to the example's."""
    return False if torch.jit.is_scripting() else torch.jit.is_tracing()


def _padded(size: int, parts: int) -> int:
    """The side of a map whose parts are all whole.

    Of an exported graph, a side that is free must be a multiple: a branch on it would bind the graph to the example's.
    """
    if _is_traced():
        return (size + parts - 1) // parts * parts
    if not torch.jit.is_scripting():
        free = is_exporting() and not statically_known_true(size % parts != 0)
        if free:
            return size
    rest = size % parts
    return size if rest == 0 else size + parts - rest


def to_regions(x: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
    """(B, H, W, C) -> (B, rows * cols, ceil(H / rows) * ceil(W / cols), C), regions and tokens in raster order.

    What the last regions lack is zero.
    """
    b, c = x.shape[0], x.shape[3]
    h, w = _padded(x.shape[1], rows), _padded(x.shape[2], cols)
    if _is_traced() or h != x.shape[1] or w != x.shape[2]:
        x = F.pad(x, (0, 0, 0, w - x.shape[2], 0, h - x.shape[1]))
    x = x.reshape(b, rows, h // rows, cols, w // cols, c).transpose(2, 3)
    # An explicit copy: `reshape` would ask whether one is needed, which binds symbolic sizes to the example's.
    return x.clone(memory_format=torch.contiguous_format).view(b, rows * cols, (h // rows) * (w // cols), c)


def from_regions(x: torch.Tensor, regions: tuple[int, int], height: int, width: int) -> torch.Tensor:
    """The inverse of `to_regions`."""
    rows, cols = regions
    b, c = x.shape[0], x.shape[3]
    h, w = _padded(height, rows), _padded(width, cols)
    x = x.reshape(b, rows, cols, h // rows, w // cols, c).transpose(2, 3)
    x = x.clone(memory_format=torch.contiguous_format).view(b, h, w, c)
    if _is_traced() or h != height or w != width:
        x = x[:, :height, :width]
    return x


def tokens_inside(x: torch.Tensor, rows: int, cols: int) -> torch.Tensor | None:
    """Which tokens of the regions lie on the map (B, H, W, C): (R, T) bool, or None where all do."""
    h, w = x.shape[1], x.shape[2]
    if not _is_traced() and h == _padded(h, rows) and w == _padded(w, cols):
        return None
    return to_regions(torch.ones(1, h, w, 1, dtype=torch.bool, device=x.device), rows, cols)[0, :, :, 0]


def route(q: torch.Tensor, k: torch.Tensor, topk: int, inside: torch.Tensor | None = None) -> torch.Tensor:
    """Chooses for each query region the `topk` key regions whose means match its own mean best.

    Source: Zhu et al., BiFormer, https://arxiv.org/abs/2303.08810, equations 4 and 5. The choice carries no gradient.

    Args:
        q: (B, R, T, C), tokens by region.
        k: (B, R, T, C), tokens by region.
        topk: at most R.
        inside: (R, T) bool, the tokens that count; the others are zero. A key region without any comes last.

    Returns:
        (B, R, topk) int64, indices of key regions, best first.
    """
    q, k = q.detach(), k.detach()
    # In float32 at least: rounded to 16 bits, means and scores would choose other regions.
    dtype = torch.promote_types(q.dtype, torch.float32)
    if inside is None:
        return torch.topk(match(q.mean(2, dtype=dtype), k.mean(2, dtype=dtype)), topk, dim=-1)[1]
    count = inside.sum(1)
    mean_q, mean_k = [x.sum(2, dtype=dtype) / count.clamp(min=1)[:, None] for x in (q, k)]
    scores = match(mean_q, mean_k).masked_fill(count == 0, -float("inf"))
    return torch.topk(scores, topk, dim=-1)[1]


def match(mean_q: torch.Tensor, mean_k: torch.Tensor) -> torch.Tensor:
    """How well the means (B, R, C) of query and key regions match, (B, R, R), in their own precision."""
    if torch.jit.is_scripting():
        return mean_q @ mean_k.transpose(-2, -1)
    else:
        with own_precision(mean_q):
            return mean_q @ mean_k.transpose(-2, -1)


def routing_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    regions: tuple[int, int],
    topk: int,
    scale: float,
) -> torch.Tensor:
    """As the public function."""
    rows, cols = regions
    inside = tokens_inside(q, rows, cols)
    height, width = q.shape[1], q.shape[2]
    q, k, v = to_regions(q, rows, cols), to_regions(k, rows, cols), to_regions(v, rows, cols)
    index = route(q, k, topk, inside)
    return from_regions(_attend(q, k, v, index, inside, num_heads, scale), regions, height, width)


def attend_to_chosen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    index: torch.Tensor,
    num_heads: int,
    regions: tuple[int, int],
    scale: float,
) -> torch.Tensor:
    """`routing_attention` over the key regions of an index (B, R, topk)."""
    rows, cols = regions
    inside = tokens_inside(q, rows, cols)
    height, width = q.shape[1], q.shape[2]
    q, k, v = to_regions(q, rows, cols), to_regions(k, rows, cols), to_regions(v, rows, cols)
    return from_regions(_attend(q, k, v, index, inside, num_heads, scale), regions, height, width)


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    index: torch.Tensor,
    inside: torch.Tensor | None,
    num_heads: int,
    scale: float,
) -> torch.Tensor:
    """Of regions, (B, R, T, C) -> the same, over those of an index (B, R, topk)."""
    b, count, tokens, c = q.shape
    topk = index.shape[2]
    mask: torch.Tensor | None = None
    if inside is not None:
        mask = inside.index_select(0, index.flatten()).view(b * count, 1, 1, topk * tokens)
    # One row a region, so that a gather moves whole contiguous rows and its gradient is one index_add.
    first = torch.arange(b, device=q.device) * count
    index = (index + first[:, None, None]).flatten()
    k = k.reshape(b * count, tokens * c).index_select(0, index)
    v = v.reshape(b * count, tokens * c).index_select(0, index)
    head_dim = c // num_heads
    out = _derivatives.attend(
        q.reshape(b * count, tokens, num_heads, head_dim).transpose(1, 2),
        k.reshape(b * count, topk * tokens, num_heads, head_dim).transpose(1, 2),
        v.reshape(b * count, topk * tokens, num_heads, head_dim).transpose(1, 2),
        mask,
        scale,
    )
    return out.transpose(1, 2).reshape(b, count, tokens, c)
