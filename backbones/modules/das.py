"""DAS: A Deformable Attention to Capture Salient Information in CNNs, https://arxiv.org/abs/2311.12091.

There is no public code; this follows section 3 of the paper: a depth-wise separable convolution to a share of the
channels, instance norm and GELU; a modulated deformable convolution back to all channels; layer norm and sigmoid give
the gate. The paper leaves open the kernel of the depth-wise convolution, the biases and how offsets and modulation are
predicted; here the kernels are 3x3, only the prediction has a bias, and it is a convolution that starts at zero
(regular places, modulation 0.5), as the deformable convolutions that the paper builds on do.

Exported to ONNX it is a DeformConv, which ONNX Runtime computes from 1.25 on.
"""

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import nn
from torchvision.ops import deform_conv2d

from ..contract.arguments import check_integers, check_numbers
from .plugin import Plugin, group_norm

__all__ = ["DAS"]


class DAS(Plugin):
    """A gate of every channel and pixel that looks where its learned offsets point.

    Args:
        channels: of the map.
        ratio: hidden channels over channels, the paper's alpha.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: for `channels` below 1 or `ratio` outside (0, 1].
    """

    def __init__(self, channels: int, ratio: float = 0.2, device=None, dtype=None):
        super().__init__()
        check_integers(channels=channels)
        check_numbers(above=0, most=1, ratio=ratio)
        dd = {"device": device, "dtype": dtype}
        self.hidden = max(1, int(channels * ratio))
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False, **dd)
        self.pointwise = nn.Conv2d(channels, self.hidden, 1, bias=False, **dd)
        self.sampling = nn.Conv2d(self.hidden, 27, 3, padding=1, **dd)
        self.deform = nn.Conv2d(self.hidden, channels, 3, padding=1, bias=False, **dd)
        self.norm = LayerNorm2d(channels, **dd)
        self.reset_sampling()

    def reset_sampling(self) -> None:
        """Regular places, modulation 0.5."""
        for parameter in self.sampling.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same."""
        hidden = F.gelu(group_norm(self.pointwise(self.depthwise(x)), self.hidden, None, None))
        offset, modulation = self.sampling(hidden).split([18, 9], 1)
        # Half precision could not tell the pixels of a large map apart, and torchvision has no bfloat16 on the CPU.
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        found = deform_conv2d(
            hidden.to(wide),
            offset.to(wide),
            self.deform.weight.to(wide),
            padding=1,
            mask=modulation.sigmoid().to(wide),
        )
        return x * self.norm(found.to(x.dtype)).sigmoid()
