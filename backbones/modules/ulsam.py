"""ULSAM: Ultra-Lightweight Subspace Attention Module for Compact CNNs, https://arxiv.org/abs/2006.15102,
https://github.com/Nandan91/ULSAM (no licence).

The published code runs one small module for each subspace; grouped convolutions run them all at once here.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..contract.arguments import check_integers
from .plugin import Plugin

__all__ = ["ULSAM"]


class ULSAM(Plugin):
    """`x + x * softmax` over all pixels, with one attention map for each group of channels.

    The map of a subspace: depth-wise 1x1, batch norm, ReLU, 3x3 max pooling, point-wise to one map, batch norm, ReLU,
    softmax (section 3.2 of the paper; norms and activations as in the published code).

    Args:
        channels: of the map.
        num_splits: subspaces; divides `channels`.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: for `channels` that is no multiple of `num_splits`.
    """

    def __init__(self, channels: int, num_splits: int = 4, device=None, dtype=None):
        super().__init__()
        check_integers(channels=channels, num_splits=num_splits)
        if channels % num_splits:
            raise ValueError(f"channels={channels}: a multiple of num_splits={num_splits} is needed")
        dd = {"device": device, "dtype": dtype}
        self.num_splits = num_splits
        self.depthwise = nn.Conv2d(channels, channels, 1, groups=channels, **dd)
        self.bn1 = nn.BatchNorm2d(channels, momentum=0.9, **dd)
        self.pointwise = nn.Conv2d(channels, num_splits, 1, groups=num_splits, **dd)
        self.bn2 = nn.BatchNorm2d(num_splits, momentum=0.9, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same."""
        maps = F.max_pool2d(F.relu(self.bn1(self.depthwise(x))), 3, stride=1, padding=1)
        maps = F.relu(self.bn2(self.pointwise(maps)))
        maps = maps.flatten(2).softmax(2).unflatten(2, (x.shape[2], x.shape[3]))
        parts = x.unflatten(1, (self.num_splits, -1))
        return (parts + parts * maps.unsqueeze(2)).flatten(1, 2)
