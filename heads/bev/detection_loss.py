"""Loss of 3-D detections: matched one to one, focal loss of classes and L1 of box codes."""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.losses import FocalLoss, L1Loss
from mmdet.models.task_modules.assigners import HungarianAssigner
from mmdet.models.task_modules.assigners.match_cost import BaseMatchCost
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..arguments import check_number
from .coder import BOX, CODE, encode_boxes
from .deformable import check_shape

# Numbers of a code that matching compares: all but the velocity, which may be unknown.
_MATCHED = 8


def check_targets(targets: Sequence[InstanceData], num_classes: int) -> None:
    """Check what is to be learned: `bboxes_3d` (n, 9) and `labels_3d` (n,) of each sample.

    Raises:
        ValueError: Tensors of other shapes, a label that is no class, or a box whose place is not finite or that has no
            size; the sample is named.
    """
    for i, target in enumerate(targets):
        boxes, labels = target.bboxes_3d, target.labels_3d
        check_shape(f"targets[{i}].bboxes_3d", boxes, n=None, box=BOX)
        check_shape(f"targets[{i}].labels_3d", labels, n=len(boxes))
        if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
            raise ValueError(f"targets[{i}].labels_3d={labels.tolist()}: must be from 0 to {num_classes - 1}")
        wrong = ~(boxes[:, :7].isfinite().all(1) & (boxes[:, 3:6] > 0).all(1))
        if wrong.any():
            row = boxes[wrong][0].tolist()
            raise ValueError(f"targets[{i}].bboxes_3d must be finite, of sizes above 0, but for velocities, got {row}")


class BoxCodeCost(BaseMatchCost):
    """L1 distance of box codes in matching, without their velocity.

    Args:
        weight: Of this cost among others.
    """

    def __call__(
        self, pred_instances: InstanceData, gt_instances: InstanceData, img_meta: dict | None = None, **kwargs: Any
    ) -> Tensor:
        """(predictions, boxes), from the `bboxes` (n, 10) of both."""
        one, other = pred_instances.bboxes[:, :_MATCHED], gt_instances.bboxes[:, :_MATCHED]
        return torch.cdist(one, other, p=1) * self.weight


class DetectionLoss(nn.Module):
    """Loss of a layer's predictions against the boxes of each sample.

    Predictions are matched with boxes one to one by the least sum of a focal cost of the class and the L1 distance of
    codes. Matched ones learn class and box, all others that there is nothing. Boxes of which a number is unknown, as a
    velocity often is, are matched and learn their class; their code is left out as a whole. Both losses are divided by
    the number of matched predictions, its mean over processes.

    Source: DETR (https://arxiv.org/abs/2005.12872), DETR3D (https://arxiv.org/abs/2110.06922), BEVFormer
    (https://arxiv.org/abs/2203.17270).

    Args:
        code_weights: Ten, of the numbers of a code.
        class_weight: Of the focal loss and of its cost.
        box_weight: Of the L1 loss and of its cost.
        alpha: Of the focal loss, the share of what is there.
        gamma: Of the focal loss, by how much what is sure counts less.

    Raises:
        TypeError: An argument of another type.
        ValueError: A number below 0, or not ten `code_weights`.
    """

    def __init__(
        self,
        code_weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2),
        class_weight: float = 2.0,
        box_weight: float = 0.25,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        super().__init__()
        if len(code_weights) != CODE:
            raise ValueError(f"code_weights={code_weights!r}: must be {CODE} numbers, got {len(code_weights)}")
        weights = [check_number(f"code_weights[{i}]", weight, 0) for i, weight in enumerate(code_weights)]
        for name, value in (("class_weight", class_weight), ("box_weight", box_weight), ("gamma", gamma)):
            check_number(name, value, 0)
        check_number("alpha", alpha, 0, 1)
        # No buffer: checkpoints trained with others are loaded all the same, and half precision does not round them.
        self.code_weights = weights
        self.class_loss = FocalLoss(use_sigmoid=True, gamma=gamma, alpha=alpha, loss_weight=class_weight)
        self.box_loss = L1Loss(loss_weight=box_weight)
        self.assigner = HungarianAssigner(
            [
                dict(type="mmdet.FocalLossCost", alpha=alpha, gamma=gamma, weight=class_weight),
                dict(type=BoxCodeCost, weight=box_weight),
            ]
        )

    def assign(self, logits: Tensor, codes: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """Which box each prediction of a sample is matched with.

        Args:
            logits: (N, classes).
            codes: (N, 10), in metres.
            boxes: (n, 9).
            labels: (n,) int.

        Returns:
            (N,) int: the number of the box, counted from 1, or 0 for none.
        """
        # A prediction that overflowed is the worst match; the loss will tell of it.
        found = InstanceData(scores=logits.nan_to_num(), bboxes=codes.nan_to_num(nan=1e4, posinf=1e4, neginf=-1e4))
        wanted = InstanceData(labels=labels, bboxes=encode_boxes(boxes).to(codes.dtype).nan_to_num())
        return self.assigner.assign(found, wanted).gt_inds

    def forward(self, logits: Tensor, codes: Tensor, targets: Sequence[InstanceData]) -> tuple[Tensor, Tensor]:
        """Loss of classes and of boxes.

        Args:
            logits: (B, N, classes).
            codes: (B, N, 10), in metres.
            targets: Of each sample `bboxes_3d` (n, 9) and `labels_3d` (n,), as `check_targets` passed them.

        Raises:
            ValueError: Predictions of other shapes, or of another number of samples.
        """
        classes = logits.shape[2]
        check_shape("codes", codes, B=logits.shape[0], N=logits.shape[1], code=CODE)
        if len(targets) != len(logits):
            raise ValueError(f"targets of {len(targets)} samples, predictions of {len(logits)}")
        logits, codes = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (logits, codes))
        labels = torch.full(logits.shape[:2], classes, device=logits.device)
        matched, wanted = [], []
        for i, target in enumerate(targets):
            boxes, kinds = target.bboxes_3d.to(codes), target.labels_3d.to(logits.device)
            assigned = self.assign(logits[i].detach(), codes[i].detach(), boxes, kinds)
            places = assigned.nonzero().squeeze(1)
            numbers = assigned[places] - 1
            labels[i, places] = kinds[numbers]
            matched.append(codes[i, places])
            wanted.append(encode_boxes(boxes[numbers]))
        found, target_codes = torch.cat(matched), torch.cat(wanted)
        divisor = reduce_mean(codes.new_tensor(float(len(found)))).clamp(min=1)
        class_loss = self.class_loss(logits.flatten(0, 1), labels.flatten(), reduction_override="sum")
        known = target_codes.isfinite().all(-1)
        found, target_codes = found[known], target_codes[known]
        weight = codes.new_tensor(self.code_weights).expand_as(found)
        box_loss = self.box_loss(found, target_codes, weight, reduction_override="sum")
        return class_loss / divisor, box_loss / divisor
