"""Candidates of the heads that predict at every place of a pyramid: dense detectors and region proposals."""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.dense_heads import GFLHead, RPNHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from torch import Tensor

from .boxes import decode, rows, top
from .support import inherits, require


class DensePrediction:
    """Boxes of a head that predicts at every place of a feature pyramid: candidates, decoded, before suppression.

    Args:
        head: A head that leaves prediction to mmdet's `BaseDenseHead` (RetinaNet, ATSS, FCOS, RTMDet, …), `GFLHead`, or
            `RPNHead`.
        cfg: The test configuration.

    Raises:
        UnsupportedModelError: Another head, or a configuration without a number of candidates.
    """

    def __init__(self, head: Any, cfg: dict) -> None:
        inherited = ("predict", "predict_by_feat")
        self.is_gfl = inherits(head, GFLHead, *inherited, "_predict_by_feat_single", "_bbox_post_process")
        is_rpn = inherits(head, RPNHead, *inherited, "_predict_by_feat_single", "_bbox_post_process")
        is_base = inherits(head, BaseDenseHead, *inherited, "_predict_by_feat_single", "_bbox_post_process")
        require(
            self.is_gfl or is_rpn or is_base,
            "head",
            type(head).__name__,
            "GFLHead, RPNHead and heads that predict as mmdet's BaseDenseHead does (RetinaHead, ATSSHead, FCOSHead, "
            "RTMDetHead, RTMDetSepBNHead, …)",
        )
        self.head = head
        self.count = cfg.get("nms_pre", -1)
        # The region proposals of RPNHead are ranked, not filtered by score.
        self.threshold = -1.0 if is_rpn else cfg.get("score_thr", 0)
        require(self.count > 0, "test_cfg nms_pre", self.count, "positive numbers")

    def _scores(self, logits: Tensor) -> Tensor:
        loss = self.head.loss_cls
        if getattr(loss, "custom_cls_channels", False):
            return loss.get_activation(logits)
        return logits.sigmoid() if self.head.use_sigmoid_cls else logits.softmax(-1)[..., :-1]

    def __call__(self, features: Sequence[Tensor], height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Candidates of each image.

        Args:
            features: Levels (B, C, H_i, W_i).
            height: Of the image without padding, in pixels.
            width: Of the image without padding, in pixels.

        Returns:
            Boxes (B, N, 4), scores (B, N), labels (B, N) and levels (B, N); N is `nms_pre` times the number of levels.
            The score is -1 where a level has no more candidates above the threshold.
        """
        logits, deltas, *factors = self.head(features)
        sizes = [level.shape[-2:] for level in logits]
        priors = self.head.prior_generator.grid_priors(sizes, dtype=logits[0].dtype, device=logits[0].device)
        coder = self.head.bbox_coder
        levels = []
        for i, (level_logits, level_deltas, level_priors) in enumerate(zip(logits, deltas, priors, strict=True)):
            batch = level_logits.shape[0]
            score = self._scores(level_logits.permute(0, 2, 3, 1).reshape(batch, -1, self.head.cls_out_channels))
            classes = score.shape[-1]
            score, index = top(score.reshape(batch, -1), self.count)
            place, label = index // classes, index % classes

            delta = level_deltas.permute(0, 2, 3, 1)
            if self.is_gfl:
                delta = rows(delta.reshape(batch, -1, 4 * (self.head.reg_max + 1)), place)
                delta = self.head.integral(delta).reshape(batch, -1, 4) * self.head.prior_generator.strides[i][0]
                level_priors = self.head.anchor_center(level_priors)
            else:
                delta = rows(delta.reshape(batch, -1, 4), place)
            box = decode(coder, level_priors[place], delta, height, width)

            final = score
            if factors:
                factor = factors[0][i].permute(0, 2, 3, 1).reshape(batch, -1).sigmoid()
                final = score * factor.gather(1, place)
            final = torch.where(score > self.threshold, final, torch.full_like(score, -1))
            levels.append((box, final, label, torch.full_like(label, i)))
        boxes, scores, labels, groups = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
        return boxes, scores, labels, groups
