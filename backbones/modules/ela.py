"""ELA: Efficient Local Attention for Deep Convolutional Neural Networks, https://arxiv.org/abs/2403.01123.

There is no public code. The paper leaves open whether both directions share their convolution and norm, and whether
the convolution has a bias: here they are shared and it has none, as in the re-implementations in use. timm's "ela" is
another function: a convolution, a norm of one group and a SiLU for each direction.
"""

import torch
from torch import nn

from ..contract.arguments import check_integers
from .plugin import Plugin, group_norm

__all__ = ["ELA"]


class ELA(Plugin):
    """Gates of the rows and of the columns, from strip means under a 1-d convolution, group norm and sigmoid.

    Args:
        channels: of the map.
        kernel_size: of the convolution along a strip.
        group_size: channels of a group of the convolution; 1 is depth-wise.
        num_groups: of the norm.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: for an even `kernel_size`, or `channels` that is no multiple of `group_size` or `num_groups`.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 7,
        group_size: int = 1,
        num_groups: int = 16,
        device=None,
        dtype=None,
    ):
        super().__init__()
        check_integers(channels=channels, group_size=group_size, num_groups=num_groups)
        check_integers(odd=True, kernel_size=kernel_size)
        for name, value in (("group_size", group_size), ("num_groups", num_groups)):
            if channels % value:
                raise ValueError(f"channels={channels}: a multiple of {name}={value} is needed")
        dd = {"device": device, "dtype": dtype}
        groups = channels // group_size
        self.conv = nn.Conv1d(
            channels, channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=False, **dd
        )
        self.norm = nn.GroupNorm(num_groups, channels, **dd)

    def gate(self, strip: torch.Tensor) -> torch.Tensor:
        """(B, C, L) -> the same."""
        return group_norm(self.conv(strip), self.norm.num_groups, self.norm.weight, self.norm.bias).sigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same."""
        return x * self.gate(x.mean(3)).unsqueeze(3) * self.gate(x.mean(2)).unsqueeze(2)
