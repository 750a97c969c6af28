"""The traceable form of mmdet's two-stage detectors."""

from collections.abc import Sequence

import torch
from mmdet.models.detectors import TwoStageDetector
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from torch import Tensor

from .base import TraceableModel
from .boxes import decode, fill_empty, rows
from .dense_prediction import DensePrediction
from .region_pooling import RegionPool
from .support import inherits, require
from .suppression import Suppression


class TraceableTwoStageDetector(TraceableModel):
    """Faster R-CNN and, with a mask head, Mask R-CNN; arguments and errors as of `TraceableModel`."""

    serves = TwoStageDetector
    description = "Faster and Mask R-CNN"
    outputs: tuple[str, ...] = ("boxes", "scores", "labels")

    def __init__(self, model: TwoStageDetector) -> None:
        super().__init__(model)
        rpn, roi = model.rpn_head, model.roi_head
        require(
            inherits(roi, StandardRoIHead, "predict", "predict_bbox", "predict_mask", "_bbox_forward", "_mask_forward")
            and not roi.with_shared_head,
            "region head",
            type(roi).__name__,
            "StandardRoIHead without shared head",
        )
        require(
            inherits(roi.bbox_head, BBoxHead, "predict_by_feat", "_predict_by_feat_single"),
            "box head",
            type(roi.bbox_head).__name__,
            "BBoxHead and heads that predict as it does",
        )
        self._propose = DensePrediction(rpn, rpn.test_cfg)
        self._suppress_proposals = Suppression(
            rpn.test_cfg.get("nms"), rpn.test_cfg.max_per_img, rpn.test_cfg.get("min_bbox_size", -1)
        )
        cfg = roi.test_cfg
        self._suppress = Suppression(cfg.get("nms"), cfg.max_per_img)
        self._threshold = cfg.score_thr
        self._pool = RegionPool(roi.bbox_roi_extractor)
        if roi.with_mask:
            require(
                inherits(roi.mask_head, FCNMaskHead, "predict_by_feat", "_predict_by_feat_single"),
                "mask head",
                type(roi.mask_head).__name__,
                "FCNMaskHead and heads that predict as it does",
            )
            self._pool_masks = RegionPool(roi.mask_roi_extractor)
            self.outputs = (*self.outputs, "masks")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Detect.

        Args:
            images: (B, 3, H, W), 0 to 255.

        Returns:
            As of `TraceableDenseDetector`, and with a mask head masks (B, N, h, w), 28×28 in the published models: the
            probability that a point of the box belongs to the object. Resized to the box and cut at `mask_thr_binary`
            (0.5) they are the object's mask.
        """
        height, width = images.shape[-2:]
        roi = self.model.roi_head
        features = self.model.extract_feat(self.preprocess(images))
        proposals, scores, _, levels = self._propose(features, height, width)
        scores, index = self._suppress_proposals(proposals, scores, levels, scores >= 0)
        proposals, known = rows(proposals, index), scores >= 0

        boxes, scores, labels = self._classify(features, proposals, height, width)
        valid = (scores > self._threshold) & known[..., None]
        batch = boxes.shape[0]
        boxes = boxes.reshape(batch, -1, 4)
        scores, index = self._suppress(
            boxes, scores.reshape(batch, -1), labels.reshape(batch, -1), valid.reshape(batch, -1)
        )
        boxes, scores, labels = fill_empty(rows(boxes, index), scores, labels.reshape(batch, -1).gather(1, index))
        if not roi.with_mask:
            return boxes, scores, labels
        masks = roi.mask_head(self._pool_masks(features, boxes)).sigmoid()
        label = torch.zeros_like(labels) if roi.mask_head.class_agnostic else labels.clamp(min=0)
        masks = masks[torch.arange(masks.shape[0], device=masks.device), label.reshape(-1)]
        return boxes, scores, labels, masks.reshape(batch, -1, *masks.shape[-2:])

    def _classify(
        self, features: Sequence[Tensor], proposals: Tensor, height: int, width: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, R, K, 4), scores and labels (B, R, K) of proposals (B, R, 4), for each of K classes."""
        batch, count, _ = proposals.shape
        head = self.model.roi_head.bbox_head
        logits, deltas = head(self._pool(features, proposals))
        scores = head.loss_cls.get_activation(logits) if head.custom_cls_channels else logits.softmax(-1)
        scores = scores[:, : head.num_classes].reshape(batch, count, head.num_classes)
        deltas = deltas.reshape(batch, count, -1, 4)
        boxes = decode(head.bbox_coder, proposals[:, :, None].expand_as(deltas), deltas, height, width)
        labels = torch.arange(head.num_classes, device=scores.device).expand_as(scores)
        return boxes.expand(*scores.shape, 4), scores, labels
