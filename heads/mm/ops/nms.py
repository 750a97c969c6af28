"""Non-maximum suppression: `nms` on torchvision's operator, `softnms` and `nms_match` on PyTorch."""

from __future__ import annotations

import math

import torch
import torchvision
from torch import Tensor

from ...arguments import check_choice
from ._checks import check_no_nan, check_numbers, check_tensors
from ._dtypes import float32_round, widen

__all__ = ["OPERATORS", "nms", "nms_match", "softnms"]


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Greedy suppression of boxes that overlap a better one by more than `iou_threshold`.

    Args:
        boxes: `(N, 4)` float, `(x1, y1, x2, y2)` in pixels.
        scores: `(N,)` float.
        iou_threshold: Intersection over union above which the lower-scored box goes.
        offset: 0 or 1, added to every width and height (1: corners are pixel indices).

    Returns:
        `(K,)` int64, indices of kept boxes, best first.

    Raises:
        TypeError: If a tensor has another dtype.
        ValueError: If shapes do not fit, a box or score is NaN, or `offset` is another number.
    """
    check_tensors("nms", boxes=(boxes, "N 4"), scores=(scores, "N"))
    check_no_nan("nms", boxes=boxes, scores=scores)
    check_numbers("nms", -math.inf, iou_threshold=iou_threshold)
    check_choice("nms: offset", offset, (0, 1))
    boxes, scores = widen(boxes, scores)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return torchvision.ops.nms(boxes, scores, float32_round(iou_threshold))


def _overlap(box: Tensor, boxes: Tensor, offset: int) -> Tensor:
    """Intersection over union of `box` `(4,)` with each of `boxes` `(N, 4)`, as `(N,)`; 0 for two empty boxes."""
    size = (torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2]) + offset).clamp_min_(0)
    intersection = size[:, 0] * size[:, 1]
    area = (box[2] - box[0] + offset) * (box[3] - box[1] + offset)
    areas = (boxes[:, 2] - boxes[:, 0] + offset) * (boxes[:, 3] - boxes[:, 1] + offset)
    # 0 / 0 of two empty boxes would pass for the best score in the Gaussian of `softnms`.
    return (intersection / (area + areas - intersection)).nan_to_num(0)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft suppression: a box that overlaps a better one loses score, and goes when it has too little left.

    Bodla et al., "Soft-NMS: Improving Object Detection With One Line of Code", ICCV 2017.

    Args:
        boxes: `(N, 4)` float, `(x1, y1, x2, y2)` in pixels.
        scores: `(N,)` float.
        dets: `(N, 5)` float; its first K rows are overwritten by the kept boxes with their new scores, best first.
        iou_threshold: Least overlap that counts in methods 0 and 1.
        sigma: Width of the Gaussian of method 2.
        min_score: A box whose score falls below it is dropped.
        method: 0 naive (overlapping boxes lose all), 1 linear, 2 Gaussian.
        offset: 0 or 1, added to every width and height.

    Returns:
        `(K,)` int64, indices of kept boxes, in the order of `dets`.

    Raises:
        TypeError: If a tensor has another dtype.
        ValueError: If shapes do not fit, a box or score is NaN, `sigma` is not positive, or `method` or `offset` is
            another number.
    """
    check_tensors("softnms", boxes=(boxes, "N 4"), scores=(scores, "N"), dets=(dets, "N 5"))
    check_no_nan("softnms", boxes=boxes, scores=scores)
    check_numbers("softnms", -math.inf, iou_threshold=iou_threshold, min_score=min_score)
    check_numbers("softnms", 0, above=True, sigma=sigma)
    check_choice("softnms: method", method, (0, 1, 2))
    check_choice("softnms: offset", offset, (0, 1))
    boxes, scores = widen(boxes, scores)
    threshold, min_score = float32_round(iou_threshold), float32_round(min_score)
    rest_boxes, rest_scores = boxes, scores
    rest = torch.arange(len(boxes), device=boxes.device)
    kept: list[Tensor] = []
    while len(rest):
        best = int(rest_scores.argmax())
        dets[len(kept), :4] = rest_boxes[best]
        dets[len(kept), 4] = rest_scores[best]
        kept.append(rest[best])
        # mmcv works in place: the first box moves into the gap that the best one leaves, and below, boxes from the end
        # fill the gaps of dropped ones. The order decides between equal scores, so it is kept.
        order = torch.arange(1, len(rest), device=boxes.device)
        if best > 0:
            order[best - 1] = 0
        overlap = _overlap(rest_boxes[best], rest_boxes[order], offset)
        if method == 2:
            decay = torch.exp(-(overlap * overlap) / sigma)
        else:
            decay = torch.where(overlap >= threshold, 1 - overlap if method == 1 else 0.0, 1.0)
        decayed = rest_scores[order] * decay
        alive = ~(decayed < min_score)
        count = int(alive.sum())
        places = torch.arange(count, device=boxes.device)
        places[~alive[:count]] = (alive[count:].nonzero()[:, 0] + count).flip(0)
        rest, rest_boxes, rest_scores = rest[order][places], rest_boxes[order][places], decayed[places]
    return torch.stack(kept) if kept else rest


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups boxes by the better box that suppresses them.

    Args:
        dets: `(N, 5)` float, `(x1, y1, x2, y2, score)`.
        iou_threshold: Least intersection over union that suppresses (inclusive, unlike `nms`).

    Returns:
        One list of indices per kept box, best first: the kept box, then those that it suppresses by falling score.

    Raises:
        TypeError: If `dets` has another dtype.
        ValueError: If its shape does not fit, or a box or score is NaN.
    """
    check_tensors("nms_match", dets=(dets, "N 5"))
    check_no_nan("nms_match", dets=dets)
    check_numbers("nms_match", -math.inf, iou_threshold=iou_threshold)
    (dets,) = widen(dets)
    threshold = float32_round(iou_threshold)
    rest = dets[:, 4].argsort(descending=True, stable=True)
    groups = []
    while len(rest):
        head, rest = rest[0], rest[1:]
        matched = _overlap(dets[head, :4], dets[rest, :4], offset=0) >= threshold
        groups.append([int(head), *rest[matched].tolist()])
        rest = rest[~matched]
    return groups


OPERATORS = (nms, softnms, nms_match)
