"""The definition of large-kernel attention in plain PyTorch."""

import torch
import torch.nn.functional as F


def depthwise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dilation: int) -> torch.Tensor:
    """`depthwise_conv`."""
    padding = [dilation * (weight.shape[2] // 2), dilation * (weight.shape[3] // 2)]
    return F.conv2d(x, weight, bias, padding=padding, dilation=dilation, groups=weight.shape[0])


def gated_pointwise(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gate: torch.Tensor
) -> torch.Tensor:
    """`pointwise_conv`, with a gate."""
    return gate * F.conv2d(x, weight, bias)


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
    gate = depthwise(depthwise(x, local_weight, local_bias, 1), dilated_weight, dilated_bias, dilation)
    return gated_pointwise(gate, pointwise_weight, pointwise_bias, x)
