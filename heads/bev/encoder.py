"""Layers of temporal and spatial attention over BEV queries."""

import torch
from mmcv.cnn.bricks.transformer import FFN
from torch import Tensor, nn

from ..arguments import check_int, check_number
from .deformable import Sizes
from .projection import grid_points
from .spatial_cross_attention import CameraViews, SpatialCrossAttention
from .temporal_self_attention import TemporalSelfAttention


class BEVEncoderLayer(nn.Module):
    """Temporal self-attention, spatial cross-attention and a feed-forward network, a LayerNorm behind each.

    Args:
        temporal_attention: Of the BEV maps.
        spatial_attention: Of the cameras, of as many channels.
        feedforward_channels: Hidden channels.
        dropout: In the feed-forward network.

    Raises:
        ValueError: The attentions differ in channels, or a number is out of its range.
    """

    def __init__(
        self,
        temporal_attention: TemporalSelfAttention,
        spatial_attention: SpatialCrossAttention,
        feedforward_channels: int = 512,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        dims = temporal_attention.embed_dims
        if spatial_attention.embed_dims != dims:
            raise ValueError(f"attentions of {dims} and {spatial_attention.embed_dims} channels, they must be alike")
        check_int("feedforward_channels", feedforward_channels, 1)
        check_number("dropout", dropout, 0, 1)
        self.temporal_attention = temporal_attention
        self.spatial_attention = spatial_attention
        self.ffn = FFN(dims, feedforward_channels, ffn_drop=dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(dims) for _ in range(3))

    def forward(
        self,
        query: Tensor,
        position: Tensor,
        history: Tensor,
        current: Tensor,
        references: Tensor,
        size: tuple[int, int],
        tokens: Tensor,
        sizes: Sizes,
        views: CameraViews,
        depth: Tensor | None = None,
    ) -> Tensor:
        """(B, Q, C); arguments as of `TemporalSelfAttention` and `SpatialCrossAttention`."""
        query = self.norms[0](self.temporal_attention(query, position, history, current, references, size))
        query = self.norms[1](self.spatial_attention(query, tokens, sizes, views, depth))
        return self.norms[2](self.ffn(query))


class BEVEncoderLayers(nn.Module):
    """The encoder's layers one after the other.

    A sample without history has its own queries in the place of history, in each layer as they are there. A sample with
    history has the map of the previous frame, and as the current map the encoder's input in every layer. Samples of
    both kinds may stand in one batch.

    Source: BEVFormer (https://arxiv.org/abs/2203.17270), and its published code for what is the current map.

    Args:
        layers: The layers.

    Raises:
        ValueError: No layer.
    """

    def __init__(self, layers: list[BEVEncoderLayer]) -> None:
        super().__init__()
        if not layers:
            raise ValueError("layers: needs one at least")
        self.layers = nn.ModuleList(layers)

    def forward(
        self,
        query: Tensor,
        position: Tensor,
        size: tuple[int, int],
        tokens: Tensor,
        sizes: Sizes,
        views: CameraViews,
        depth: Tensor | None = None,
        history: Tensor | None = None,
        shift: Tensor | None = None,
        has_history: Tensor | None = None,
    ) -> Tensor:
        """Encode.

        Args:
            query: (B, Q, C), Q = rows * columns.
            position: (B, Q, C) or (1, Q, C), for the temporal attention alone.
            size: Rows and columns of the BEV map.
            tokens: (B, N, K, C) of the cameras.
            sizes: `(height, width)` of each level of the tokens.
            views: From `camera_views`.
            depth: (B, N, K, D) for lifting "dfa3d".
            history: (B, Q, C), the previous frame's map, turned as the vehicle turned; None if no sample has one.
            shift: (B, 2), by how much `(x, y)` of the grid, from 0 to 1 across it, the vehicle moved; with `history`.
            has_history: (B,) bool, which samples have a history; all if None.

        Returns:
            (B, Q, C).

        Raises:
            ValueError: `history` without `shift`.
        """
        # float32 at least, whatever the features are: half precision would place the cells by a tenth of one.
        dtype = torch.promote_types(query.dtype, torch.float32)
        cells = grid_points(*size, device=query.device, dtype=dtype)
        references = cells.expand(query.shape[0], 2, -1, -1)
        source, known = query, None if has_history is None else has_history[:, None, None]

        def of_frame(given: Tensor, own: Tensor) -> Tensor:
            """What samples with a history are given, of the others their own."""
            return given if known is None else torch.where(known, given, own)

        if history is not None:
            if shift is None:
                raise ValueError("history needs shift, how far the vehicle moved since")
            history = history.to(query.dtype)
            moved = cells + of_frame(shift[:, None], torch.zeros_like(shift)[:, None]).to(dtype)
            references = torch.stack((moved, references[:, 1]), 1)
        for layer in self.layers:
            previous = query if history is None else of_frame(history, query)
            current = query if history is None else of_frame(source, query)
            query = layer(query, position, previous, current, references, size, tokens, sizes, views, depth)
        return query
