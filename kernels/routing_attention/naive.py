"""Bi-level routing attention as it is published: keys and values gathered region by region, the softmax written out."""

import torch
import torch.nn.functional as F


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
    b, height, width, _ = q.shape
    inside = to_regions(q.new_ones(1, height, width, 1), regions)
    q, k, v = (to_regions(x, regions) for x in (q, k, v))
    index = route(q, k, inside, topk)
    # (B, R, heads, topk * T, C / heads)
    keys, values = (_gather(x, index).unflatten(3, (num_heads, -1)).transpose(2, 3) for x in (k, v))
    hidden = _gather(inside.expand(b, -1, -1, -1), index)[:, :, None, None, :, 0] == 0
    q = q.unflatten(3, (num_heads, -1)).transpose(2, 3)
    scores = ((q * scale) @ keys.transpose(-2, -1)).masked_fill(hidden, -torch.inf)
    out = scores.softmax(-1) @ values
    return from_regions(out.transpose(2, 3).flatten(3), regions, height, width)


def routing_attention_packed(
    qkv: torch.Tensor,
    num_heads: int,
    regions: tuple[int, int],
    topk: int,
    scale: float,
    local_weight: torch.Tensor | None = None,
    local_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """As the public function."""
    q, k, v = qkv.chunk(3, -1)
    out = routing_attention(q, k, v, num_heads, regions, topk, scale)
    if local_weight is None:
        return out
    padding = [side // 2 for side in local_weight.shape[2:]]
    local = F.conv2d(v.permute(0, 3, 1, 2), local_weight, local_bias, padding=padding, groups=v.shape[3])
    return out + local.permute(0, 2, 3, 1)


def route(q: torch.Tensor, k: torch.Tensor, inside: torch.Tensor, topk: int) -> torch.Tensor:
    """Indices (B, R, topk) of the regions whose mean keys match the mean queries best; those off the map come last.

    Args:
        q: (B, R, T, C), zero off the map.
        k: like `q`.
        inside: (1, R, T, 1), 1 on the map and 0 off it.
        topk: at most R.
    """
    count = inside.sum(2)
    mean_q, mean_k = (x.sum(2) / count.clamp(min=1) for x in (q, k))
    scores = (mean_q @ mean_k.transpose(1, 2)).masked_fill(count.transpose(1, 2) == 0, -torch.inf)
    return scores.topk(topk)[1]


def to_regions(x: torch.Tensor, regions: tuple[int, int]) -> torch.Tensor:
    """(B, H, W, C) -> (B, R, T, C): T pixels of R regions, zero beyond the map."""
    rows, cols = regions
    height, width = -(-x.shape[1] // rows), -(-x.shape[2] // cols)
    x = F.pad(x, (0, 0, 0, cols * width - x.shape[2], 0, rows * height - x.shape[1]))
    x = x.unflatten(2, (cols, width)).unflatten(1, (rows, height))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def from_regions(x: torch.Tensor, regions: tuple[int, int], height: int, width: int) -> torch.Tensor:
    """The inverse of `to_regions`, for a map of these sides."""
    x = x.unflatten(2, (-(-height // regions[0]), -1)).unflatten(1, regions)
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :height, :width]


def _gather(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """(B, R, T, C) by (B, R, topk) -> (B, R, topk * T, C)."""
    b, count, tokens, c = x.shape
    places = index[..., None, None].expand(-1, -1, -1, tokens, c)
    return x[:, None].expand(b, count, count, tokens, c).gather(2, places).flatten(2, 3)
