"""How well BEV maps are segmented."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.dist import get_world_size
from mmengine.evaluator import BaseMetric

from ...arguments import check_choice, check_number
from ...mm.registry import METRICS
from .transforms import BEV_CLASSES


@METRICS.register_module()
class BEVMapMetric(BaseMetric):
    """Intersection over union of each class of BEV maps, over the cells of all samples.

    Args:
        classes: Names of the maps' channels, as `DrawBEVMap` has them.
        threshold: Scores from which on a cell belongs to a class.
        **kwargs: mmengine's `BaseMetric` arguments.

    Raises:
        TypeError: An argument of another type.
        ValueError: A class is unknown, or the threshold is not from 0 to 1.
    """

    results: list[Any]

    def __init__(self, classes: Sequence[str], threshold: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for i, name in enumerate(classes):
            check_choice(f"classes[{i}]", name, tuple(BEV_CLASSES))
        self.classes = list(classes)
        self.threshold = check_number("threshold", threshold, 0, 1)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Take samples with `pred_bev_map`, scores, and `gt_bev_map`, both (classes, rows, columns).

        Raises:
            ValueError: A map has another shape, or scores are not finite, naming the sample.
        """
        for sample in data_samples:
            scores, wanted = (sample[name].detach().cpu().numpy() for name in ("pred_bev_map", "gt_bev_map"))
            if scores.shape != wanted.shape or len(scores) != len(self.classes):
                raise ValueError(
                    f"sample {sample['token']}: pred_bev_map {scores.shape} and gt_bev_map {wanted.shape} must be "
                    f"alike, of {len(self.classes)} classes"
                )
            if not np.isfinite(scores).all():
                raise ValueError(f"sample {sample['token']}: pred_bev_map has scores that are not finite")
            found, wanted = scores >= self.threshold, wanted.astype(bool)
            self.results.append(np.stack([(found & wanted).sum((1, 2)), (found | wanted).sum((1, 2))]))

    def evaluate(self, size: int) -> dict[str, float]:
        """Score the samples of all processes, which may have different numbers of them.

        Args:
            size: Of the data set. Not used.
        """
        # mmengine interleaves what processes have, which drops some where the numbers differ: each has one sum here.
        self.results = [np.sum(self.results, axis=0) if self.results else np.zeros((2, len(self.classes)), int)]
        return super().evaluate(get_world_size())

    def compute_metrics(self, results: list) -> dict[str, float]:
        """`vehicle_IoU` and so on, NaN where no sample has the class or a prediction of it; `mIoU` of the others."""
        common, either = np.sum(results, axis=0)
        values = np.where(either > 0, common / np.maximum(either, 1), np.nan)
        mean = np.nanmean(values) if np.isfinite(values).any() else np.nan
        return {f"{name}_IoU": float(value) for name, value in zip(self.classes, values, strict=True)} | {
            "mIoU": float(mean)
        }
