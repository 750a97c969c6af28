"""Bi-level routing attention as it is published: keys and values gathered region by region, the softmax written out."""

import torch

from .reference import from_regions, route, to_regions


def routing_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    regions: tuple[int, int],
    topk: int,
    scale: float,
) -> torch.Tensor:
    """As the public function, where H and W are multiples of the regions."""
    _, h, w, c = q.shape
    q, k, v = (to_regions(x, *regions) for x in (q, k, v))
    b, count, tokens, _ = q.shape
    index = route(q, k, topk)[..., None, None].expand(b, count, topk, tokens, c)
    # (B, R, heads, topk * T, C / heads)
    k, v = (
        x[:, None].expand(b, count, count, tokens, c).gather(2, index).flatten(2, 3).unflatten(3, (num_heads, -1))
        for x in (k, v)
    )
    k, v = k.transpose(2, 3), v.transpose(2, 3)
    q = q.unflatten(3, (num_heads, -1)).transpose(2, 3)
    out = ((q * scale) @ k.transpose(-2, -1)).softmax(-1) @ v
    return from_regions(out.transpose(2, 3).flatten(3), regions, h, w)
