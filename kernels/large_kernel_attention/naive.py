"""Large-kernel attention and the convolutions of which it is made, each as PyTorch's own."""

import torch
import torch.nn.functional as F


def depthwise_conv(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, dilation: int = 1
) -> torch.Tensor:
    """As the public function."""
    padding = [dilation * (weight.shape[2] // 2), dilation * (weight.shape[3] // 2)]
    return F.conv2d(x, weight, bias, padding=padding, dilation=dilation, groups=weight.shape[0])


def pointwise_conv(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, gate: torch.Tensor | None = None
) -> torch.Tensor:
    """As the public function."""
    out = F.conv2d(x, weight, bias)
    return out if gate is None else gate * out


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
    gate = depthwise_conv(depthwise_conv(x, local_weight, local_bias), dilated_weight, dilated_bias, dilation)
    return pointwise_conv(gate, pointwise_weight, pointwise_bias, x)
