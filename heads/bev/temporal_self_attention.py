"""BEV queries read the BEV map of the previous frame and their own."""

import torch
from torch import Tensor

from ...kernels import deformable_attention_from_offsets
from .deformable import DeformableLayers, check_shape

# The previous frame and this one.
_FRAMES = 2


class TemporalSelfAttention(DeformableLayers):
    """Deformable attention of BEV queries in two BEV maps, the previous frame's and the current, averaged.

    Offsets and weights are computed from the history's features at the query's cell beside the query with its position;
    both maps have offsets and a softmax of their own and share the value layer. The mean goes through the output layer
    and is added to the query. Batches are right at any size, where the published code mixes the maps of samples.

    Source: BEVFormer (https://arxiv.org/abs/2203.17270), section 3.4.

    Args:
        embed_dims: Channels C, a multiple of `num_heads`.
        num_heads: Heads.
        num_points: Samples of a head in a map.
        dropout: Behind the output layer.

    Raises:
        TypeError: An argument of another type.
        ValueError: A number out of its range, or `embed_dims` is no multiple of `num_heads`.
    """

    def __init__(self, embed_dims: int = 256, num_heads: int = 8, num_points: int = 4, dropout: float = 0.1) -> None:
        super().__init__(embed_dims, num_heads, _FRAMES, num_points, dropout, query_dims=2 * embed_dims)

    def forward(
        self,
        query: Tensor,
        position: Tensor,
        history: Tensor,
        current: Tensor,
        references: Tensor,
        size: tuple[int, int],
    ) -> Tensor:
        """Mix the frames.

        Args:
            query: (B, Q, C), Q = rows * columns.
            position: (B, Q, C) or (1, Q, C), added to the query for offsets and weights alone.
            history: (B, Q, C), the map of the previous frame; where there is none the query itself.
            current: (B, Q, C), the map of this frame.
            references: (B, 2, Q, 2) float, `(x, y)` from 0 to 1 across the map around which each query samples in
                history and current; beyond the map all is 0.
            size: Rows and columns of the maps.

        Returns:
            (B, Q, C), `query` added.

        Raises:
            ValueError: Tensors of other shapes.
        """
        batch, cells = query.shape[0], size[0] * size[1]
        for name, tensor in (("query", query), ("history", history), ("current", current)):
            check_shape(name, tensor, B=batch, Q=cells, C=self.embed_dims)
        check_shape("references", references, B=batch, frames=_FRAMES, Q=cells, axes=2)
        values = self._values(torch.stack((history, current), 1).flatten(0, 1))
        asked = torch.cat((history, query + position), -1)
        # A map of each frame is an image of its own, (B * 2, Q, M, 1, P, ...).
        offsets, logits = (
            self._split(layer(asked)).movedim(3, 1).flatten(0, 1).unsqueeze(3)
            for layer in (self.sampling_offsets, self.attention_weights)
        )
        references = references.flatten(0, 1).unsqueeze(2)
        out = deformable_attention_from_offsets(values, [size], [0], references, offsets, logits.squeeze(-1))
        return query + self.dropout(self.output_proj(out.unflatten(0, (batch, _FRAMES)).mean(1)))
