"""Large-kernel attention as a plug-in: VAN's gate, https://arxiv.org/abs/2202.09741 (equations 2 and 3)."""

import torch
from torch import nn

from ...kernels import large_kernel_attention
from .._layers import DepthwiseConv2d
from ._plugin import Plugin, check_positive

__all__ = ["LKA"]


class LKA(Plugin):
    """`x * pointwise(dilated(local(x)))`: depth-wise 5x5, depth-wise 7x7 of dilation 3, point-wise; no sigmoid.

    Args:
        channels: of the map.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: for `channels` below 1.
    """

    published = ((r"conv0\.", "local."), (r"conv_spatial\.", "dilated."), (r"conv1\.", "pointwise."))

    def __init__(self, channels: int, device=None, dtype=None):
        super().__init__()
        check_positive(channels=channels)
        dd = {"device": device, "dtype": dtype}
        self.local = DepthwiseConv2d(channels, 5, **dd)
        self.dilated = DepthwiseConv2d(channels, 7, dilation=3, **dd)
        self.pointwise = nn.Conv2d(channels, channels, 1, **dd)

    def init_identity(self) -> None:
        """Makes the gate 1 everywhere: the only module here whose own parameters can say so."""
        nn.init.zeros_(self.pointwise.weight)
        if self.pointwise.bias is not None:
            nn.init.ones_(self.pointwise.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same."""
        return large_kernel_attention(
            x,
            self.local.weight,
            self.local.bias,
            self.dilated.weight,
            self.dilated.bias,
            self.pointwise.weight,
            self.pointwise.bias,
            dilation=3,
        )
