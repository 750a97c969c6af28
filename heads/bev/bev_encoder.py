"""From the cameras' feature maps to a map in bird's-eye view."""

from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..arguments import check_choice, check_int, check_ints, check_number
from ..mm.registry import MODELS
from .deformable import check_shape
from .encoder import BEVEncoderLayer, BEVEncoderLayers
from .motion import CAN_BUS, history_shift, rotate_map
from .projection import check_range, pillar_points, project
from .spatial_cross_attention import LIFTINGS, SpatialCrossAttention, camera_views
from .temporal_self_attention import TemporalSelfAttention


class LearnedPosition(nn.Module):
    """A learned position of each cell: a half of the channels for its column, a half for its row.

    Args:
        rows: Of the grid.
        columns: Of the grid.
        embed_dims: Channels C, an even number.
    """

    def __init__(self, rows: int, columns: int, embed_dims: int) -> None:
        super().__init__()
        self.row_embed = nn.Embedding(rows, embed_dims // 2)
        self.col_embed = nn.Embedding(columns, embed_dims // 2)
        for table in (self.row_embed, self.col_embed):
            nn.init.uniform_(table.weight)

    def forward(self) -> Tensor:
        """(rows * columns, C)."""
        row, column = self.row_embed.weight, self.col_embed.weight
        both = (column.expand(len(row), -1, -1), row[:, None].expand(-1, len(column), -1))
        return torch.cat(both, -1).flatten(0, 1)


@MODELS.register_module()
class BEVEncoder(BaseModule):
    """Lifts the feature maps of several cameras to a BEV map, with the map of the previous frame as history.

    Each cell of the grid has a learned query, to which the vehicle's motion is added by a small network on can_bus; the
    cameras' tokens carry learned embeddings of their camera and level. The history is turned by the vehicle's turn and
    sampled where it moved from. Calibration, motion and history are each sample's own.

    Source: BEVFormer (https://arxiv.org/abs/2203.17270), and DFA3D (https://arxiv.org/abs/2307.12972) for its lifting.

    Args:
        embed_dims: Channels C of feature maps and BEV map, an even multiple of `num_heads`.
        rows: Of the BEV grid, along y.
        columns: Of the BEV grid, along x.
        point_range: `(x_min, y_min, z_min, x_max, y_max, z_max)` of the grid in the LiDAR frame, in metres.
        num_layers: Layers of temporal and spatial attention.
        num_cameras: Cameras N.
        num_levels: Levels of the feature maps.
        num_heads: Heads of all attentions.
        num_points: Samples of a head in a level of a camera.
        num_pillar_points: Points of a pillar; divides `num_points`.
        num_temporal_points: Samples of a head in a BEV map.
        feedforward_channels: Hidden channels of the feed-forward networks.
        dropout: In all layers.
        lifting: "2d" samples images, "dfa3d" images that are spread over depth.
        depth_range: Nearest and farthest depth of the distributions, in metres; for "dfa3d".
        rotate_center: `(x, y)` in cells about which the history is turned; the grid's middle if None. All published
            configs have `(100, 100)`, which in grids of 150 and of 50 cells is another place: keep it for their
            checkpoints.
        init_cfg: mmengine's.

    Raises:
        TypeError: An argument of another type.
        ValueError: A number out of its range, numbers that do not fit each other, or an unknown lifting.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        rows: int = 200,
        columns: int = 200,
        point_range: Sequence[float] = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0),
        num_layers: int = 6,
        num_cameras: int = 6,
        num_levels: int = 4,
        num_heads: int = 8,
        num_points: int = 8,
        num_pillar_points: int = 4,
        num_temporal_points: int = 4,
        feedforward_channels: int = 512,
        dropout: float = 0.1,
        lifting: str = "2d",
        depth_range: Sequence[float] = (2.0, 58.0),
        rotate_center: Sequence[float] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_choice("lifting", lifting, LIFTINGS)
        check_ints("(rows, columns)", (rows, columns), 1)
        check_int("num_layers", num_layers, 1)
        check_int("num_cameras", num_cameras, 1)
        if check_int("embed_dims", embed_dims, 2) % 2:
            raise ValueError(f"embed_dims={embed_dims}: must be even, half of it is for rows and half for columns")
        self.embed_dims = embed_dims
        self.size = (rows, columns)
        self.point_range = check_range("point_range", point_range)
        self.num_cameras = num_cameras
        self.num_pillar_points = num_pillar_points
        self.lifting = lifting
        self.depth_range = _check_pair("depth_range", depth_range)
        if self.depth_range[0] >= self.depth_range[1]:
            raise ValueError(f"depth_range={depth_range!r}: the first must be below the second")
        center = (columns / 2, rows / 2) if rotate_center is None else rotate_center
        self.rotate_center = _check_pair("rotate_center", center)

        self.bev_embedding = nn.Embedding(rows * columns, embed_dims)
        self.positional_encoding = LearnedPosition(rows, columns, embed_dims)
        self.can_bus_mlp = nn.Sequential(
            nn.Linear(CAN_BUS, embed_dims // 2),
            nn.ReLU(),
            nn.Linear(embed_dims // 2, embed_dims),
            nn.ReLU(),
        )
        self.can_bus_mlp.add_module("norm", nn.LayerNorm(embed_dims))
        self.camera_embeddings = nn.Parameter(torch.randn(num_cameras, embed_dims))
        self.level_embeddings = nn.Parameter(torch.randn(num_levels, embed_dims))
        spatial = (embed_dims, num_heads, num_levels, num_points, num_pillar_points, lifting, dropout)
        self.encoder = BEVEncoderLayers(
            [
                BEVEncoderLayer(
                    TemporalSelfAttention(embed_dims, num_heads, num_temporal_points, dropout),
                    SpatialCrossAttention(*spatial),
                    feedforward_channels,
                    dropout,
                )
                for _ in range(num_layers)
            ]
        )

    def forward(
        self,
        levels: Sequence[Tensor],
        lidar2img: Tensor,
        image_shape: Tensor,
        can_bus: Tensor,
        history: Tensor | None = None,
        has_history: Tensor | None = None,
        depth: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """The BEV map of one frame.

        Args:
            levels: Feature maps (B, N, C, H, W) of N cameras, from fine to coarse.
            lidar2img: (B, N, 4, 4), from the LiDAR frame to pixels, with all that was done to the image inside. Keep it
                in float32.
            image_shape: (B, 2), height and width of the images, padding included.
            can_bus: (B, 18), the vehicle's motion since the previous frame: at 0 to 2 its path in metres in the global
                frame, at -2 its heading in radians, at -1 its turn in degrees.
            history: (B, Q, C), the map that this module gave for the previous frame; None if no sample has one.
            has_history: (B,) bool, which samples have one; all if None.
            depth: With lifting "dfa3d", of each level the distribution (B, N, D, H, W) over D depth bins.

        Returns:
            (B, Q, C), Q = rows * columns; row 0 has the smallest y, column 0 the smallest x.

        Raises:
            ValueError: Tensors of other shapes or numbers, named with what was expected.
        """
        self._check(levels, lidar2img, can_bus, history, has_history, depth)
        points = pillar_points(
            *self.size, self.num_pillar_points, self.point_range, lidar2img.device,
            torch.promote_types(lidar2img.dtype, torch.float32),
        )  # fmt: skip
        views = camera_views(
            project(points, lidar2img, image_shape), self.depth_range if self.lifting == "dfa3d" else None
        )
        sizes = [(level.shape[3], level.shape[4]) for level in levels]
        tokens = torch.cat(
            [
                _as_tokens(level) + (self.camera_embeddings[:, None] + embedding).to(level.dtype)
                for level, embedding in zip(levels, self.level_embeddings, strict=True)
            ],
            dim=2,
        )
        spread = None if depth is None else torch.cat([_as_tokens(level) for level in depth], dim=2)
        motion = self.can_bus_mlp(can_bus.to(self.bev_embedding.weight.dtype))
        query = self.bev_embedding.weight + motion[:, None]
        position = self.positional_encoding()[None]
        shift = None
        if history is not None:
            history = rotate_map(history, can_bus[:, -1], self.size, self.rotate_center)
            shift = history_shift(can_bus, self.point_range)
        return self.encoder(query, position, self.size, tokens, sizes, views, spread, history, shift, has_history)

    def _check(
        self,
        levels: Sequence[Tensor],
        lidar2img: Tensor,
        can_bus: Tensor,
        history: Tensor | None,
        has_history: Tensor | None,
        depth: Sequence[Tensor] | None,
    ) -> None:
        if len(levels) != len(self.level_embeddings):
            raise ValueError(f"levels has {len(levels)} maps, num_levels={len(self.level_embeddings)}")
        batch = levels[0].shape[0]
        for i, level in enumerate(levels):
            check_shape(f"levels[{i}]", level, B=batch, cameras=self.num_cameras, C=self.embed_dims, H=None, W=None)
        check_shape("lidar2img", lidar2img, B=batch, cameras=self.num_cameras, rows=4, columns=4)
        check_shape("can_bus", can_bus, B=batch, numbers=CAN_BUS)
        if history is not None:
            check_shape("history", history, B=batch, Q=self.size[0] * self.size[1], C=self.embed_dims)
        if has_history is not None:
            check_shape("has_history", has_history, B=batch)
        if (depth is None) == (self.lifting == "dfa3d"):
            raise ValueError(f"lifting={self.lifting!r} {'needs depth' if depth is None else 'takes no depth'}")
        if depth is not None:
            if len(depth) != len(levels):
                raise ValueError(f"depth has {len(depth)} maps, levels has {len(levels)}")
            for i, (spread, level) in enumerate(zip(depth, levels, strict=True)):
                height, width = level.shape[3:]
                check_shape(f"depth[{i}]", spread, B=batch, cameras=self.num_cameras, D=None, H=height, W=width)


def _as_tokens(level: Tensor) -> Tensor:
    """(B, N, C, H, W) -> (B, N, H W, C)."""
    return level.flatten(3).transpose(2, 3)


def _check_pair(name: str, value: Sequence[float]) -> tuple[float, float]:
    """Two finite numbers."""
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(f"{name}={value!r}: must be two numbers")
    first, second = (check_number(f"{name}[{i}]", number, -torch.inf) for i, number in enumerate(value))
    return first, second
