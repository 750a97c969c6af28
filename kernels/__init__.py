"""Operators on tensors: documented functions that backbones and heads call, each with a plain PyTorch definition."""

from .large_kernel_attention import large_kernel_attention
from .routing_attention import routing_attention

__all__ = ["large_kernel_attention", "routing_attention"]
