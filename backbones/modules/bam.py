"""BAM: Bottleneck Attention Module, https://arxiv.org/abs/1807.06514,
https://github.com/Jongchan/attention-module (MIT).

The published channel branch pools a window of H x H pixels and fails where W differs; here it pools globally, which is
equal on square maps.
"""

import torch
from torch import nn

from ..contract.arguments import check_integers
from .plugin import Plugin

__all__ = ["BAM"]


class BAM(Plugin):
    """`x * (1 + sigmoid(channel branch * spatial branch))` (equations 1 to 4 of the paper).

    The factor lies between 1 and 2: the module strengthens, it never removes. In training the channel branch's batch
    norm needs two samples at least.

    Args:
        channels: of the map.
        reduction: channels over hidden channels of both branches.
        dilation: of the two 3x3 convolutions of the spatial branch.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: for values below 1.
    """

    published = (
        (r"channel_att\.gate_c\.gate_c_fc_0\.", "channel.0."),
        (r"channel_att\.gate_c\.gate_c_bn_1\.", "channel.1."),
        (r"channel_att\.gate_c\.gate_c_fc_final\.", "channel.3."),
        (r"spatial_att\.gate_s\.gate_s_conv_reduce0\.", "spatial.0."),
        (r"spatial_att\.gate_s\.gate_s_bn_reduce0\.", "spatial.1."),
        (r"spatial_att\.gate_s\.gate_s_conv_di_0\.", "spatial.3."),
        (r"spatial_att\.gate_s\.gate_s_bn_di_0\.", "spatial.4."),
        (r"spatial_att\.gate_s\.gate_s_conv_di_1\.", "spatial.6."),
        (r"spatial_att\.gate_s\.gate_s_bn_di_1\.", "spatial.7."),
        (r"spatial_att\.gate_s\.gate_s_conv_final\.", "spatial.9."),
    )

    def __init__(self, channels: int, reduction: int = 16, dilation: int = 4, device=None, dtype=None):
        super().__init__()
        check_integers(channels=channels, reduction=reduction, dilation=dilation)
        dd = {"device": device, "dtype": dtype}
        hidden = max(1, channels // reduction)
        self.channel = nn.Sequential(
            nn.Linear(channels, hidden, **dd),
            nn.BatchNorm1d(hidden, **dd),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, channels, **dd),
        )
        layers: list[nn.Module] = [nn.Conv2d(channels, hidden, 1, **dd)]
        for _ in range(2):
            layers += [nn.BatchNorm2d(hidden, **dd), nn.ReLU(inplace=True)]
            layers += [nn.Conv2d(hidden, hidden, 3, padding=dilation, dilation=dilation, **dd)]
        layers += [nn.BatchNorm2d(hidden, **dd), nn.ReLU(inplace=True), nn.Conv2d(hidden, 1, 1, **dd)]
        self.spatial = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same."""
        gate = self.channel(x.mean((2, 3))).unsqueeze(2).unsqueeze(3) * self.spatial(x)
        return x * (1 + gate.sigmoid())
