"""Approximate attention: blocks of queries see the blocks of keys whose means are most like theirs."""

import torch
from torch._subclasses import FakeTensor

from .. import _checks, _derivatives, _dispatch
from ..tracing import leaves_sizes_free, untraced
from .cpu import attend
from .selection import select_blocks

__all__ = ["block_sparse_attention"]


def block_sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    block_size: int | tuple[int, int] = (128, 64),
    similarity: float = 0.1,
    topk: float | None = 0.5,
    cdf: float | None = None,
    scale: float | None = None,
    block_map: torch.Tensor | None = None,
) -> torch.Tensor:
    """An approximation of attention that leaves out the blocks of keys that seem to count least for a block of queries.

    Tokens fall into blocks in their order, the last of which may be shorter. A block whose tokens are alike is
    represented by its mean: `similarity` is the least mean of all pairs' cosine similarities (a token's with itself
    among them) for that. Of the softmax over the scaled products of a query block's mean with the means of such key
    blocks the largest are kept: a share `topk` of all key blocks, rounded down, or as many as have together no more
    than `cdf`; one at least. Blocks of keys that are not alike are kept for all queries, and blocks of queries that are
    not alike keep all keys. Then attention is exact over the keys that are left.

    How far the result is from attention depends on the data: nothing bounds it. Neighbours in a block should be alike,
    so tokens of a map should be ordered tile by tile; in raster order a block spans rows, its tokens are not alike, and
    all is kept. SpargeAttn subtracts the mean of k from k first, which leaves attention as it is and changes what is
    alike, computes in int8 and skips more by an online filter; none of that is here.

    The choice passes no gradients: they are those of attention over what was kept.

    In plain PyTorch. On the CPU the blocks that are left out cost nothing; on other devices, and in graphs that are
    compiled or exported, they are computed and masked, and nothing is saved.

    Source: Zhang et al., SpargeAttn, https://arxiv.org/abs/2502.18137, section 3.2.

    Args:
        q: (B, heads, N, D), floating point, any strides; B may be 0.
        k: (B, heads, M, D).
        v: (B, heads, M, E).
        block_size: of queries and of keys, or of both; at least 1.
        similarity: -1 keeps nothing for want of likeness, above 1 keeps everything.
        topk: above 0, to 1; None where `cdf` is given.
        cdf: 0 to 1.
        scale: factor of the dot products, finite, by default D ** -0.5.
        block_map: (B, heads, query blocks, key blocks) of bool, what is kept, in place of that choice, as
            `selection.select_blocks` makes it; every block of queries must keep a block of keys.

    Returns:
        (B, heads, N, E), dtype of `q`; under autocast q, k and v are taken in its dtype first.

    Raises:
        TypeError: for what is no tensor of floating-point numbers, no integer or no number.
        ValueError: where shapes, dtypes, devices, or numbers do not fit each other.
    """
    q, k, v = _dispatch.autocast(q, k, v)
    sides = untraced(_check, q, k, v, block_size, similarity, topk, cdf, scale, block_map)
    if scale is None:
        scale = untraced(_default_scale, q)
    if not leaves_sizes_free() and q.numel() == 0:
        return _derivatives.nothing((*q.shape[:3], v.shape[3]), q, k, v)
    if block_map is None:
        block_map = select_blocks(q, k, sides, similarity, topk, cdf, scale)
    return attend(q, k, v, block_map, sides, scale)


def _default_scale(q: torch.Tensor) -> float:
    return float(q.shape[3]) ** -0.5


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    block_size: int | tuple[int, int],
    similarity: float,
    topk: float | None,
    cdf: float | None,
    scale: float | None,
    block_map: torch.Tensor | None,
) -> tuple[int, int]:
    """The sides of a block."""
    _checks.check_tokens(q, k, v)
    _checks.check_scale(scale)
    sides = _checks.both("block_size", block_size)
    if min(sides) < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    if block_map is not None:
        _check_map(block_map, q, k, sides)
        return sides
    _checks.check_number("similarity", similarity)
    if (topk is None) == (cdf is None):
        raise ValueError(f"topk or cdf must be given, and the other None, got {topk} and {cdf}")
    if topk is not None:
        _checks.check_number("topk", topk)
        if not 0 < topk <= 1:
            raise ValueError(f"topk must be above 0, to 1, got {topk}")
    if cdf is not None:
        _checks.check_number("cdf", cdf)
        if not 0 <= cdf <= 1:
            raise ValueError(f"cdf must be 0 to 1, got {cdf}")
    return sides


def _check_map(block_map: torch.Tensor, q: torch.Tensor, k: torch.Tensor, sides: tuple[int, int]) -> None:
    if not isinstance(block_map, torch.Tensor) or block_map.dtype != torch.bool:
        raise TypeError(f"block_map must be a tensor of bool, got {_checks.said(block_map)}")
    if block_map.device != q.device:
        raise ValueError(f"block_map must be on {q.device} as q is, got {block_map.device}")
    if leaves_sizes_free():
        return
    wanted = (*q.shape[:2], -(-q.shape[2] // sides[0]), -(-k.shape[2] // sides[1]))
    if tuple(block_map.shape) != wanted:
        raise ValueError(f"block_map must be {wanted}, got {_checks.shape(block_map)}")
    has_values = not (torch.compiler.is_compiling() or block_map.is_meta or isinstance(block_map, FakeTensor))
    if has_values and not block_map.any(-1).all():
        raise ValueError("block_map must keep a block of keys for every block of queries, got one that keeps none")
