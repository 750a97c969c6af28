"""How the vehicle moved since the previous frame, and that frame's BEV map seen from where it is now."""

from collections.abc import Sequence

import torch
from torch import Tensor

# Numbers of nuScenes' can_bus as the published code uses them: what they say is in `history_shift` and `rotate_map`.
CAN_BUS = 18


def history_shift(can_bus: Tensor, point_range: Sequence[float]) -> Tensor:
    """By how much `(x, y)` the vehicle moved, as a share of the grid's width and depth.

    Source: BEVFormer (https://arxiv.org/abs/2203.17270), its published code.

    Args:
        can_bus: (B, 18): at 0 and 1 the metres moved along the axes x and y of the global frame since the previous
            frame, at -2 the vehicle's heading in radians.
        point_range: `(x_min, y_min, z_min, x_max, y_max, z_max)` of the grid, in metres.

    Returns:
        (B, 2), in can_bus' dtype, float32 at least.
    """
    can_bus = can_bus.to(torch.promote_types(can_bus.dtype, torch.float32))
    x, y, heading = can_bus[:, 0], can_bus[:, 1], can_bus[:, -2]
    length, direction = (x.square() + y.square()).sqrt(), heading - torch.atan2(y, x)
    width, depth = point_range[3] - point_range[0], point_range[4] - point_range[1]
    return torch.stack((length * direction.sin() / width, length * direction.cos() / depth), -1)


def rotate_map(bev: Tensor, angle: Tensor, size: tuple[int, int], center: Sequence[float]) -> Tensor:
    """Turn each sample's map as torchvision's `rotate` turns an image: nearest neighbour, zeros from beyond the map.

    Args:
        bev: (B, Q, C), Q = rows * columns.
        angle: (B,), in degrees, anticlockwise where row 0 is at the top.
        size: Rows and columns.
        center: `(x, y)` about which to turn, in cells, from the corner of the first.

    Returns:
        (B, Q, C).
    """
    rows, columns = size
    turn = torch.deg2rad(angle.to(torch.promote_types(angle.dtype, torch.float32)))[:, None]
    cos, sin = turn.cos(), turn.sin()
    cell = torch.arange(rows * columns, device=bev.device)
    # Of each cell of the result the place in the map, from the centre: a cell's own is at its middle.
    x = (cell % columns).to(turn.dtype) + 0.5 - center[0]
    y = (cell // columns).to(turn.dtype) + 0.5 - center[1]
    column = (cos * x - sin * y + center[0] - 0.5).round().long()
    row = (sin * x + cos * y + center[1] - 0.5).round().long()
    inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    source = torch.where(inside, row * columns + column, 0)
    source = source + torch.arange(bev.shape[0], device=bev.device)[:, None] * (rows * columns)
    turned = bev.flatten(0, 1).index_select(0, source.flatten()).view(bev.shape)
    return torch.where(inside[..., None], turned, 0)
