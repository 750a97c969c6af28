"""Neighborhood attention word by word: every pixel's window of keys and values gathered, the softmax written out."""

import torch


def window(size: int, kernel_size: int, dilation: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Each pixel's window along an axis, and its keys' places in the bias table; (size, kernel_size) both."""
    pixel = torch.arange(size, device=device)[:, None]
    place, residue = pixel // dilation, pixel % dilation
    length = (size - 1 - residue) // dilation + 1
    start = torch.minimum((place - kernel_size // 2).clamp(min=0), length - kernel_size)
    key = start + torch.arange(kernel_size, device=device)
    return key * dilation + residue, key - place + kernel_size - 1


def neighborhood_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    kernel_size: int,
    dilation: int,
    bias_table: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """As the public function, where no residue class is shorter than the window."""
    rows, bias_rows = window(q.shape[1], kernel_size, dilation, q.device)
    cols, bias_cols = window(q.shape[2], kernel_size, dilation, q.device)
    q, k, v = (x.unflatten(3, (num_heads, -1)) for x in (q, k, v))
    # (B, H, W, kernel_size, kernel_size, heads, C / heads)
    keys, values = (x[:, rows[:, None, :, None], cols[None, :, None, :]] for x in (k, v))
    scores = torch.einsum("bhwmd,bhwijmd->bhwmij", q * scale, keys)
    scores = scores + bias_table[:, bias_rows[:, None, :, None], bias_cols[None, :, None, :]].permute(1, 2, 0, 3, 4)
    weights = scores.flatten(-2).softmax(-1).view_as(scores)
    return torch.einsum("bhwmij,bhwijmd->bhwmd", weights, values).flatten(3)
