"""nuScenes' detection metric for mmengine's Runner."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import get_world_size
from mmengine.evaluator import BaseMetric

from ...arguments import check_bool, check_choice, check_text
from ...mm.registry import METRICS
from .boxes import boxes_of_rows
from .calibration import sensor_to_global
from .classes import ATTRIBUTES, CLASSES, EVALUATION_CLASSES, LIDAR
from .evaluation import DetectionResult, score
from .submission import CAMERA_META, MAX_BOXES, Detections, Submission, joined, write_submission
from .tables import NuScenes, shared_tables

# As published: (slow, fast) by class, the border at 0.2 m/s.
_FAST = 0.2
_ATTRIBUTES = {
    "car": ("vehicle.parked", "vehicle.moving"),
    "truck": ("vehicle.parked", "vehicle.moving"),
    "construction_vehicle": ("vehicle.parked", "vehicle.moving"),
    "bus": ("vehicle.stopped", "vehicle.moving"),
    "trailer": ("vehicle.parked", "vehicle.moving"),
    "barrier": ("", ""),
    "motorcycle": ("cycle.without_rider", "cycle.with_rider"),
    "bicycle": ("cycle.without_rider", "cycle.with_rider"),
    "pedestrian": ("pedestrian.standing", "pedestrian.moving"),
    "traffic_cone": ("", ""),
}
_CODES = np.array(
    [
        [ATTRIBUTES.index(attribute) if attribute else -1 for attribute in _ATTRIBUTES[name]]
        for name in EVALUATION_CLASSES
    ]
)
_SHORT = {"trans_err": "mATE", "scale_err": "mASE", "orient_err": "mAOE", "vel_err": "mAVE", "attr_err": "mAAE"}
_FILE = "results_nusc.json"


@METRICS.register_module()
class NuScenesMetric(BaseMetric):
    """nuScenes' detection metric of predictions in the LiDAR's frame.

    Attributes of objects are chosen by class and speed, as the published BEVFormer does. Of a sample the 500 best boxes
    are taken. All processes together must have predicted every sample of the split.

    Args:
        data_root: The folder with the version's folder.
        version: As `v1.0-trainval`.
        split: As `NuScenesDataset` takes it: the name of a split, or names of scenes.
        classes: The classes of the model, in the order of its labels.
        out_dir: A folder for `results_nusc.json`, the file that nuScenes' server takes; nothing is written if None.
        format_only: Write the file and score nothing, as for the test split.
        **kwargs: mmengine's `BaseMetric` arguments.

    Raises:
        TypeError: An argument of another type.
        ValueError: A class is unknown, or `format_only` is given without a folder.
    """

    results: list[Any]

    def __init__(
        self,
        data_root: str | os.PathLike,
        version: str,
        split: str | Sequence[str],
        classes: Sequence[str] = CLASSES,
        out_dir: str | None = None,
        format_only: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for i, name in enumerate(classes):
            check_choice(f"classes[{i}]", name, EVALUATION_CLASSES)
        if out_dir is not None:
            check_text("out_dir", out_dir)
        if check_bool("format_only", format_only) and out_dir is None:
            raise ValueError("format_only=True: out_dir must name the folder of the file")
        self.data_root, self.version = str(data_root), check_text("version", version)
        self.split = split
        self.labels = np.array([EVALUATION_CLASSES.index(name) for name in classes])
        self.out_dir = out_dir
        self.format_only = format_only

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Take samples with `token` and `pred_instances_3d`, a dict of tensors.

        `bboxes_3d` (N, 9) are rows in the LiDAR's frame of the sample, `labels_3d` (N,) indices in `classes`, and
        `scores_3d` (N,).

        Raises:
            ValueError: Boxes or scores are not finite (velocities may be NaN), or a label is none of the classes,
                naming the sample.
        """
        nusc = shared_tables(self.data_root, self.version)
        for sample in data_samples:
            token, found = sample["token"], sample["pred_instances_3d"]
            rows, scores, labels = (
                found[name].detach().double().cpu().numpy() for name in ("bboxes_3d", "scores_3d", "labels_3d")
            )
            if not (np.isfinite(rows[:, :7]).all() and np.isfinite(scores).all()):
                raise ValueError(f"sample {token}: pred_instances_3d has boxes or scores that are not finite")
            codes = labels.astype(np.int64)
            if ((codes < 0) | (codes >= len(self.labels))).any():
                found_codes, last = sorted(set(codes.tolist())), len(self.labels) - 1
                raise ValueError(f"sample {token}: labels_3d must be from 0 to {last}, got {found_codes}")
            best = np.argsort(-scores, kind="stable")[:MAX_BOXES]
            boxes = self._global_boxes(nusc, token, rows[best], scores[best], self.labels[codes[best]])
            self.results.append((token, boxes))

    def _global_boxes(
        self, nusc: NuScenes, token: str, rows: np.ndarray, scores: np.ndarray, labels: np.ndarray
    ) -> Detections:
        """The boxes of one sample; `samples` is 0."""
        lidar = nusc.key_frames(nusc.table("sample").row(token), LIDAR)
        boxes = boxes_of_rows(rows).moved(sensor_to_global(nusc, lidar))
        velocities = boxes.velocities[:, :2]
        # NaN counts as slow.
        fast = np.sqrt((velocities**2).sum(-1)) > _FAST
        return Detections(
            samples=np.zeros(len(rows), np.int64),
            translations=boxes.centers,
            sizes=boxes.sizes,
            rotations=boxes.orientations,
            velocities=velocities,
            labels=labels,
            scores=scores,
            attributes=_CODES[labels, fast.astype(np.int64)],
            points=np.full(len(rows), -1),
        )

    def evaluate(self, size: int) -> dict[str, float]:
        """Score the samples of all processes; see `compute_metrics`.

        Args:
            size: Of the data set. Not used: which samples there must be is known from the split, and samplers may give
                processes different numbers of samples, or the same sample twice.
        """
        # mmengine interleaves what processes have, which drops some where the numbers differ: each has one list here.
        self.results = [self.results]
        return super().evaluate(get_world_size())

    def compute_metrics(self, results: list[list[tuple[str, Detections]]]) -> dict[str, float]:
        """The scores, and the file where it is wanted.

        Args:
            results: Of each process the tokens and boxes of its samples.

        Returns:
            `NDS`, `mAP`, the errors `mATE`, `mASE`, `mAOE`, `mAVE` and `mAAE`, and by class `car_AP` (over the
            distances), `car_AP_dist_0.5` and so on, and `car_trans_err` and so on for errors that the class has.
            Empty with `format_only`.

        Raises:
            ValueError: A sample of the split has no prediction, or the tables have no annotations.
        """
        nusc = shared_tables(self.data_root, self.version)
        samples = nusc.samples(self.split)
        tokens = [nusc.table("sample").token(row) for row in samples]
        found = {token: boxes for part in results for token, boxes in part}
        missing = [token for token in tokens if token not in found]
        if missing:
            raise ValueError(
                f"{len(missing)} of the {len(tokens)} samples of the split {self.split!r:.80} have no prediction, "
                f"{missing[0]} among them"
            )
        parts = [found[token] for token in tokens]
        boxes = joined(parts)
        boxes.samples[:] = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        submission = Submission(dict(CAMERA_META), tokens, boxes)
        if self.out_dir is not None:
            write_submission(Path(self.out_dir) / _FILE, submission)
        return {} if self.format_only else _flat(score(nusc, submission, samples))


def _flat(result: DetectionResult) -> dict[str, float]:
    scores = {"NDS": result.nd_score, "mAP": result.mean_ap}
    scores |= {_SHORT[error]: value for error, value in result.tp_errors.items()}
    for name, precisions in result.label_aps.items():
        scores[f"{name}_AP"] = result.mean_dist_aps[name]
        scores |= {f"{name}_AP_dist_{limit}": value for limit, value in precisions.items()}
        errors = result.label_tp_errors[name]
        scores |= {f"{name}_{error}": value for error, value in errors.items() if not np.isnan(value)}
    return scores
