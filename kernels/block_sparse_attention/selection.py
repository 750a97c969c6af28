"""Which blocks of keys a block of queries keeps: by the means of blocks whose tokens are alike."""

import torch
import torch.nn.functional as F


def select_blocks(
    q: torch.Tensor,
    k: torch.Tensor,
    block_size: tuple[int, int],
    similarity: float,
    topk: float | None,
    cdf: float | None,
    scale: float,
) -> torch.Tensor:
    """The choice of `block_sparse_attention`, whose arguments these are: an approximation.

    Returns:
        (B, heads, query blocks, key blocks) of bool: what is kept.
    """
    means, alike = zip(*(describe(x.detach(), side) for x, side in zip((q, k), block_size, strict=True)), strict=True)
    like_queries, like_keys = (x > similarity for x in alike)
    order, index = block_scores(means[0], means[1], like_keys, scale).sort(-1, descending=True)
    rank = torch.arange(order.shape[-1], device=order.device)
    kept = (rank == 0).expand(order.shape)
    if topk is not None:
        # In float64, as Python computes what is rounded down.
        kept = kept | ((rank + 1).double() <= topk * order.shape[-1])
    if cdf is not None:
        kept = kept | (order.cumsum(-1) <= cdf)
    chosen = torch.zeros_like(kept).scatter(-1, index, kept)
    return chosen | ~like_keys[..., None, :] | ~like_queries[..., None]


def describe(x: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of the blocks of (B, heads, N, D), (B, heads, blocks, D), and how alike a block's tokens are, (.., blocks).

    The mean cosine similarity of all pairs is the squared length of the mean of the tokens' directions.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    count = (x.shape[2] + side - 1) // side
    blocks = F.pad(x, (0, 0, 0, count * side - x.shape[2])).unflatten(2, (count, side))
    lengths = (x.shape[2] - side * torch.arange(count, device=x.device)).clamp(max=side).to(x.dtype)[:, None]
    directions = F.normalize(blocks, dim=-1).sum(3) / lengths
    return blocks.sum(3) / lengths, directions.square().sum(-1)


def block_scores(query: torch.Tensor, key: torch.Tensor, alike: torch.Tensor, scale: float) -> torch.Tensor:
    """Softmax over the key blocks that are alike, of the scaled products of means; NaN where none is."""
    products = scale * query @ key.transpose(-2, -1)
    return products.masked_fill(~alike[..., None, :], -torch.inf).softmax(-1)
