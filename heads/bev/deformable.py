"""The layers that the deformable attention modules of bird's-eye view share."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..arguments import check_int, check_number

Sizes = Sequence[tuple[int, int]]


class DeformableLayers(nn.Module):
    """Linear layers of multi-scale deformable attention: what is sampled, where, with which weights, and the output.

    Initially the offsets of a head point in one direction, that of the head, and those of its points reach 1, 2, 3, ...
    pixels far; all weights are equal. Source: Deformable DETR (https://arxiv.org/abs/2010.04159), appendix A.4.

    Args:
        embed_dims: Channels C of values and result, a multiple of `num_heads`.
        num_heads: Heads M.
        num_maps: Maps or levels L that each query samples.
        num_points: Samples P of a head in a map.
        dropout: Behind the output layer, in training.
        query_dims: Channels that offsets and weights are computed from; `embed_dims` if None.

    Raises:
        TypeError: An argument of another type.
        ValueError: A number out of its range, or `embed_dims` is no multiple of `num_heads`.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        num_maps: int,
        num_points: int,
        dropout: float = 0.1,
        query_dims: int | None = None,
    ) -> None:
        super().__init__()
        check_int("num_heads", num_heads, 1)
        if check_int("embed_dims", embed_dims, 1) % num_heads:
            raise ValueError(f"embed_dims={embed_dims}: must be a multiple of num_heads={num_heads}")
        check_int("num_points", num_points, 1)
        check_number("dropout", dropout, 0, 1)
        self.embed_dims = embed_dims
        self.num_heads = num_heads
        self.num_maps = num_maps
        self.num_points = num_points
        samples = num_heads * num_maps * num_points
        query_dims = embed_dims if query_dims is None else query_dims
        self.sampling_offsets = nn.Linear(query_dims, samples * 2)
        self.attention_weights = nn.Linear(query_dims, samples)
        self.value_proj = nn.Linear(embed_dims, embed_dims)
        self.output_proj = nn.Linear(embed_dims, embed_dims)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.attention_weights.bias)
        directions = head_directions(num_heads)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        self._set_bias(self.sampling_offsets, directions)

    def _set_bias(self, layer: nn.Linear, directions: Tensor) -> None:
        """Sets biases of offsets: the direction (M, axes) of the head, times the point's number from 1."""
        steps = torch.arange(1, self.num_points + 1)[:, None]
        bias = directions[:, None, None] * steps
        with torch.no_grad():
            layer.bias.copy_(bias.expand(-1, self.num_maps, -1, -1).flatten())

    def _split(self, x: Tensor) -> Tensor:
        """(B, Q, M L P axes) -> (B, Q, M, L, P, axes)."""
        return x.unflatten(2, (self.num_heads, self.num_maps, self.num_points, -1))

    def _values(self, x: Tensor) -> Tensor:
        """(B, K, C) -> projected, (B, K, M, C / M)."""
        return self.value_proj(x).unflatten(2, (self.num_heads, -1))


def head_directions(num_heads: int) -> Tensor:
    """Unit vectors (M, 2) at even angles, the first along x."""
    angles = torch.arange(num_heads) * (2 * math.pi / num_heads)
    return torch.stack((angles.cos(), angles.sin()), -1)


def level_starts(sizes: Sizes) -> list[int]:
    """First position of each level where all are flattened one after the other."""
    return [sum(height * width for height, width in sizes[:i]) for i in range(len(sizes))]


def level_scales(sizes: Sizes, like: Tensor) -> Tensor:
    """`(width, height)` of each level, (L, 2), of the dtype and on the device of a tensor; a GPU is not waited for."""
    return torch.stack([torch.stack([like.new_full((), side) for side in size[::-1]]) for size in sizes])


def check_shape(name: str, tensor: Tensor, **expected: int | None) -> None:
    """Raises a ValueError if a tensor has not the axes that are named, of these sizes; None is any size."""
    fits = tensor.dim() == len(expected) and all(
        size is None or size == found for size, found in zip(expected.values(), tensor.shape, strict=True)
    )
    if not fits:
        axes = ", ".join(axis if size is None else f"{axis}={size}" for axis, size in expected.items())
        raise ValueError(f"{name} must be ({axes}), got shape {tuple(tensor.shape)}")
