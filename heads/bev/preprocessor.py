"""Batches of camera images: normalised, padded, and in training with a grid of holes."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseDataPreprocessor
from torch import Tensor

from ..arguments import check_bool, check_int, check_keys, check_number
from ..mm.registry import MODELS


def grid_mask(height: int, width: int, ratio: float, device: torch.device | None = None) -> Tensor:
    """A grid of square holes, of a random period and place.

    Source: GridMask (https://arxiv.org/abs/2001.04086).

    Args:
        height: Of the image, in pixels.
        width: Of the image.
        ratio: Share of a period, along each axis, that stays.
        device: Of the result.

    Returns:
        (height, width) bool, False in the holes.
    """
    # Drawn by PyTorch, as all that a run's seed repeats.
    period = int(torch.randint(2, max(height, 3), ()))
    stays = min(max(round(period * ratio), 1), period - 1)
    below, right = torch.randint(period, (2,)).tolist()
    rows, columns = (
        (torch.arange(side, device=device) + first) % period < stays
        for side, first in ((height, below), (width, right))
    )
    return rows[:, None] | columns


@MODELS.register_module()
class BEVDataPreprocessor(BaseDataPreprocessor):
    """Images of values 0 to 255, of several frames and cameras, to a batch.

    Padding goes to the right and below, so that calibration still holds; depth maps (`gt_depth` of the samples) are
    padded alike. In training a grid of holes may be cut into each sample's last frame, at the same places in all
    cameras and in its depth maps: normalised images and depth are 0 there.

    Args:
        mean: Of each channel, in the channels' order after `bgr_to_rgb`.
        std: Of each channel.
        bgr_to_rgb: Turn the channels around.
        pad_size_divisor: Sides become multiples of it.
        grid_mask: `dict(ratio=0.5, prob=0.7)`, the published numbers, of `grid_mask` and of how often it is done; None
            for never.
        non_blocking: Copy to the device without waiting.

    Raises:
        TypeError: An argument of another type.
        ValueError: A number out of its range, not three channels, or an unknown key.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float] = (123.675, 116.28, 103.53),
        std: Sequence[float] = (58.395, 57.12, 57.375),
        bgr_to_rgb: bool = False,
        pad_size_divisor: int = 32,
        grid_mask: dict[str, float] | None = None,
        non_blocking: bool = False,
    ) -> None:
        super().__init__(non_blocking)
        for name, value in (("mean", mean), ("std", std)):
            if len(value) != 3:
                raise ValueError(f"{name}={value!r}: must be three numbers, one a channel")
        means = [check_number(f"mean[{i}]", number, 0) for i, number in enumerate(mean)]
        stds = [check_number(f"std[{i}]", number, 0, above=True) for i, number in enumerate(std)]
        self.register_buffer("mean", torch.tensor(means).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(stds).view(3, 1, 1), persistent=False)
        self.bgr_to_rgb = check_bool("bgr_to_rgb", bgr_to_rgb)
        self.pad_size_divisor = check_int("pad_size_divisor", pad_size_divisor, 1)
        self.mask_ratio, self.mask_prob = 0.5, 0.0
        if grid_mask is not None:
            options = dict(ratio=0.5, prob=0.7) | check_keys("grid_mask", grid_mask, ("ratio", "prob"))
            self.mask_ratio = check_number("grid_mask.ratio", options["ratio"], 0, 1)
            self.mask_prob = check_number("grid_mask.prob", options["prob"], 0, 1)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Make the batch.

        Args:
            data: `inputs`, a list of (frames, N, 3, H, W), oldest frame first, or of (N, 3, H, W), one frame; and
                `data_samples`, of which `gt_depth` (N, H, W) or (frames, N, H, W) is padded where it is there.
            training: Whether grids of holes are cut.

        Returns:
            `inputs` as (B, frames, N, 3, H, W) float, and `data_samples`.

        Raises:
            ValueError: Images of another shape, or of another number of frames or cameras than the first sample's.
        """
        data = self.cast_data(data)  # type: ignore[assignment]
        inputs = [images[None] if images.dim() == 4 else images for images in data["inputs"]]
        for i, images in enumerate(inputs):
            if images.dim() != 5 or images.shape[2] != 3 or images.shape[:2] != inputs[0].shape[:2]:
                raise ValueError(
                    f"inputs[{i}] must be (frames, cameras, 3, H, W), frames and cameras as in the first sample, got "
                    f"shape {tuple(images.shape)}"
                )
        divisor = self.pad_size_divisor
        height, width = (-(-max(images.shape[axis] for images in inputs) // divisor) * divisor for axis in (3, 4))
        batch = torch.stack([_padded(self._normalised(images), height, width) for images in inputs])
        samples = data.get("data_samples") or []
        for i, images in enumerate(inputs):
            sample = samples[i] if i < len(samples) else None
            depth = None if sample is None else sample.get("gt_depth")
            if depth is not None:
                depth = _padded(depth, height, width)
            if training and torch.rand(()) < self.mask_prob:
                kept = grid_mask(images.shape[3], images.shape[4], self.mask_ratio, batch.device)
                kept = _padded(kept, height, width)
                batch[i, -1] *= kept
                if depth is not None:
                    depth = torch.cat((depth[:-1], depth[-1:] * kept)) if depth.dim() == 4 else depth * kept
            if sample is not None:
                sample.set_metainfo(dict(img_shape=(height, width)))
                if depth is not None:
                    sample.gt_depth = depth
        return {**data, "inputs": batch}

    def _normalised(self, images: Tensor) -> Tensor:
        if self.bgr_to_rgb:
            images = images.flip(2)
        return (images.to(self.mean.dtype) - self.mean) / self.std


def _padded(x: Tensor, height: int, width: int) -> Tensor:
    """The last two axes filled up with zeros, or False."""
    return F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2]))
