"""Neighborhood attention word by word: every pixel's window of keys and values gathered, the softmax written out."""

import torch
import torch.nn.functional as F


def neighborhood_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    kernel_size: int,
    dilation: int = 1,
    bias_table: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """As the public function."""
    scale = (q.shape[3] // num_heads) ** -0.5 if scale is None else scale
    side = 2 * kernel_size - 1
    table = q.new_zeros(num_heads, side, side) if bias_table is None else bias_table
    # Its last row and column are of the keys that a short class lacks.
    table = F.pad(table, (0, 1, 0, 1), value=-torch.inf)
    rows, bias_rows = window(q.shape[1], kernel_size, dilation, q.device)
    cols, bias_cols = window(q.shape[2], kernel_size, dilation, q.device)
    q, k, v = (x.unflatten(3, (num_heads, -1)) for x in (q, k, v))
    # (B, H, W, kernel_size, kernel_size, heads, C / heads)
    keys, values = (x[:, rows[:, None, :, None], cols[None, :, None, :]] for x in (k, v))
    scores = torch.einsum("bhwmd,bhwijmd->bhwmij", q * scale, keys)
    scores = scores + table[:, bias_rows[:, None, :, None], bias_cols[None, :, None, :]].permute(1, 2, 0, 3, 4)
    weights = scores.flatten(-2).softmax(-1).view_as(scores)
    return torch.einsum("bhwmij,bhwijmd->bhwmd", weights, values).flatten(3)


def window(size: int, kernel_size: int, dilation: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each pixel of an axis: the pixels of its window, and their rows or columns in the bias table.

    Returns:
        Two int64 tensors, (size, kernel_size). What a class lacks is some pixel in column `2 * kernel_size - 1`.
    """
    pixel = torch.arange(size, device=device)
    residue, position = pixel % dilation, pixel // dilation
    length = (size - 1 - residue) // dilation + 1
    first = torch.minimum(position - kernel_size // 2, length - kernel_size).clamp(min=0)
    key, last = first[:, None] + torch.arange(kernel_size, device=device), length[:, None] - 1
    column = torch.where(key > last, 2 * kernel_size - 1, key - position[:, None] + kernel_size - 1)
    return torch.minimum(key, last) * dilation + residue[:, None], column
