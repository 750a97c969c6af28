"""Modules that would freeze the traced size, and their equals that do not."""

from typing import Any

import torch
import torch.nn.functional as F
from mmseg.models.utils import Upsample
from torch import Tensor, nn


class AveragePool(nn.Module):
    """`AdaptiveAvgPool2d` as two matrix products, for height and width that are known at run time only.

    Exporters unroll adaptive pooling into the windows of the traced size, and that without an error.

    Args:
        output_size: Height and width of the result.
    """

    def __init__(self, output_size: tuple[int, int]) -> None:
        super().__init__()
        self.output_size = output_size

    @staticmethod
    def weights(size: int, bins: int, like: Tensor) -> Tensor:
        """Matrix (bins, size) whose row i averages positions floor(i size / bins) to ceil((i + 1) size / bins) - 1."""
        position = torch.arange(size, device=like.device)
        row = torch.arange(bins, device=like.device)[:, None]
        start = row * size // bins
        end = ((row + 1) * size + bins - 1) // bins
        inside = ((position >= start) & (position < end)).to(like.dtype)
        return inside / (end - start)

    def forward(self, x: Tensor) -> Tensor:
        """Means over windows: (B, C, H, W) to (B, C, *output_size)."""
        rows = self.weights(x.shape[2], self.output_size[0], x)
        columns = self.weights(x.shape[3], self.output_size[1], x)
        return rows @ x @ columns.t()


class IntegerUpsample(nn.Module):
    """mmseg's `Upsample` by a whole factor, whose `int(size * 2.0)` would freeze the traced size.

    Args:
        factor: How many times height and width grow.
        mode: Of `F.interpolate`.
        align_corners: Of `F.interpolate`.
    """

    def __init__(self, factor: int, mode: str, align_corners: bool | None) -> None:
        super().__init__()
        self.factor = factor
        self.mode = mode
        self.align_corners = align_corners

    def forward(self, x: Tensor) -> Tensor:
        """Interpolate (B, C, H, W) to (B, C, factor * H, factor * W)."""
        size = (x.shape[2] * self.factor, x.shape[3] * self.factor)
        return F.interpolate(x, size, mode=self.mode, align_corners=self.align_corners)


def _traceable(module: nn.Module) -> nn.Module | None:
    """The equal of a module that would freeze the traced size, or None where there is nothing to replace."""
    if isinstance(module, nn.AdaptiveAvgPool2d):
        size: Any = module.output_size
        height, width = (size, size) if isinstance(size, int) else size
        # One mean over the whole map is exported as it is.
        if height is not None and width is not None and (height, width) != (1, 1):
            return AveragePool((height, width))
    # By a fraction it would still freeze the size, and the comparison after the export refuses that.
    if isinstance(module, Upsample) and not module.size and float(module.scale_factor).is_integer():
        return IntegerUpsample(int(module.scale_factor), module.mode, module.align_corners)
    return None


def make_traceable(model: nn.Module) -> nn.Module:
    """Replace in place all modules of `model` that would freeze the traced size by equal ones.

    Returns:
        `model`, or its own equal.
    """
    for name, module in list(model.named_modules(remove_duplicate=False)):
        replacement = _traceable(module)
        if replacement is not None and name:
            model.set_submodule(name, replacement)
    return _traceable(model) or model
