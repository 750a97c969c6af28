"""The definition of bi-level routing attention in plain PyTorch."""

import torch
import torch.nn.functional as F


def to_regions(x: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
    """(B, H, W, C) -> (B, rows * cols, H/rows * W/cols, C), regions and tokens in raster order."""
    b, h, w, c = x.shape
    x = x.reshape(b, rows, h // rows, cols, w // cols, c).transpose(2, 3)
    # An explicit copy: `reshape` would ask whether one is needed, which binds symbolic sizes to the example's.
    return x.clone(memory_format=torch.contiguous_format).view(b, rows * cols, (h // rows) * (w // cols), c)


def from_regions(x: torch.Tensor, regions: tuple[int, int], height: int, width: int) -> torch.Tensor:
    """The inverse of `to_regions`."""
    rows, cols = regions
    b, c = x.shape[0], x.shape[3]
    x = x.reshape(b, rows, cols, height // rows, width // cols, c).transpose(2, 3)
    return x.clone(memory_format=torch.contiguous_format).view(b, height, width, c)


def route(q: torch.Tensor, k: torch.Tensor, topk: int) -> torch.Tensor:
    """Chooses for each query region the `topk` key regions whose means match its own mean best.

    Source: Zhu et al., BiFormer, https://arxiv.org/abs/2303.08810, equations 4 and 5. The choice carries no gradient.

    Args:
        q: (B, R, T, C), tokens by region.
        k: (B, R, T, C), tokens by region.
        topk: at most R.

    Returns:
        (B, R, topk) int64, indices of key regions, best first.
    """
    scores = q.detach().mean(2) @ k.detach().mean(2).transpose(-2, -1)
    return torch.topk(scores, topk, dim=-1)[1]


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
    b, h, w, c = q.shape
    q, k, v = to_regions(q, rows, cols), to_regions(k, rows, cols), to_regions(v, rows, cols)
    count, tokens = rows * cols, (h // rows) * (w // cols)
    index = route(q, k, topk)
    # One row a region, so that a gather moves whole contiguous rows and its gradient is one index_add.
    first = torch.arange(b, device=q.device) * count
    index = (index + first[:, None, None]).flatten()
    k = k.reshape(b * count, tokens * c).index_select(0, index)
    v = v.reshape(b * count, tokens * c).index_select(0, index)
    head_dim = c // num_heads
    out = F.scaled_dot_product_attention(
        q.reshape(b * count, tokens, num_heads, head_dim).transpose(1, 2),
        k.reshape(b * count, topk * tokens, num_heads, head_dim).transpose(1, 2),
        v.reshape(b * count, topk * tokens, num_heads, head_dim).transpose(1, 2),
        scale=scale,
    )
    return from_regions(out.transpose(1, 2).reshape(b, count, tokens, c), regions, h, w)
