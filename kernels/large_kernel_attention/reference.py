"""The definition of large-kernel attention in plain PyTorch."""

import torch
import torch.nn.functional as F


def large_kernel_attention(
    x: torch.Tensor,
    local_weight: torch.Tensor,
    local_bias: torch.Tensor | None,
    dilated_weight: torch.Tensor,
    dilated_bias: torch.Tensor | None,
    pointwise_weight: torch.Tensor,
    pointwise_bias: torch.Tensor | None,
    dilation: int = 3,
) -> torch.Tensor:
    """As the public function."""
    channels = x.shape[1]
    gate = F.conv2d(x, local_weight, local_bias, padding=local_weight.shape[-1] // 2, groups=channels)
    gate = F.conv2d(
        gate,
        dilated_weight,
        dilated_bias,
        padding=dilation * (dilated_weight.shape[-1] // 2),
        dilation=dilation,
        groups=channels,
    )
    return x * F.conv2d(gate, pointwise_weight, pointwise_bias)
