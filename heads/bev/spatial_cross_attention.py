"""BEV queries read what the cameras see: deformable attention in the images, or in images spread over depth."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...kernels import deformable_attention, deformable_attention_3d
from ...kernels.tracing import leaves_sizes_free
from ..arguments import check_choice, check_int
from .deformable import DeformableLayers, Sizes, check_shape, head_directions, level_scales, level_starts
from .projection import CameraPoints

LIFTINGS = ("2d", "dfa3d")


class CameraViews(NamedTuple):
    """Which queries each camera serves, and where their pillars' points are; all layers share it.

    Each camera has a list of queries of its own, all of one length R by filling up. While a graph is exported or
    traced, whose shapes must not depend on what is seen, R is Q and every list holds all queries.

    Attributes:
        queries: (B * N * R,) int, places of the queries in the batch's B * Q; None where every list holds all.
        serves: (B * N, R, 1) bool, False where a list is filled up, or the camera does not see the query.
        places: (B * N, R, P, 2) float, `(x, y)` from 0 to 1 across the image, or with the depth range
            (B * N, R, P, 3), `(x, y, z)`.
        cameras: (B, Q, 1) int, how many cameras serve the query, at least 1.
    """

    queries: Tensor | None
    serves: Tensor
    places: Tensor
    cameras: Tensor


def camera_views(points: CameraPoints, depth_range: tuple[float, float] | None = None) -> CameraViews:
    """The lists of `CameraViews` for points (B, N, Q, P).

    A camera serves a query if it sees any point of its pillar; then it is asked at all of them. On a GPU this waits
    once, for the length of the longest list.

    Args:
        points: Of the pillars, in the images.
        depth_range: Nearest and farthest depth in metres, which become z = 0 and 1; without z if None.
    """
    places = points.places
    if depth_range is not None:
        near, far = depth_range
        places = torch.cat((places, ((points.depth - near) / (far - near))[..., None]), -1)
    seen = points.visible.any(-1)
    batch, _, count = seen.shape
    cameras = seen.sum(1).clamp(min=1)[..., None]
    seen, places = seen.flatten(0, 1), places.flatten(0, 1)
    if leaves_sizes_free():
        return CameraViews(None, seen[..., None], places, cameras)
    longest = int(seen.sum(-1).amax()) if seen.numel() else 0
    # Of equal keys a stable sort keeps the order: neighbours stay neighbours in memory.
    order = seen.byte().argsort(dim=-1, descending=True, stable=True)[:, :longest]
    axes = places.shape[2:]
    chosen = places.gather(1, order[..., None, None].expand(-1, -1, *axes))
    image = torch.arange(len(seen), device=seen.device)[:, None]
    queries = order + image // (len(seen) // max(batch, 1)) * count
    return CameraViews(queries.flatten(), seen.gather(1, order)[..., None], chosen, cameras)


class SpatialCrossAttention(DeformableLayers):
    """Each BEV query samples the cameras that see its pillar, around the pillar's points.

    The results of the cameras are averaged over those that see the query, projected, and added to the query. What no
    camera sees gets the output layer's bias alone. A head's samples in a level belong to the pillar's points in turn:
    sample j to point j mod `num_pillar_points`. With `lifting="dfa3d"` the images are volumes: every token is spread
    over depth by its distribution, and samples have a depth of their own.

    Each sample of a batch has its own cameras and its own list of queries, where the published code takes the list of
    the first sample for all.

    Source: BEVFormer (https://arxiv.org/abs/2203.17270), section 3.3, and DFA3D (https://arxiv.org/abs/2307.12972).

    Args:
        embed_dims: Channels C, a multiple of `num_heads`.
        num_heads: Heads.
        num_levels: Levels of the cameras' feature maps.
        num_points: Samples of a head in a level, for all points of the pillar together.
        num_pillar_points: Points P of a pillar; divides `num_points`.
        lifting: "2d" or "dfa3d".
        dropout: Behind the output layer.

    Raises:
        TypeError: An argument of another type.
        ValueError: An unknown lifting, a number out of its range, or numbers that do not divide each other.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 8,
        num_pillar_points: int = 4,
        lifting: str = "2d",
        dropout: float = 0.1,
    ) -> None:
        check_choice("lifting", lifting, LIFTINGS)
        check_int("num_levels", num_levels, 1)
        super().__init__(embed_dims, num_heads, num_levels, num_points, dropout)
        if num_points % check_int("num_pillar_points", num_pillar_points, 1):
            raise ValueError(f"num_points={num_points}: must be a multiple of num_pillar_points={num_pillar_points}")
        self.num_pillar_points = num_pillar_points
        self.lifting = lifting
        if lifting == "dfa3d":
            self.sampling_offsets_depth = nn.Linear(embed_dims, num_heads * num_levels * num_points)
            nn.init.zeros_(self.sampling_offsets_depth.weight)
            self._set_bias(self.sampling_offsets_depth, head_directions(num_heads).mean(-1, keepdim=True))

    def forward(
        self, query: Tensor, tokens: Tensor, sizes: Sizes, views: CameraViews, depth: Tensor | None = None
    ) -> Tensor:
        """Lift the images to the queries.

        Args:
            query: (B, Q, C).
            tokens: (B, N, K, C) of N cameras, the levels' positions one after the other.
            sizes: `(height, width)` of each level.
            views: Of the pillars' points, from `camera_views`; with z if `lifting` is "dfa3d".
            depth: (B, N, K, D), of each token the distribution over D bins from the nearest depth to the farthest, for
                "dfa3d" alone.

        Returns:
            (B, Q, C), `query` added.

        Raises:
            ValueError: Tensors of other shapes, or `depth` missing or given in vain.
        """
        batch, cameras = self._check(query, tokens, sizes, views, depth)
        values = self._values(tokens.flatten(0, 1))
        weights = self.attention_weights(query).unflatten(2, (self.num_heads, -1)).softmax(-1).flatten(2)
        weights = self._split(self._of_cameras(weights, views, cameras)).squeeze(-1)
        offsets = self._split(self._of_cameras(self.sampling_offsets(query), views, cameras)).to(views.places.dtype)
        offsets = offsets / level_scales(sizes, offsets)[:, None]
        starts = level_starts(sizes)
        if depth is None:
            places = self._around(views.places[..., :2], offsets)
            out = deformable_attention(values, sizes, starts, places, weights)
        else:
            deep = self._of_cameras(self.sampling_offsets_depth(query), views, cameras)
            deep = self._split(deep).to(offsets.dtype) / depth.shape[3]
            places = self._around(views.places, torch.cat((offsets, deep), -1))
            depth = depth.flatten(0, 1).unsqueeze(2)
            out = deformable_attention_3d(values, depth, sizes, starts, places, weights)
        # (B * N, R, C): what lists are filled up with counts nothing.
        out = out * views.serves
        if views.queries is None:
            total = out.unflatten(0, (batch, cameras)).sum(1)
        else:
            total = out.new_zeros(batch * query.shape[1], self.embed_dims)
            total = total.index_add(0, views.queries, out.flatten(0, 1)).view_as(query)
        return query + self.dropout(self.output_proj(total / views.cameras.to(total.dtype)))

    def _of_cameras(self, x: Tensor, views: CameraViews, cameras: int) -> Tensor:
        """Of (B, Q, X) each camera's list, (B * N, R, X)."""
        if views.queries is None:
            return x[:, None].expand(-1, cameras, -1, -1).flatten(0, 1)
        return x.flatten(0, 1).index_select(0, views.queries).view(len(views.serves), -1, x.shape[2])

    def _around(self, places: Tensor, offsets: Tensor) -> Tensor:
        """Offsets (b, R, M, L, P', axes) from the points (b, R, P, axes) of the pillar that they belong to in turn."""
        shape = offsets.shape
        offsets = offsets.unflatten(4, (-1, self.num_pillar_points))
        return (places[:, :, None, None, None] + offsets).reshape(shape)

    def _check(
        self, query: Tensor, tokens: Tensor, sizes: Sizes, views: CameraViews, depth: Tensor | None
    ) -> tuple[int, int]:
        """Batch and number of cameras, if all fits."""
        check_shape("query", query, B=None, Q=None, C=self.embed_dims)
        if len(sizes) != self.num_maps:
            raise ValueError(f"sizes has {len(sizes)} levels, num_levels={self.num_maps}")
        positions = sum(height * width for height, width in sizes)
        check_shape("tokens", tokens, B=query.shape[0], cameras=None, K=positions, C=self.embed_dims)
        batch, cameras = tokens.shape[:2]
        if (depth is None) == (self.lifting == "dfa3d"):
            wanted = "needs depth" if depth is None else "takes no depth"
            raise ValueError(f"lifting={self.lifting!r} {wanted}")
        if depth is not None:
            check_shape("depth", depth, B=batch, cameras=cameras, K=positions, bins=None)
        axes = 2 if depth is None else 3
        places = views.places
        if places.shape[2] != self.num_pillar_points or places.shape[3] < axes or places.shape[0] != batch * cameras:
            raise ValueError(
                f"views.places must be (B * cameras={batch * cameras}, R, P={self.num_pillar_points}, {axes}), "
                f"got shape {tuple(places.shape)}"
            )
        return batch, cameras
