"""Large-kernel attention: a depth-wise convolution chain that gates its own input."""

from .reference import large_kernel_attention

__all__ = ["large_kernel_attention"]
