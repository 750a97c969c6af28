"""Tensors of noise that a test can draw again."""

import torch


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal noise in float64, alike at each call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
