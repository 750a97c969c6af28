"""Features of boxes, pooled from a pyramid."""

from collections.abc import Sequence
from typing import Any

import torch
import torchvision
from mmcv.ops import RoIAlign
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from torch import Tensor

from .support import inherits, require


class RegionPool:
    """Features of regions from the level of a pyramid that fits their size.

    Args:
        extractor: mmdet's `SingleRoIExtractor` of `RoIAlign` layers.

    Raises:
        UnsupportedModelError: Another extractor or layer.
    """

    def __init__(self, extractor: Any) -> None:
        require(
            inherits(extractor, SingleRoIExtractor, "forward", "map_roi_levels"),
            "region extractor",
            type(extractor).__name__,
            "SingleRoIExtractor",
        )
        for layer in extractor.roi_layers:
            require(
                type(layer) is RoIAlign and layer.pool_mode == "avg",
                "region layer",
                layer,
                "RoIAlign with pool_mode='avg'",
            )
        self.extractor = extractor

    def __call__(self, features: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """Pool boxes (B, N, 4) to (B * N, C, h, w)."""
        batch, count, _ = boxes.shape
        image = torch.arange(batch, device=boxes.device)[:, None].expand(batch, count).reshape(-1, 1)
        regions = torch.cat((image.to(boxes.dtype), boxes.reshape(-1, 4)), dim=1)
        layers = self.extractor.roi_layers
        features = features[: len(layers)]
        if len(layers) == 1:
            return self._align(layers[0], features[0], regions)
        level = self.extractor.map_roi_levels(regions, len(layers))
        pooled = regions.new_zeros(regions.shape[0], self.extractor.out_channels, *layers[0].output_size)
        for i, layer in enumerate(layers):
            index = (level == i).nonzero().squeeze(1)
            pooled = pooled.index_put((index,), self._align(layer, features[i], regions[index]))
        return pooled

    @staticmethod
    def _align(layer: RoIAlign, feature: Tensor, regions: Tensor) -> Tensor:
        return torchvision.ops.roi_align(
            feature, regions, layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned
        )
