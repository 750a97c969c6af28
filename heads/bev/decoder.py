"""Object queries that read the BEV map and refine their reference points layer by layer."""

import torch
from mmcv.cnn.bricks.transformer import FFN
from mmdet.models.layers import inverse_sigmoid
from torch import Tensor, nn

from ...kernels import deformable_attention_from_offsets
from ..arguments import check_int, check_number
from .deformable import DeformableLayers, check_shape


class BEVCrossAttention(DeformableLayers):
    """Deformable attention of object queries in a BEV map; the queries are added.

    Source: Deformable DETR (https://arxiv.org/abs/2010.04159).

    Args:
        embed_dims: Channels C, a multiple of `num_heads`.
        num_heads: Heads.
        num_points: Samples of a head.
        dropout: Behind the output layer.

    Raises:
        TypeError: An argument of another type.
        ValueError: A number out of its range, or `embed_dims` is no multiple of `num_heads`.
    """

    def __init__(self, embed_dims: int = 256, num_heads: int = 8, num_points: int = 4, dropout: float = 0.1) -> None:
        super().__init__(embed_dims, num_heads, 1, num_points, dropout)

    def forward(
        self, query: Tensor, position: Tensor, bev: Tensor, references: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """Read the map.

        Args:
            query: (B, N, C).
            position: (B, N, C), added to the query for offsets and weights.
            bev: (B, rows * columns, C).
            references: (B, N, 2), `(x, y)` from 0 to 1 across the map.
            size: Rows and columns.

        Returns:
            (B, N, C), `query` added.
        """
        asked = query + position
        offsets = self._split(self.sampling_offsets(asked))
        logits = self._split(self.attention_weights(asked)).squeeze(-1)
        out = deformable_attention_from_offsets(
            self._values(bev), [size], [0], references.unsqueeze(2), offsets, logits
        )
        return query + self.dropout(self.output_proj(out))


class DecoderLayer(nn.Module):
    """Self-attention of the queries, cross-attention in the map and a feed-forward network, a LayerNorm behind each.

    Args:
        embed_dims: Channels C, a multiple of `num_heads`.
        num_heads: Heads of both attentions.
        num_points: Samples of a head in the map.
        feedforward_channels: Hidden channels.
        dropout: In all parts.

    Raises:
        TypeError: An argument of another type.
        ValueError: A number out of its range, or `embed_dims` is no multiple of `num_heads`.
    """

    def __init__(
        self, embed_dims: int, num_heads: int, num_points: int, feedforward_channels: int, dropout: float
    ) -> None:
        super().__init__()
        check_int("feedforward_channels", feedforward_channels, 1)
        check_number("dropout", dropout, 0, 1)
        self.cross_attention = BEVCrossAttention(embed_dims, num_heads, num_points, dropout)
        self.self_attention = nn.MultiheadAttention(embed_dims, num_heads, dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.ffn = FFN(embed_dims, feedforward_channels, ffn_drop=dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(embed_dims) for _ in range(3))

    def forward(
        self, query: Tensor, position: Tensor, bev: Tensor, references: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """(B, N, C); arguments as of `BEVCrossAttention`."""
        asked = query + position
        mixed, _ = self.self_attention(asked, asked, query, need_weights=False)
        query = self.norms[0](query + self.dropout(mixed))
        query = self.norms[1](self.cross_attention(query, position, bev, references, size))
        return self.norms[2](self.ffn(query))


class BEVDecoder(nn.Module):
    """Decoder layers, each followed by a refinement of the reference points.

    Source: Deformable DETR (https://arxiv.org/abs/2010.04159), section 4 (iterative refinement), in three dimensions.

    Args:
        num_layers: Layers.
        embed_dims: Channels C, a multiple of `num_heads`.
        num_heads: Heads of both attentions.
        num_points: Samples of a head in the map.
        feedforward_channels: Hidden channels.
        dropout: In all parts.

    Raises:
        TypeError: An argument of another type.
        ValueError: A number out of its range, or `embed_dims` is no multiple of `num_heads`.
    """

    def __init__(
        self,
        num_layers: int = 6,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_points: int = 4,
        feedforward_channels: int = 512,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_int("num_layers", num_layers, 1)
        arguments = (embed_dims, num_heads, num_points, feedforward_channels, dropout)
        self.embed_dims = embed_dims
        self.layers = nn.ModuleList(DecoderLayer(*arguments) for _ in range(num_layers))

    def forward(
        self,
        query: Tensor,
        position: Tensor,
        bev: Tensor,
        references: Tensor,
        size: tuple[int, int],
        box_branches: nn.ModuleList,
    ) -> tuple[Tensor, Tensor]:
        """Decode.

        Args:
            query: (B, N, C).
            position: (B, N, C).
            bev: (B, rows * columns, C).
            references: (B, N, 3), `(x, y, z)` from 0 to 1 across the range.
            size: Rows and columns of the map.
            box_branches: Of each layer a module (B, N, C) -> (B, N, code), whose channels 0, 1 and 4 move the
                references, before their sigmoid.

        Returns:
            Queries behind each layer (layers, B, N, C), and what their branches say (layers, B, N, code), float32 at
            least: channels 0, 1 and 4 hold the moved reference, from 0 to 1 across the range.

        Raises:
            ValueError: Tensors of other shapes.
        """
        check_shape("bev", bev, B=query.shape[0], Q=size[0] * size[1], C=self.embed_dims)
        references = references.to(torch.promote_types(references.dtype, torch.float32))
        queries, codes = [], []
        for layer, branch in zip(self.layers, box_branches, strict=True):
            query = layer(query, position, bev, references[..., :2], size)
            code = branch(query).to(references.dtype)
            x_y, z = inverse_sigmoid(references).split((2, 1), -1)
            place = torch.cat((code[..., :2] + x_y, code[..., 4:5] + z), -1).sigmoid()
            queries.append(query)
            codes.append(torch.cat((place[..., :2], code[..., 2:4], place[..., 2:], code[..., 5:]), -1))
            references = place.detach()
        return torch.stack(queries), torch.stack(codes)
