"""Window attention as it is published: the map rolled, its windows copied, bias and mask laid out for every window."""

import torch
import torch.nn.functional as F


def window_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    window_size: int | tuple[int, int],
    shift: int | tuple[int, int] = 0,
    overlap: int = 0,
    bias_table: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """As the public function: Swin's way with a shift, HAT's way with an overlap."""
    queries, keys, values, mask = laid_out(q, k, v, num_heads, window_size, shift, overlap, bias_table)
    scale = queries.shape[3] ** -0.5 if scale is None else scale
    out = ((queries * scale) @ keys.transpose(-2, -1) + mask).softmax(-1) @ values
    return put_back(out, q.shape, window_size, shift)


def window_attention_packed(
    qkv: torch.Tensor,
    num_heads: int,
    window_size: int | tuple[int, int],
    shift: int | tuple[int, int] = 0,
    overlap: int = 0,
    bias_table: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """As the public function."""
    q, k, v = qkv.chunk(3, -1)
    return window_attention(q, k, v, num_heads, window_size, shift, overlap, bias_table, scale)


def laid_out(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    window_size: int | tuple[int, int],
    shift: int | tuple[int, int],
    overlap: int,
    bias_table: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values of the windows, (windows, heads, pixels, C / heads), and what is added to their scores.

    The last is (windows or 1, heads or 1, queries, keys): the bias, and minus infinity between pixels that the roll
    brought together.
    """
    window, shifts = _pair(window_size), _pair(shift)
    sides, margin = (window[0] + overlap, window[1] + overlap), [overlap // 2] * 4
    q, k, v = (torch.roll(x, (-shifts[0], -shifts[1]), (1, 2)) for x in (q, k, v))
    k, v = (F.pad(x, (0, 0, *margin)) for x in (k, v))
    mask = q.new_zeros(1, 1, 1, 1) if bias_table is None else _bias(bias_table, window, sides)
    if shifts != (0, 0):
        regions = _windows(_regions(q, window, shifts), 1, window, window)
        mask = mask + torch.where(regions == regions.transpose(2, 3), 0.0, -torch.inf).to(q.dtype)
    queries = _windows(q, num_heads, window, window)
    return queries, _windows(k, num_heads, sides, window), _windows(v, num_heads, sides, window), mask


def put_back(
    out: torch.Tensor, size: torch.Size, window_size: int | tuple[int, int], shift: int | tuple[int, int]
) -> torch.Tensor:
    """Windows (windows, heads, pixels, C / heads), where they were in a map of `size` (B, H, W, C)."""
    window, (b, height, width, c) = _pair(window_size), size
    out = out.view(b, height // window[0], width // window[1], out.shape[1], *window, out.shape[3])
    return torch.roll(out.permute(0, 1, 4, 2, 5, 3, 6).reshape(b, height, width, c), _pair(shift), (1, 2))


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _windows(x: torch.Tensor, num_heads: int, size: tuple[int, int], step: tuple[int, int]) -> torch.Tensor:
    """(B, H, W, C) -> (windows, heads, pixels, C / heads)."""
    x = x.unfold(1, size[0], step[0]).unfold(2, size[1], step[1]).unflatten(3, (num_heads, -1))
    return x.permute(0, 1, 2, 3, 5, 6, 4).flatten(4, 5).flatten(0, 2)


def _bias(table: torch.Tensor, window: tuple[int, int], sides: tuple[int, int]) -> torch.Tensor:
    """(1, heads, queries, keys)."""

    def apart(query: int, key: int) -> torch.Tensor:
        return torch.arange(key - 1, key - 1 + query, device=table.device)[:, None] - torch.arange(
            key, device=table.device
        )

    rows, cols = apart(window[0], sides[0]), apart(window[1], sides[1])
    index = rows[:, None, :, None] * (window[1] + sides[1] - 1) + cols[None, :, None, :]
    return table[index.flatten(2).flatten(0, 1)].permute(2, 0, 1)[None]


def _regions(like: torch.Tensor, window: tuple[int, int], shift: tuple[int, int]) -> torch.Tensor:
    """(B, H, W, 1): labels of the parts of a rolled map that may see each other."""

    def labels(size: int, side: int, moved: int) -> torch.Tensor:
        place = torch.arange(size, device=like.device)
        return (place >= size - side).int() + (place >= size - moved).int()

    b, height, width, _ = like.shape
    regions = labels(height, window[0], shift[0])[:, None] * 3 + labels(width, window[1], shift[1])
    return regions[None, :, :, None].expand(b, -1, -1, -1)
