"""Block-sparse attention word by word: all pairs of a block's tokens compared, what is left out masked."""

import torch


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
    """As the public function."""
    scale = q.shape[3] ** -0.5 if scale is None else scale
    rows, cols = (block_size, block_size) if isinstance(block_size, int) else block_size
    if block_map is None:
        block_map = select_blocks(q.detach(), k.detach(), rows, cols, similarity, topk, cdf, scale)
    seen = block_map.repeat_interleave(rows, 2)[:, :, : q.shape[2]]
    seen = seen.repeat_interleave(cols, 3)[:, :, :, : k.shape[2]]
    return (scale * q @ k.transpose(2, 3)).masked_fill(~seen, -torch.inf).softmax(-1) @ v


def select_blocks(q, k, rows, cols, similarity, topk, cdf, scale):
    """What is kept, (B, heads, query blocks, key blocks) of bool."""
    queries, keys = q.split(rows, 2), k.split(cols, 2)
    like_queries, like_keys = (torch.stack([_likeness(x) > similarity for x in parts], -1) for parts in (queries, keys))
    means = [torch.stack([x.mean(2) for x in parts], 2) for parts in (queries, keys)]
    scores = scale * means[0] @ means[1].transpose(2, 3)
    scores = scores.masked_fill(~like_keys[:, :, None], -torch.inf).softmax(-1)
    order, index = scores.sort(-1, descending=True)
    if cdf is None:
        kept = torch.arange(len(keys), device=q.device).expand(order.shape) < int(topk * len(keys))
    else:
        kept = order.cumsum(-1) <= cdf
    # One at least.
    kept = kept.index_fill(-1, torch.zeros(1, dtype=torch.long, device=q.device), True)
    chosen = torch.zeros_like(kept).scatter(-1, index, kept)
    return chosen | ~like_keys[:, :, None] | ~like_queries[..., None]


def _likeness(x):
    """Mean cosine similarity of all pairs of tokens, (B, heads, N, D) -> (B, heads)."""
    x = torch.nn.functional.normalize(x, dim=-1)
    return (x @ x.transpose(2, 3)).mean((2, 3))
