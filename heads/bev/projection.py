"""Points of the bird's-eye-view grid and where cameras see them.

LiDAR frame: x right, y forward, z up, in metres. A BEV grid of rows × columns covers the x and y of a range
`(x_min, y_min, z_min, x_max, y_max, z_max)`; row 0 has the smallest y, column 0 the smallest x, and cell number
`row * columns + column` is the number of a query.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..arguments import check_number

# What is nearer to a camera's plane than this, in metres, or behind it, no camera sees.
_NEAREST = 1e-5


class CameraPoints(NamedTuple):
    """Points of the LiDAR frame in the images of N cameras.

    Attributes:
        places: (B, N, Q, P, 2) float, `(x, y)` from 0 to 1 across the image; without meaning where not visible.
        depth: (B, N, Q, P) float, distance in metres along the camera's axis.
        visible: (B, N, Q, P) bool: in front of the camera and inside of its image.
    """

    places: Tensor
    depth: Tensor
    visible: Tensor


def check_range(name: str, value: Any) -> tuple[float, ...]:
    """The value as `(x_min, y_min, z_min, x_max, y_max, z_max)`, each minimum below its maximum.

    Raises:
        TypeError: It is no sequence, or one of its items is no number.
        ValueError: It has not six numbers, or a minimum is not below its maximum.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name}={value!r}: must be a sequence of six numbers, got {type(value).__name__}")
    numbers = tuple(check_number(f"{name}[{i}]", number, -torch.inf) for i, number in enumerate(value))
    if len(numbers) != 6 or any(low >= high for low, high in zip(numbers[:3], numbers[3:], strict=True)):
        raise ValueError(
            f"{name}={value!r}: must be (x_min, y_min, z_min, x_max, y_max, z_max), each min below its max"
        )
    return numbers


def pillar_points(
    rows: int,
    columns: int,
    count: int,
    point_range: Sequence[float],
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Points in a pillar over each cell of the grid, in the LiDAR frame.

    They stand over the cell's centre. Of a range h metres high the heights go from 0.5 to h - 0.5 metres above its
    bottom at even distances, as in the published code, whatever `count` is; a single point stands at the first.

    Source: BEVFormer (https://arxiv.org/abs/2203.17270), section 3.3.

    Args:
        rows: Of the grid.
        columns: Of the grid.
        count: Points P of a pillar.
        point_range: `(x_min, y_min, z_min, x_max, y_max, z_max)`.
        device: Of the result.
        dtype: Of the result.

    Returns:
        (rows * columns, P, 3), `(x, y, z)` in metres.
    """
    low, high = point_range[:3], point_range[3:]
    height = high[2] - low[2]
    flat = grid_points(rows, columns, device, dtype)[:, None].expand(-1, count, -1)
    z = torch.linspace(0.5, height - 0.5, count, device=device, dtype=dtype).expand(rows * columns, -1)
    x, y = (flat[..., i] * (high[i] - low[i]) + low[i] for i in range(2))
    return torch.stack((x, y, z + low[2]), -1)


def grid_points(
    rows: int, columns: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Centres `(x, y)` of the grid's cells from 0 to 1 across it, (rows * columns, 2)."""
    y = (torch.arange(rows, device=device, dtype=dtype) + 0.5) / rows
    x = (torch.arange(columns, device=device, dtype=dtype) + 0.5) / columns
    return torch.stack((x.expand(rows, -1), y[:, None].expand(-1, columns)), -1).flatten(0, 1)


def project(points: Tensor, lidar2img: Tensor, image_shape: Tensor) -> CameraPoints:
    """Where the cameras of each sample see points.

    A point (x, y, z) has the homogeneous pixel `lidar2img @ (x, y, z, 1)` = (u w, v w, w, 1) with its depth w. It is
    computed by products and sums of numbers, never by a matrix product, which autocast would round to half precision
    and a GPU to TF32: both move points by whole cells.

    Args:
        points: (Q, P, 3) in metres, in the LiDAR frame.
        lidar2img: (B, N, 4, 4), from the LiDAR frame to pixels, with all that was done to the image inside.
        image_shape: (B, 2), height and width of the images, padding included.

    Returns:
        The points in all images, in `lidar2img`'s dtype, float32 at least.

    Raises:
        ValueError: A tensor of another shape.
    """
    batch = lidar2img.shape[0] if lidar2img.dim() else 0
    if lidar2img.dim() != 4 or tuple(lidar2img.shape[2:]) != (4, 4):
        raise ValueError(f"lidar2img must be (B, cameras, 4, 4), got shape {tuple(lidar2img.shape)}")
    if tuple(image_shape.shape) != (batch, 2):
        raise ValueError(f"image_shape must be (B={batch}, 2), height and width, got shape {tuple(image_shape.shape)}")
    if points.dim() != 3 or points.shape[2] != 3:
        raise ValueError(f"points must be (Q, P, 3), got shape {tuple(points.shape)}")
    dtype = torch.promote_types(lidar2img.dtype, torch.float32)
    x, y, z = points.to(dtype).unbind(-1)
    matrix = lidar2img.to(dtype)[..., None, None]
    # (B, N, Q, P) each.
    u, v, depth = (
        matrix[:, :, i, 0] * x + matrix[:, :, i, 1] * y + matrix[:, :, i, 2] * z + matrix[:, :, i, 3] for i in range(3)
    )
    height, width = image_shape.to(dtype)[:, None, None, None].unbind(-1)
    distance = depth.clamp(min=_NEAREST)
    u, v = u / distance / width, v / distance / height
    visible = (depth > _NEAREST) & (u > 0) & (u < 1) & (v > 0) & (v < 1)
    return CameraPoints(torch.stack((u, v), -1), depth, visible)
