"""nuScenes' detection metric: mAP, the five errors and NDS (Caesar et al., 2020, https://arxiv.org/abs/1903.11027).

As the devkit computes it, up to rounding.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .boxes import Boxes, annotated_boxes
from .classes import BICYCLE_RACK, EVALUATION_CLASSES, LIDAR
from .curves import ERRORS, Curve, DetectionConfig, detection_curves
from .submission import Detections, Submission
from .tables import NuScenes

# Errors that a class does not have.
_WITHOUT = {"traffic_cone": ("orient_err", "vel_err", "attr_err"), "barrier": ("vel_err", "attr_err")}
_IN_RACKS = ("bicycle", "motorcycle")


@dataclass(frozen=True)
class DetectionResult:
    """The scores of a submission.

    Attributes:
        config: The settings.
        curves: By class and threshold.
        kept_predictions: Indices of the predictions that were compared, in the submission's order.
        kept_objects: Indices of the objects that they were compared with.
        counts: Of `predictions` and `objects`, how many boxes there are, and how many are left after the filter by
            distance, by points and by racks.
    """

    config: DetectionConfig
    curves: dict[str, dict[float, Curve]]
    kept_predictions: np.ndarray
    kept_objects: np.ndarray
    counts: dict[str, tuple[int, int, int, int]]

    @property
    def label_aps(self) -> dict[str, dict[float, float]]:
        """Average precision by class and threshold."""
        first = round(100 * self.config.min_recall) + 1
        least = self.config.min_precision

        def average(curve: Curve) -> float:
            return float(np.mean(np.maximum(curve.precision[first:] - least, 0))) / (1 - least)

        return {name: {limit: average(curve) for limit, curve in row.items()} for name, row in self.curves.items()}

    @property
    def mean_dist_aps(self) -> dict[str, float]:
        """Average precision by class, over the thresholds."""
        return {name: float(np.mean(list(row.values()))) for name, row in self.label_aps.items()}

    @property
    def mean_ap(self) -> float:
        """Mean average precision (mAP)."""
        return float(np.mean(list(self.mean_dist_aps.values())))

    @property
    def label_tp_errors(self) -> dict[str, dict[str, float]]:
        """The errors by class and name; NaN where a class has none of the kind."""
        first = round(100 * self.config.min_recall) + 1

        def mean(name: str, error: str) -> float:
            if error in _WITHOUT.get(name, ()):
                return float("nan")
            curve = self.curves[name][self.config.error_threshold]
            return float(np.mean(curve.errors[error][first : curve.last + 1])) if curve.last >= first else 1.0

        return {name: {error: mean(name, error) for error in ERRORS} for name in self.curves}

    @property
    def tp_errors(self) -> dict[str, float]:
        """The errors by name, over the classes that have them."""
        by_class = self.label_tp_errors.values()
        return {error: float(np.nanmean([row[error] for row in by_class])) for error in ERRORS}

    @property
    def tp_scores(self) -> dict[str, float]:
        """1 less the error, at least 0, by name."""
        return {error: max(1 - value, 0.0) for error, value in self.tp_errors.items()}

    @property
    def nd_score(self) -> float:
        """The nuScenes detection score (NDS)."""
        weight, scores = self.config.mean_ap_weight, self.tp_scores
        return (weight * self.mean_ap + sum(scores.values())) / (weight + len(scores))

    def summary(self) -> dict[str, Any]:
        """The scores under the names that the devkit gives them."""
        names = ("label_aps", "mean_dist_aps", "mean_ap", "label_tp_errors", "tp_errors", "tp_scores", "nd_score")
        return {name: getattr(self, name) for name in names}


def evaluate(
    nusc: NuScenes, submission: Submission, samples: np.ndarray, config: DetectionConfig | None = None
) -> DetectionResult:
    """Score a submission.

    Where predictions have the same score the later one comes first: by the order of the submission's samples, then of
    the boxes in a sample. `Submission.select` brings them into another order.

    Args:
        nusc: The tables.
        submission: Results of exactly the samples; a sample without boxes has an empty list.
        samples: (N,), the samples to score.
        config: By default the challenge's.

    Raises:
        ValueError: The submission has other samples, or no box at all; negative scores reach a curve; a box that
            matches has no size.
    """
    wanted = [nusc.table("sample").token(row) for row in samples]
    missing, surplus = set(wanted) - set(submission.tokens), set(submission.tokens) - set(wanted)
    for tokens, problem in ((missing, "has no sample"), (surplus, "has the sample that is not of the split,")):
        if tokens:
            raise ValueError(f"{submission.name}: results {problem} {min(tokens)!r} ({len(tokens)} in all)")
    if not len(submission.boxes):
        raise ValueError(f"{submission.name}: results has no box in any sample")
    rows = dict(zip(wanted, samples.tolist(), strict=True))
    order = np.array([rows[token] for token in submission.tokens], np.int64)
    return score(nusc, submission, order, config)


def score(
    nusc: NuScenes, submission: Submission, samples: np.ndarray, config: DetectionConfig | None = None
) -> DetectionResult:
    """`evaluate` of a submission whose samples are known to be `samples`, in its order; it may be without a box.

    Raises:
        ValueError: As of `evaluate`, or the tables have no annotations, as those of the test split.
    """
    config = config or DetectionConfig()
    table = nusc.table("sample_annotation")
    if not len(table):
        raise ValueError(f"{table.path}: has no annotations, so there is nothing to compare with")
    objects, annotations = annotated_detections(nusc, samples)
    poses = nusc.rows("sample_data", "ego_pose_token")[nusc.key_frames(samples, LIDAR)]
    ego, racks = nusc.table("ego_pose")["translation"][poses], _racks(nusc, samples)
    predicted, counts = _filtered(submission.boxes, ego, racks, config)
    annotated, object_counts = _filtered(objects, ego, racks, config)
    curves = detection_curves(submission.boxes[predicted], objects[annotated], config)
    for row in curves.values():
        for limit, curve in row.items():
            pairs = np.stack([predicted[curve.matches[:, 0]], annotated[curve.matches[:, 1]]], axis=1)
            _check_sizes(nusc, submission, objects, annotations, pairs)
            pairs[:, 1] = annotations[pairs[:, 1]]
            row[limit] = replace(curve, matches=pairs)
    return DetectionResult(
        config, curves, predicted, annotations[annotated], {"predictions": counts, "objects": object_counts}
    )


def annotated_detections(nusc: NuScenes, samples: np.ndarray) -> tuple[Detections, np.ndarray]:
    """The objects of the detection task at samples (N,), and their annotations: rows of the table."""
    per_sample = [nusc.annotations(int(sample)) for sample in samples]
    rows = np.concatenate([np.zeros(0, np.int64), *per_sample])
    index = np.repeat(np.arange(len(samples)), [len(annotations) for annotations in per_sample])
    labels = nusc.annotation_labels(rows, EVALUATION_CLASSES)
    rows, index, labels = rows[labels >= 0], index[labels >= 0], labels[labels >= 0]
    boxes, table = annotated_boxes(nusc, rows), nusc.table("sample_annotation")
    found = Detections(
        samples=index,
        translations=boxes.centers,
        sizes=boxes.sizes,
        rotations=boxes.orientations,
        velocities=boxes.velocities[:, :2],
        labels=labels,
        scores=np.full(len(rows), -1.0),
        attributes=nusc.annotation_attributes(rows),
        points=table["num_lidar_pts"][rows] + table["num_radar_pts"][rows],
    )
    return found, rows


def _racks(nusc: NuScenes, samples: np.ndarray) -> dict[int, Boxes]:
    """By the index of a sample the racks in it."""
    if BICYCLE_RACK not in nusc.categories:
        return {}
    category = nusc.categories.index(BICYCLE_RACK)
    racks = {}
    for i, sample in enumerate(samples):
        rows = nusc.annotations(int(sample))
        rows = rows[nusc.annotation_categories(rows) == category]
        if len(rows):
            racks[i] = annotated_boxes(nusc, rows)
    return racks


def _filtered(
    boxes: Detections, ego: np.ndarray, racks: dict[int, Boxes], config: DetectionConfig
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """The indices of boxes that count, and how many there are before and after each step."""
    ranges = np.array([config.class_ranges[name] for name in EVALUATION_CLASSES], np.float64)
    way = boxes.translations[:, :2] - ego[boxes.samples, :2]
    near = np.flatnonzero(np.sqrt((way**2).sum(-1)) < ranges[boxes.labels])
    seen = near[boxes.points[near] != 0]
    inside = np.zeros(len(seen), np.bool_)
    two_wheeled = np.isin(boxes.labels[seen], [EVALUATION_CLASSES.index(name) for name in _IN_RACKS])
    parked = np.flatnonzero(two_wheeled & np.isin(boxes.samples[seen], list(racks)))
    for sample in np.unique(boxes.samples[seen[parked]]):
        here = parked[boxes.samples[seen[parked]] == sample]
        inside[here] = racks[int(sample)].contain(boxes.translations[seen[here]]).any(0)
    outside = seen[~inside]
    return outside, (len(boxes), len(near), len(seen), len(outside))


def _check_sizes(
    nusc: NuScenes, submission: Submission, objects: Detections, annotations: np.ndarray, pairs: np.ndarray
) -> None:
    """Check that the boxes of matches have a size."""
    flat = (submission.boxes.sizes[pairs[:, 0]] <= 0).any(-1)
    if flat.any():
        row = int(pairs[flat.argmax(), 0])
        token = submission.tokens[int(submission.boxes.samples[row])]
        place, size = submission.index_in_sample()[row], submission.boxes.sizes[row].tolist()
        raise ValueError(f"{submission.name}: results[{token!r}][{place}]: size must be above 0, got {size}")
    flat = (objects.sizes[pairs[:, 1]] <= 0).any(-1)
    if flat.any():
        row = int(pairs[flat.argmax(), 1])
        table = nusc.table("sample_annotation")
        raise table.error(
            table.token(int(annotations[row])), f"size must be above 0, got {objects.sizes[row].tolist()}"
        )
