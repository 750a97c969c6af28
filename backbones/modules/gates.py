"""CBAM and triplet attention: sigmoid gates computed from the largest and the mean value along an axis.

CBAM: Convolutional Block Attention Module, https://arxiv.org/abs/1807.06521,
https://github.com/Jongchan/attention-module (MIT).
Rotate to Attend: Convolutional Triplet Attention Module, https://arxiv.org/abs/2010.03045,
https://github.com/landskape-ai/triplet-attention (MIT).

timm's own CBAM is another function: its channel gate has no biases and its pooled pair is (mean, max).
Among equal largest values the gradient is shared here, where the published code gives it to one of them.
"""

import torch
from torch import nn

from ..contract.arguments import check_integers
from .plugin import Plugin

__all__ = ["CBAM", "SpatialGate", "TripletAttention"]


class SpatialGate(nn.Module):
    """Convolution of the pair (largest, mean) to one map, batch norm, sigmoid; no ReLU, unlike the figures show."""

    def __init__(self, kernel_size: int = 7, device=None, dtype=None):
        super().__init__()
        check_integers(odd=True, kernel_size=kernel_size)
        dd = {"device": device, "dtype": dtype}
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False, **dd)
        self.bn = nn.BatchNorm2d(1, momentum=0.01, **dd)

    def zero_init_last(self) -> None:
        """Starts the gate at 0.5 everywhere, as the published ResNets do; timm's ResNet calls this."""
        nn.init.zeros_(self.bn.weight)

    def forward(self, largest: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """Two maps (B, P, Q) -> (B, 1, P, Q)."""
        return self.bn(self.conv(torch.stack((largest, mean), 1))).sigmoid()


class CBAM(Plugin):
    """Channel gate from both global poolings, then spatial gate from both channel poolings.

    Args:
        channels: of the map.
        reduction: channels over hidden units of the channel gate.
        min_hidden: hidden units at least; a single one is easily dead from the beginning.
        kernel_size: of the spatial gate.
        spatial: leave the spatial gate out if False.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: for values below 1 or an even `kernel_size`.
    """

    published = (
        (r"ChannelGate\.mlp\.1\.", "fc1."),
        (r"ChannelGate\.mlp\.3\.", "fc2."),
        (r"SpatialGate\.spatial\.", "spatial."),
    )

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        min_hidden: int = 1,
        kernel_size: int = 7,
        spatial: bool = True,
        device=None,
        dtype=None,
    ):
        super().__init__()
        check_integers(channels=channels, reduction=reduction, min_hidden=min_hidden)
        dd = {"device": device, "dtype": dtype}
        hidden = max(min_hidden, channels // reduction)
        self.fc1 = nn.Linear(channels, hidden, **dd)
        self.act = nn.ReLU()
        self.fc2 = nn.Linear(hidden, channels, **dd)
        self.spatial = SpatialGate(kernel_size, **dd) if spatial else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same."""
        pooled = torch.stack((x.mean((2, 3)), x.amax((2, 3))), 1)
        gate = self.fc2(self.act(self.fc1(pooled))).sum(1).sigmoid()
        x = x * gate.unsqueeze(2).unsqueeze(3)
        if self.spatial is not None:
            x = x * self.spatial(x.amax(1), x.mean(1))
        return x


class TripletAttention(Plugin):
    """The mean of the map under three gates: over (C, W), over (H, C) and over (H, W).

    The size of its parameters does not depend on the channels.

    Args:
        channels: of the map; taken for the common interface.
        kernel_size: of every gate.
        spatial: leave the branch over (H, W) out if False.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: for `channels` below 1 or an even `kernel_size`.
    """

    published = (
        (r"(cw\.conv|ChannelGateH\.spatial)\.", "without_height."),
        (r"(hc\.conv|ChannelGateW\.spatial)\.", "without_width."),
        (r"(hw\.conv|SpatialGate\.spatial)\.", "without_channels."),
    )

    def __init__(self, channels: int, kernel_size: int = 7, spatial: bool = True, device=None, dtype=None):
        super().__init__()
        check_integers(channels=channels)
        dd = {"device": device, "dtype": dtype}
        self.without_height = SpatialGate(kernel_size, **dd)
        self.without_width = SpatialGate(kernel_size, **dd)
        self.without_channels = SpatialGate(kernel_size, **dd) if spatial else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same."""
        gates = self.without_height(x.amax(2), x.mean(2)).transpose(1, 2)
        by_row = self.without_width(x.amax(3).transpose(1, 2), x.mean(3).transpose(1, 2))
        gates = gates + by_row.permute(0, 3, 2, 1)
        # The gates are summed before they meet the map: one product for three.
        if self.without_channels is not None:
            return x * ((gates + self.without_channels(x.amax(1), x.mean(1))) / 3)
        return x * (gates / 2)
