"""Non-maximum suppression of a batch in one call of torchvision's operator."""

import torch
import torchvision
from torch import Tensor

from .boxes import top
from .support import require


class Suppression:
    """Non-maximum suppression within each image and group, and the best of what it leaves.

    Args:
        cfg: `nms` of an mm test configuration.
        limit: Boxes kept for each image.
        min_size: Boxes not wider and higher than this are left out, if it is not negative.

    Raises:
        UnsupportedModelError: Another type than `"nms"`, other arguments, or no limit.
    """

    def __init__(self, cfg: dict | None, limit: int, min_size: float = -1) -> None:
        cfg = dict(cfg or {})
        known = {"type", "iou_threshold", "class_agnostic", "split_thr"}
        require(
            cfg.get("type", "nms") == "nms" and "iou_threshold" in cfg and known.issuperset(cfg),
            "test_cfg nms",
            cfg,
            "type='nms' with iou_threshold and class_agnostic",
        )
        require(limit > 0, "test_cfg max_per_img", limit, "positive numbers")
        self.iou_threshold = cfg["iou_threshold"]
        self.class_agnostic = cfg.get("class_agnostic", False)
        self.limit = limit
        self.min_size = min_size

    def __call__(self, boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Choose boxes.

        Args:
            boxes: (B, N, 4).
            scores: (B, N), not negative where valid.
            groups: (B, N) int64, from 0: boxes of two groups do not suppress each other.
            valid: (B, N) bool, the candidates; boxes that are not finite are none.

        Returns:
            Scores (B, limit), falling, -1 where there are no more, and their indices (B, limit) into N.
        """
        if self.min_size >= 0:
            size = boxes[..., 2:] - boxes[..., :2]
            valid = valid & (size > self.min_size).all(-1)
        # What is no candidate has no say in how far the others are moved.
        valid = valid & boxes.isfinite().all(-1)
        boxes = boxes.masked_fill(~valid[..., None], 0)
        # Groups apart in x and images in y, so that no shift, and with it the loss of digits, is larger than mmcv's.
        span = boxes.max() - boxes.min().clamp(max=0) + 1
        image = torch.arange(boxes.shape[0], device=boxes.device)[:, None].expand_as(groups)
        group = torch.zeros_like(groups) if self.class_agnostic else groups
        shift = torch.stack((group, image), dim=-1) * span
        flat_boxes = (boxes + torch.cat((shift, shift), dim=-1)).reshape(-1, 4)
        flat_scores = scores.reshape(-1)
        candidates = valid.reshape(-1).nonzero().squeeze(1)
        kept = torchvision.ops.nms(flat_boxes[candidates], flat_scores[candidates], self.iou_threshold)
        kept = candidates[kept]
        remaining = torch.full_like(flat_scores, -1).index_put((kept,), flat_scores[kept])
        return top(remaining.reshape(scores.shape), self.limit)
