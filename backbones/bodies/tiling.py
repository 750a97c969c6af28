"""Large images through a restoration model, tile by tile."""

from collections.abc import Callable, Iterable
from itertools import product

import torch
from torch import nn

from ..contract.arguments import is_integer

__all__ = ["restore_tiled"]


def restore_tiled(
    model: nn.Module,
    image: torch.Tensor,
    tile: int = 256,
    overlap: int = 32,
    progress: Callable[[Iterable], Iterable] = iter,
) -> torch.Tensor:
    """Restores an image in tiles, so that memory depends on the tile and not on the image. No gradient is kept.

    Each tile is restored together with `overlap` pixels around it, as far as the image goes, and cropped. What a tile
    does not see still counts a little: a transformer's attention reaches further at every layer, and channel attention
    pools over all it is given. The result is therefore near that of the whole image, not equal to it, nearest in the
    middle of the tiles.

    Args:
        model: maps (B, C, H, W) to (B, C', scale * H, scale * W), for any size.
        image: (B, C, H, W).
        tile: side of the tiles in pixels of `image`. Like `overlap` a multiple of the model's `window_size`, if it has
            one: the windows then lie where they lie in the whole image.
        overlap: pixels around a tile.
        progress: wraps the list of tiles, such as `tqdm.tqdm`.

    Returns:
        (B, C', scale * H, scale * W).

    Raises:
        ValueError: if `tile` is less than 1, `overlap` negative, or one no integer or no multiple of the window.
    """
    window = getattr(model, "window_size", 1)
    if not is_integer(tile) or tile < 1 or tile % window:
        raise ValueError(f"tile must be a positive multiple of {window}, got {tile}")
    if not is_integer(overlap) or overlap < 0 or overlap % window:
        raise ValueError(f"overlap must be 0 or a multiple of {window}, got {overlap}")
    height, width = image.shape[2:]
    out = None
    for top, left in progress(list(product(range(0, height, tile), range(0, width, tile)))):
        bottom, right = min(top + tile, height), min(left + tile, width)
        first, start = max(top - overlap, 0), max(left - overlap, 0)
        part = image[:, :, first : bottom + overlap, start : right + overlap]
        with torch.no_grad():
            restored = model(part)
        scale = restored.shape[2] // part.shape[2]
        if out is None:
            out = restored.new_empty(image.shape[0], restored.shape[1], scale * height, scale * width)
        out[:, :, scale * top : scale * bottom, scale * left : scale * right] = restored[
            :,
            :,
            scale * (top - first) : scale * (bottom - first),
            scale * (left - start) : scale * (right - start),
        ]
    if out is None:
        raise ValueError(f"image must have pixels, got {tuple(image.shape)}")
    return out
