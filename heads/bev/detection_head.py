"""3-D detection from a BEV map."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModule, bias_init_with_prob
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..arguments import check_int, check_keys
from ..mm.registry import MODELS
from .coder import CODE, Detections, NMSFreeCoder
from .decoder import BEVDecoder
from .detection_loss import DetectionLoss, check_targets
from .projection import check_range

# Arguments of these.
_CODER = ("center_range", "max_num", "score_threshold")
_LOSS = ("code_weights", "class_weight", "box_weight", "alpha", "gamma")


@MODELS.register_module()
class BEVDetectionHead(BaseModule):
    """A DETR-like head: learned object queries read the BEV map, each layer predicts, no suppression follows.

    Source: BEVFormer (https://arxiv.org/abs/2203.17270), section 3.6, and Deformable DETR
    (https://arxiv.org/abs/2010.04159).

    Args:
        num_classes: Classes.
        embed_dims: Channels C of the BEV map, a multiple of `num_heads`.
        num_query: Object queries, the most objects that one class of a sample may have.
        num_layers: Decoder layers, each with a loss of its own.
        num_heads: Heads of all attentions.
        num_points: Samples of a head in the map.
        feedforward_channels: Hidden channels of the feed-forward networks.
        dropout: In all layers.
        num_fcs: Hidden layers of the branches for classes and boxes.
        point_range: `(x_min, y_min, z_min, x_max, y_max, z_max)` of the BEV map in metres, in which centres lie.
        coder: Arguments of `NMSFreeCoder`: `center_range`, `max_num`, `score_threshold`.
        loss: Arguments of `DetectionLoss`: `code_weights`, `class_weight`, `box_weight`, `alpha`, `gamma`.
        init_cfg: mmengine's.

    Raises:
        TypeError: An argument of another type.
        ValueError: A number out of its range, or an unknown key.
    """

    def __init__(
        self,
        num_classes: int = 10,
        embed_dims: int = 256,
        num_query: int = 900,
        num_layers: int = 6,
        num_heads: int = 8,
        num_points: int = 4,
        feedforward_channels: int = 512,
        dropout: float = 0.1,
        num_fcs: int = 2,
        point_range: Sequence[float] = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0),
        coder: dict[str, Any] | None = None,
        loss: dict[str, Any] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        for name, value in (("num_classes", num_classes), ("num_query", num_query), ("num_fcs", num_fcs)):
            check_int(name, value, 1)
        self.num_classes = num_classes
        self.point_range = check_range("point_range", point_range)
        self.decoder = BEVDecoder(num_layers, embed_dims, num_heads, num_points, feedforward_channels, dropout)
        self.query_embedding = nn.Embedding(num_query, 2 * embed_dims)
        self.reference_points = nn.Linear(embed_dims, 3)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)
        self.cls_branches = nn.ModuleList(
            _branch(embed_dims, num_fcs, num_classes, normed=True) for _ in range(num_layers)
        )
        self.reg_branches = nn.ModuleList(_branch(embed_dims, num_fcs, CODE, normed=False) for _ in range(num_layers))
        for branch in self.cls_branches:
            nn.init.constant_(list(branch.parameters())[-1], bias_init_with_prob(0.01))
        self.coder = NMSFreeCoder(**check_keys("coder", coder or {}, _CODER))
        self.detection_loss = DetectionLoss(**check_keys("loss", loss or {}, _LOSS))

    def forward(self, bev: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Predictions of all layers.

        Args:
            bev: (B, rows * columns, C).
            size: Rows and columns.

        Returns:
            Class logits (layers, B, num_query, num_classes), and box codes (layers, B, num_query, 10) in metres,
            float32 at least: (x, y, log w, log l, z, log h, sin yaw, cos yaw, vx, vy).

        Raises:
            ValueError: A map of another shape.
        """
        position, content = self.query_embedding.weight.expand(bev.shape[0], -1, -1).chunk(2, -1)
        references = self.reference_points(position).sigmoid()
        queries, codes = self.decoder(content, position, bev, references, size, self.reg_branches)
        logits = torch.stack([branch(query) for branch, query in zip(self.cls_branches, queries, strict=True)])
        low, high = self.point_range[:3], self.point_range[3:]
        scaled = [codes[..., i] * (high[k] - low[k]) + low[k] for k, i in enumerate((0, 1, 4))]
        x, y, z = (one[..., None] for one in scaled)
        return logits, torch.cat((x, y, codes[..., 2:4], z, codes[..., 5:]), -1)

    def loss(self, bev: Tensor, size: tuple[int, int], targets: Sequence[InstanceData]) -> dict[str, Tensor]:
        """Losses of all layers, to be added up.

        Args:
            bev: (B, rows * columns, C).
            size: Rows and columns.
            targets: Of each sample `bboxes_3d` (n, 9), (x, y, z, w, l, h, yaw, vx, vy) in metres and radians, z of the
                gravity centre, unknown velocities NaN; and `labels_3d` (n,) int. n may be 0.

        Returns:
            `loss_cls` and `loss_bbox` of the last layer, and `d0.loss_cls` and so on of those before.

        Raises:
            ValueError: A map of another shape, or targets that `check_targets` refuses.
        """
        check_targets(targets, self.num_classes)
        losses: dict[str, Tensor] = {}
        layers = list(zip(*self.forward(bev, size), strict=True))
        for i, (logits, codes) in enumerate(layers):
            prefix = "" if i == len(layers) - 1 else f"d{i}."
            parts = self.detection_loss(logits, codes, targets)
            losses |= {f"{prefix}loss_cls": parts[0], f"{prefix}loss_bbox": parts[1]}
        return losses

    def detect(self, bev: Tensor, size: tuple[int, int]) -> Detections:
        """The detections of the last layer, as tensors whose shapes depend on the inputs' alone."""
        logits, codes = self.forward(bev, size)
        return self.coder.decode(logits[-1], codes[-1])

    def predict(self, bev: Tensor, size: tuple[int, int]) -> list[InstanceData]:
        """Of each sample `bboxes_3d` (n, 9), `scores_3d` (n,) and `labels_3d` (n,), best first."""
        found = self.detect(bev, size)
        return [
            InstanceData(bboxes_3d=boxes[kept], scores_3d=scores[kept], labels_3d=labels[kept])
            for boxes, scores, labels, kept in zip(*found, strict=True)
        ]


def _branch(embed_dims: int, hidden: int, out: int, normed: bool) -> nn.Sequential:
    """Hidden layers of `embed_dims` channels and a linear layer."""
    layers: list[nn.Module] = []
    for _ in range(hidden):
        layers.append(nn.Linear(embed_dims, embed_dims))
        if normed:
            layers.append(nn.LayerNorm(embed_dims))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(embed_dims, out))
