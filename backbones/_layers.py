"""Layers that several families share."""

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import nn


@register_notrace_function
def pad_to_multiple(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """Zero-pads a map at the right and the bottom, up to the next multiples.

    Args:
        x: (B, H, W, C).
        multiple: of both sides, in pixels.

    Returns:
        (B, H', W', C); `x` itself where it fits already.
    """
    height, width = x.shape[1], x.shape[2]
    # In this form, not as a remainder, a symbolic size stays one that an exporter can divide again.
    pad_h = (height + multiple - 1) // multiple * multiple - height
    pad_w = (width + multiple - 1) // multiple * multiple - width
    if torch.jit.is_scripting():
        exporting = False
    else:
        exporting = torch.compiler.is_exporting()
    # A branch on the size would bind an exported graph to the example's.
    if exporting or pad_h > 0 or pad_w > 0:
        x = F.pad(x, (0, 0, 0, pad_w, 0, pad_h))
    return x


class DepthwiseConv(nn.Conv2d):
    """Depth-wise convolution of a channels-last map, stride 1 and "same" padding; (B, H, W, C) -> the same."""

    def __init__(self, dim: int, kernel_size: int, device=None, dtype=None):
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> the same."""
        return self._conv_forward(x.permute(0, 3, 1, 2), self.weight, self.bias).permute(0, 2, 3, 1)
