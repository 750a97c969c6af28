"""Operators on tensors: documented functions that backbones and heads call, each with a plain PyTorch definition."""

from .large_kernel_attention import depthwise_conv, large_kernel_attention, pointwise_conv
from .neighborhood_attention import neighborhood_attention
from .routing_attention import routing_attention
from .window_attention import window_attention

__all__ = [
    "depthwise_conv",
    "large_kernel_attention",
    "neighborhood_attention",
    "pointwise_conv",
    "routing_attention",
    "window_attention",
]
