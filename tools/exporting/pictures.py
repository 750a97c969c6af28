"""Images that an exported model is traced and compared on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..common.errors import UserError
from ..common.messages import shown
from ..config.fields import pipeline_steps
from ..data.images import read_image
from .driving import camera_size, tested_mode

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import Tensor

# Of a side, in pixels.
MIN_SIZE = 32


def pipeline_size(cfg: Config) -> tuple[int, int]:
    """Height and width to which the test pipeline resizes, 512 × 512 where it does not say.

    Of a pipeline that loads pictures of several cameras, those of the pictures behind it.

    Raises:
        UserError: A size that is none, or no pictures of cameras.
    """
    mode = tested_mode(cfg)
    found = camera_size(cfg, mode)
    if found is not None:
        return found
    for step in pipeline_steps(cfg, mode) or ():
        scale = step.get("scale")
        if str(step.get("type")).endswith("Resize") and isinstance(scale, tuple | list) and len(scale) == 2:
            if not all(isinstance(side, int | float) and 0 < side < math.inf for side in scale):
                raise UserError(
                    f"{cfg.filename}: {mode}_dataloader.dataset.pipeline: scale of {step['type']}: two numbers of "
                    f"pixels are needed, got {shown(scale)}"
                )
            return int(min(scale)), int(max(scale)) if step.get("keep_ratio") else int(scale[0])
    return 512, 512


def size_text(sides: Sequence[int]) -> str:
    """Sides of an image or of a batch in words."""
    return " x ".join(map(str, sides))


def other_size(size: tuple[int, int]) -> tuple[int, int]:
    """A smaller size, both sides odd, not square."""
    height, width = (max(side * part // 8, MIN_SIZE) | 1 for side, part in zip(size, (6, 5), strict=True))
    return height, width if width != height else width + 10


def pictures(shape: tuple[int, ...], image: np.ndarray | None, seed: int) -> Tensor:
    """Images (B, 3, H, W) of whole numbers from 0 to 255: `image` (H, W, 3) mirrored and dimmed, or random blots."""
    import torch
    import torch.nn.functional as F

    generator = torch.Generator().manual_seed(seed)
    batch, _, height, width = shape
    if image is None:
        source = torch.rand(batch, 3, height // 16 + 3, width // 16 + 3, generator=generator) * 255
    else:
        one = torch.from_numpy(image).permute(2, 0, 1).float()
        source = torch.stack([(one.flip(2) if i % 2 else one) * 0.97 ** (i + seed) for i in range(batch)])
    resized = F.interpolate(source, (height, width), mode="bicubic", antialias=image is not None)
    return (resized + torch.rand(resized.shape, generator=generator) * 4).clamp(0, 255).round()


def read_picture(path: str | Path, order: str) -> np.ndarray:
    """A picture (H, W, 3) with its channels in an order.

    Args:
        path: The file.
        order: RGB or BGR.

    Raises:
        UserError: if it is no image that can be read.
    """
    try:
        pixels = np.asarray(read_image(path))
    except UserError as error:
        raise UserError(f"not a readable image: {error}") from error
    return np.ascontiguousarray(pixels if order == "RGB" else pixels[..., ::-1])
