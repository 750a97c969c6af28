"""Attention with a bias of low rank by PyTorch's fused attention."""

import torch
import torch.nn.functional as F

from .. import _derivatives
from ..tracing import untraced


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    query_factor: torch.Tensor,
    key_factor: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """`flash_bias_attention` of arguments that fit each other."""
    dim, more, more_values = untraced(_widths, q, v, query_factor)
    query, key = (
        _widened(x, factor.to(q.dtype).expand(v.shape[0], v.shape[1], -1, -1), more)
        for x, factor in ((q * scale, query_factor), (k, key_factor))
    )
    out = _derivatives.attend(query, key, F.pad(v, (0, more_values)), None, 1.0)
    # No view of what autograd keeps: the result may be changed in place.
    return out[..., :dim].clone(memory_format=torch.contiguous_format)


def _widths(q: torch.Tensor, v: torch.Tensor, factor: torch.Tensor) -> tuple[int, int, int]:
    """Channels of the values, and by how many those of keys and of values are filled up."""
    used, dim = q.shape[3] + factor.shape[-1], v.shape[3]
    # Fused attention asks for values as wide as the keys, and on a GPU for multiples of 8.
    width = -(-max(used, dim) // 8) * 8
    return dim, width - used, width - dim


def _widened(x: torch.Tensor, factor: torch.Tensor, more: int) -> torch.Tensor:
    parts = [x, factor]
    if more > 0:
        parts.append(x.new_zeros(1, 1, 1, 1).expand(x.shape[0], x.shape[1], x.shape[2], more))
    return torch.cat(parts, -1)
