"""Window attention as it is published: the map rolled, its windows copied, bias and mask laid out for every window."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]


def softmax_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention written out, all of its matrix in memory."""
    return ((q * scale) @ k.transpose(-2, -1) + bias).softmax(-1) @ v


def fused_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, scale: float
) -> torch.Tensor:
    """PyTorch's own, the bias as its mask."""
    return F.scaled_dot_product_attention(q, k, v, bias, scale=scale)


def window_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    window_size: int,
    shift: int,
    overlap: int,
    bias_table: torch.Tensor,
    scale: float,
    attend: Attend = softmax_attention,
) -> torch.Tensor:
    """As the public function, for square windows: Swin's way with a shift, HAT's way with an overlap."""
    b, height, width, c = q.shape
    size = window_size + overlap
    q, k, v = (torch.roll(x, (-shift, -shift), (1, 2)) for x in (q, k, v))
    keys, values = (F.pad(x, (0, 0, *[overlap // 2] * 4)) for x in (k, v))
    bias = _bias(bias_table, window_size, overlap) + _mask(height, width, window_size, shift, q)
    out = attend(
        _windows(q, num_heads, window_size, window_size),
        _windows(keys, num_heads, size, window_size),
        _windows(values, num_heads, size, window_size),
        bias.repeat(b, 1, 1, 1) if shift else bias,
        scale,
    )
    out = out.unflatten(2, (window_size, window_size)).unflatten(0, (b, height // window_size, width // window_size))
    out = out.permute(0, 1, 4, 2, 5, 3, 6).reshape(b, height, width, c)
    return torch.roll(out, (shift, shift), (1, 2))


def _windows(x: torch.Tensor, num_heads: int, size: int, step: int) -> torch.Tensor:
    """(B, H, W, C) -> (windows, heads, pixels, C / heads)."""
    x = x.unfold(1, size, step).unfold(2, size, step).unflatten(3, (num_heads, -1))
    return x.permute(0, 1, 2, 3, 5, 6, 4).flatten(4, 5).flatten(0, 2)


def _bias(table: torch.Tensor, window: int, overlap: int) -> torch.Tensor:
    """(1, heads, queries, keys)."""
    query = torch.arange(window, device=table.device)
    key = torch.arange(-(overlap // 2), window + overlap // 2, device=table.device)
    apart = query[:, None] - key + window - 1 + overlap // 2
    index = apart[:, None, :, None] * (2 * window - 1 + overlap) + apart[None, :, None, :]
    return table[index.flatten()].view(window**2, (window + overlap) ** 2, -1).permute(2, 0, 1)[None]


def _mask(height: int, width: int, window: int, shift: int, like: torch.Tensor) -> torch.Tensor:
    """(windows, 1, queries, keys): -100 between pixels that the roll brought together, 0 elsewhere."""
    if shift == 0:
        return like.new_zeros(())

    def labels(size: int) -> torch.Tensor:
        place = torch.arange(size, device=like.device)
        return (place >= size - window).int() + (place >= size - shift).int()

    region = labels(height)[:, None] * 3 + labels(width)
    region = _windows(region[None, :, :, None], 1, window, window).squeeze(-1)
    return -100.0 * (region[..., None] != region[..., None, :]).to(like.dtype)
