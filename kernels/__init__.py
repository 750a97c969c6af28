"""Operators on tensors: documented functions that backbones and heads call, each with a plain PyTorch definition.

`can_run` says whether an operator's Triton kernels could run, and why not; `use_backend` chooses for a while.
"""

from ._dispatch import can_run, use_backend
from .block_sparse_attention import block_sparse_attention
from .deformable_attention import deformable_attention, deformable_attention_from_offsets
from .deformable_attention_3d import deformable_attention_3d
from .flash_bias import flash_bias_attention
from .large_kernel_attention import depthwise_conv, large_kernel_attention, pointwise_conv
from .neighborhood_attention import (
    generalized_neighborhood_attention,
    neighborhood_attention,
    neighborhood_attention_packed,
)
from .routing_attention import routing_attention, routing_attention_packed
from .window_attention import window_attention, window_attention_packed

__all__ = [
    "block_sparse_attention",
    "can_run",
    "deformable_attention",
    "deformable_attention_3d",
    "deformable_attention_from_offsets",
    "depthwise_conv",
    "flash_bias_attention",
    "generalized_neighborhood_attention",
    "large_kernel_attention",
    "neighborhood_attention",
    "neighborhood_attention_packed",
    "pointwise_conv",
    "routing_attention",
    "routing_attention_packed",
    "use_backend",
    "window_attention",
    "window_attention_packed",
]
