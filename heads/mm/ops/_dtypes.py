"""The one rule for 16-bit floats: compute in float32, round once."""

from __future__ import annotations

import torch
from torch import Tensor


def widen(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Returns the tensors in the dtype to compute in, that of the first one, or float32 where that is a 16-bit float.

    Half of torchvision's operators and several of PyTorch's have no 16-bit form on the CPU, and sums over many
    positions lose too much in 16 bits anywhere.
    """
    dtype = tensors[0].dtype
    if dtype in (torch.float16, torch.bfloat16):
        dtype = torch.float32
    return tuple(tensor.to(dtype) for tensor in tensors)


def float32_round(value: float) -> float:
    """Returns `value` rounded to float32: mmcv's C++ takes thresholds as `float`.

    A threshold of 0.7 kept in double precision differs from an IoU of exactly float32(0.7), which integer boxes reach.
    """
    return torch.tensor(value, dtype=torch.float32).item()
