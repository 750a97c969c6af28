"""The definition of bi-level routing attention in plain PyTorch."""

import torch
import torch.nn.functional as F


def _regions(x: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
    """(B, H, W, C) -> (B, rows * cols, H/rows * W/cols, C), regions and tokens in raster order."""
    b, h, w, c = x.shape
    x = x.reshape(b, rows, h // rows, cols, w // cols, c).transpose(2, 3)
    # An explicit copy: `reshape` would ask whether one is needed, which binds symbolic sizes to the example's.
    return x.clone(memory_format=torch.contiguous_format).view(b, rows * cols, (h // rows) * (w // cols), c)


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


def _check(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int, regions: tuple[int, int], topk: int
) -> None:
    if q.dim() != 4 or q.shape != k.shape or q.shape != v.shape:
        raise ValueError(f"q, k and v must be (B, H, W, C) alike, got {q.shape}, {k.shape} and {v.shape}")
    rows, cols = regions
    if q.shape[3] % num_heads != 0:
        raise ValueError(f"num_heads must divide C = {q.shape[3]}, got {num_heads}")
    if not 1 <= topk <= rows * cols:
        raise ValueError(f"topk must be 1 to {rows * cols} for regions {(rows, cols)}, got {topk}")
    # Sizes of a graph that is being traced must stay symbolic: a check would bind them to the example's.
    if not torch.compiler.is_compiling() and (q.shape[1] % rows != 0 or q.shape[2] % cols != 0):
        raise ValueError(f"H and W must be multiples of regions {regions}, got {(q.shape[1], q.shape[2])}")


def routing_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    regions: tuple[int, int],
    topk: int,
    scale: float,
) -> torch.Tensor:
    """Attention of each query region over the tokens of its `topk` best key regions; routing is shared by the heads.

    Source: Zhu et al., BiFormer, https://arxiv.org/abs/2303.08810, equations 3 to 7.

    Args:
        q: (B, H, W, C), floating point, any strides.
        k: like `q`.
        v: like `q`.
        num_heads: divides C.
        regions: (rows, columns) of the region grid; H must be a multiple of rows and W of columns.
        topk: regions that a query region attends to, 1 to rows * columns.
        scale: factor of the dot products. The published models use C ** -0.5 over all heads together.

    Returns:
        (B, H, W, C), dtype of `q`.

    Raises:
        ValueError: where H, W, C or `topk` do not fit `regions` and `num_heads`.
    """
    rows, cols = regions
    b, h, w, c = q.shape
    if not torch.jit.is_scripting():
        _check(q, k, v, num_heads, regions, topk)
    q, k, v = _regions(q, rows, cols), _regions(k, rows, cols), _regions(v, rows, cols)
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
    out = out.transpose(1, 2).reshape(b, rows, cols, h // rows, w // cols, c).transpose(2, 3)
    return out.clone(memory_format=torch.contiguous_format).view(b, h, w, c)
