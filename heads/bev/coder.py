"""Boxes in bird's-eye view and the ten numbers that a head predicts for one."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import check_int, check_number
from .projection import check_range

# Numbers of a box: (x, y, z, w, l, h, yaw, vx, vy), z of the gravity centre.
BOX = 9
# Numbers of its code: (x, y, log w, log l, z, log h, sin yaw, cos yaw, vx, vy).
CODE = 10


def encode_boxes(boxes: Tensor) -> Tensor:
    """Boxes (..., 9), (x, y, z, w, l, h, yaw, vx, vy) -> (..., 10), (x, y, log w, log l, z, log h, sin, cos, vx, vy).

    Metres stay metres, unknown velocities NaN.
    """
    x, y, z, w, l, h, yaw, vx, vy = boxes.unbind(-1)  # noqa: E741
    return torch.stack((x, y, w.log(), l.log(), z, h.log(), yaw.sin(), yaw.cos(), vx, vy), -1)


def decode_boxes(codes: Tensor) -> Tensor:
    """(..., 10) codes -> (..., 9) boxes, the inverse of `encode_boxes`; yaw is from -pi to pi."""
    x, y, w, l, z, h, sin, cos, vx, vy = codes.unbind(-1)  # noqa: E741
    return torch.stack((x, y, z, w.exp(), l.exp(), h.exp(), torch.atan2(sin, cos), vx, vy), -1)


class Detections(NamedTuple):
    """The best candidates of each sample, best first.

    Attributes:
        boxes: (B, K, 9).
        scores: (B, K), from 0 to 1.
        labels: (B, K) int.
        kept: (B, K) bool, False where a candidate is no detection: its centre is too far away, or its score too low.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    kept: Tensor


class NMSFreeCoder:
    """Takes the best scores over all queries and classes; no suppression, as queries were matched one to one.

    A query may give several boxes, one for each class. Source: DETR3D (https://arxiv.org/abs/2110.06922) and its
    published code.

    Args:
        center_range: `(x_min, y_min, z_min, x_max, y_max, z_max)` in metres; boxes with a centre outside are dropped.
        max_num: Candidates of a sample.
        score_threshold: Boxes of this score or less are dropped, but if that were all of a sample, it is lowered for
            this sample by tenths of itself until one is left; below 0.01 nothing is dropped. None drops nothing.

    Raises:
        TypeError: An argument of another type.
        ValueError: A number out of its range.
    """

    def __init__(
        self,
        center_range: Sequence[float] = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0),
        max_num: int = 300,
        score_threshold: float | None = None,
    ) -> None:
        self.center_range = check_range("center_range", center_range)
        self.max_num = check_int("max_num", max_num, 1)
        self.score_threshold = (
            None if score_threshold is None else check_number("score_threshold", score_threshold, 0, 1)
        )

    def decode(self, logits: Tensor, codes: Tensor) -> Detections:
        """The detections of a batch, in float32 at least; shapes depend on the inputs' shapes alone.

        Args:
            logits: (B, N, classes).
            codes: (B, N, 10), in metres.
        """
        dtype = torch.promote_types(codes.dtype, torch.float32)
        classes = logits.shape[2]
        scores = logits.to(dtype).sigmoid().flatten(1)
        scores, index = scores.topk(min(self.max_num, scores.shape[1]))
        chosen = (index // classes)[..., None].expand(-1, -1, codes.shape[2])
        boxes = decode_boxes(codes.to(dtype).gather(1, chosen))
        low, high = boxes.new_tensor(self.center_range).view(2, 3)
        centers = boxes[..., :3]
        kept = ((centers >= low) & (centers <= high)).all(-1)
        if self.score_threshold:
            kept = kept & (scores > self._thresholds(scores.amax(1))[:, None])
        return Detections(boxes, scores, index % classes, kept)

    def _thresholds(self, best: Tensor) -> Tensor:
        """The highest threshold that the best score (B,) of each sample is above, -1 where it is above none."""
        levels = [self.score_threshold or 0.0]
        while levels[-1] * 0.9 >= 0.01:
            levels.append(levels[-1] * 0.9)
        tried = best.new_tensor(levels)
        return torch.where(best[:, None] > tried, tried, -1).amax(1)
