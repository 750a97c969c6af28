"""Choice and decoding of boxes in tensors whose shapes are known before their values are."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row, also where a row is shorter.

    Args:
        scores: (B, N), above -1.
        count: How many; a constant, so that all shapes after it are known.

    Returns:
        Values (B, count), falling, -1 where there are no more, and their indices (B, count), valid everywhere.
    """
    values, index = F.pad(scores, (0, count), value=-1.0).topk(count, dim=1)
    return values, index.clamp(max=scores.shape[1] - 1)


def rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of `x` (B, N, D) at `index` (B, K): (B, K, D)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def clip(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes (..., 4) as x1, y1, x2, y2, moved into the image."""
    x = boxes[..., 0::2].clamp(min=0).minimum(torch.full_like(boxes[..., 0::2], width))
    y = boxes[..., 1::2].clamp(min=0).minimum(torch.full_like(boxes[..., 1::2], height))
    return torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), dim=-1)


def decode(coder: Any, priors: Tensor, deltas: Tensor, height: int, width: int) -> Tensor:
    """Boxes (..., 4) in pixels, from priors (..., 4 or 2) and deltas (..., 4), as the coder of the head has them."""
    # The coder's own clipping does not trace.
    boxes = coder.decode(priors.reshape(-1, priors.shape[-1]), deltas.reshape(-1, 4), max_shape=None)
    boxes = boxes.reshape(deltas.shape)
    return clip(boxes, height, width) if coder.clip_border else boxes


def fill_empty(boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (B, N, 4), scores and labels (B, N) with the empty places (score -1) filled by zeros and label -1."""
    empty = scores < 0
    return boxes.masked_fill(empty[..., None], 0), scores.clamp(min=0), labels.masked_fill(empty, -1)
