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
    return _attend(q, k, v, num_heads, kernel_size, 1, dilation, False, bias_table, scale)


def generalized_neighborhood_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    is_causal: bool | tuple[bool, bool] = False,
    bias_table: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """As the public function."""
    return _attend(q, k, v, num_heads, kernel_size, stride, dilation, is_causal, bias_table, scale)


def _attend(q, k, v, num_heads, kernel_size, stride, dilation, is_causal, bias_table, scale):
    scale = (q.shape[3] // num_heads) ** -0.5 if scale is None else scale
    # Of each axis.
    sizes, strides, dilations, causal = (
        (x, x) if isinstance(x, int) else x for x in (kernel_size, stride, dilation, is_causal)
    )
    sides = [2 * size - 1 for size in sizes]
    table = q.new_zeros(num_heads, *sides) if bias_table is None else bias_table
    # Its last row and column are of the keys that a window lacks.
    table = F.pad(table, (0, 1, 0, 1), value=-torch.inf)
    rows, bias_rows = window(q.shape[1], sizes[0], dilations[0], q.device, strides[0], bool(causal[0]))
    cols, bias_cols = window(q.shape[2], sizes[1], dilations[1], q.device, strides[1], bool(causal[1]))
    q, k, v = (x.unflatten(3, (num_heads, -1)) for x in (q, k, v))
    # (B, H, W, rows, columns, heads, C / heads)
    keys, values = (x[:, rows[:, None, :, None], cols[None, :, None, :]] for x in (k, v))
    scores = torch.einsum("bhwmd,bhwijmd->bhwmij", q * scale, keys)
    scores = scores + table[:, bias_rows[:, None, :, None], bias_cols[None, :, None, :]].permute(1, 2, 0, 3, 4)
    weights = scores.flatten(-2).softmax(-1).view_as(scores)
    return torch.einsum("bhwmij,bhwijmd->bhwmd", weights, values).flatten(3)


def neighborhood_attention_packed(
    qkv: torch.Tensor,
    num_heads: int,
    kernel_size: int,
    dilation: int = 1,
    bias_table: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """As the public function."""
    q, k, v = qkv.chunk(3, -1)
    return neighborhood_attention(q, k, v, num_heads, kernel_size, dilation, bias_table, scale)


def window(
    size: int, kernel_size: int, dilation: int, device: torch.device, stride: int = 1, is_causal: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each pixel of an axis: the pixels of its window, and their rows or columns in the bias table.

    Returns:
        Two int64 tensors, (size, kernel_size). What a window lacks is some pixel in column `2 * kernel_size - 1`.
    """
    pixel = torch.arange(size, device=device)
    residue, position = pixel % dilation, pixel // dilation
    length = (size - 1 - residue) // dilation + 1
    # So many neighbours share the window of one, their leader: the last of them, or the middle one.
    leader = torch.minimum(position // stride * stride + (stride - 1 if is_causal else stride // 2), length - 1)
    if is_causal:
        first, last = (leader - kernel_size + 1).clamp(min=0), position[:, None]
    else:
        first = torch.minimum(leader - kernel_size // 2, length - kernel_size).clamp(min=0)
        last = length[:, None] - 1
    key = first[:, None] + torch.arange(kernel_size, device=device)
    column = torch.where(key > last, 2 * kernel_size - 1, key - position[:, None] + kernel_size - 1)
    return torch.minimum(key, last) * dilation + residue[:, None], column
