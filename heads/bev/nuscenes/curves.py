"""Precision, score and errors over the recall, as nuScenes' detection metric has them.

Predictions are matched to objects by the distance of their centres on the ground, the best score first. Only pairs
nearer than the largest threshold are looked at one by one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from .classes import EVALUATION_CLASSES
from .rotations import yaw_of
from .submission import Detections

ERRORS = ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err")
# Recalls at which curves are sampled: numpy's own, some of which lie a unit in the last place above k / 100.
_RECALLS = np.linspace(0, 1, 101)
# Pairs of a prediction and an object that are looked at together.
_PAIRS = 1 << 21


@dataclass(frozen=True)
class DetectionConfig:
    """Settings of the metric; by default those of the challenge, `detection_cvpr_2019`.

    Attributes:
        class_ranges: How far from the ego vehicle boxes count, strictly below, in metres.
        thresholds: Distances on the ground below which a prediction matches, in metres.
        error_threshold: The one of them at which errors are taken.
        min_recall: Recalls up to this one count neither for precision nor for errors.
        min_precision: What is taken off the precision.
        mean_ap_weight: Of mAP in NDS, where each error has 1.

    Raises:
        ValueError: A setting is out of range.
    """

    class_ranges: Mapping[str, float] = field(
        default_factory=lambda: MappingProxyType(
            dict(zip(EVALUATION_CLASSES, (50, 50, 50, 50, 50, 40, 40, 40, 30, 30), strict=True))
        )
    )
    thresholds: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    error_threshold: float = 2.0
    min_recall: float = 0.1
    min_precision: float = 0.1
    mean_ap_weight: float = 5

    def __post_init__(self) -> None:
        if set(self.class_ranges) != set(EVALUATION_CLASSES):
            raise ValueError(f"class_ranges must have {', '.join(EVALUATION_CLASSES)}, got {dict(self.class_ranges)}")
        if not self.thresholds or min(self.thresholds) <= 0:
            raise ValueError(f"thresholds={self.thresholds}: must be distances above 0")
        if self.error_threshold not in self.thresholds:
            raise ValueError(f"error_threshold={self.error_threshold}: must be one of the thresholds {self.thresholds}")
        if not 0 <= self.min_recall < 1 or not 0 <= self.min_precision < 1:
            raise ValueError(
                f"min_recall={self.min_recall} and min_precision={self.min_precision}: must be from 0 to below 1"
            )


@dataclass(frozen=True)
class Curve:
    """What is measured of a class at a threshold.

    Attributes:
        precision: (101,), at recalls from 0 to 1; 0 where the recall is not reached.
        score: (101,), likewise, that of the prediction.
        errors: (101,) by name, the means over matches up to there; of the error threshold alone.
        matches: (matches, 2), indices of predictions and objects, the best score first.
    """

    precision: np.ndarray
    score: np.ndarray
    errors: dict[str, np.ndarray]
    matches: np.ndarray

    @property
    def last(self) -> int:
        """The index of the last recall with a score; 0 if there is none."""
        reached = np.flatnonzero(self.score)
        return int(reached[-1]) if len(reached) else 0


def detection_curves(
    predictions: Detections, objects: Detections, config: DetectionConfig
) -> dict[str, dict[float, Curve]]:
    """The curves of predictions and objects, whose `samples` are indices in one list, by class and threshold.

    Raises:
        ValueError: Negative scores reach a curve.
    """
    curves: dict[str, dict[float, Curve]] = {}
    for label, name in enumerate(EVALUATION_CLASSES):
        found, there = (np.flatnonzero(boxes.labels == label) for boxes in (predictions, objects))
        # The best score first, and of equal ones the last: a stable sort turned round.
        found = found[np.argsort(predictions.scores[found], kind="stable")[::-1]]
        there = there[np.argsort(objects.samples[there], kind="stable")]
        ranks, places, distances = _near_pairs(predictions, objects, found, there, max(config.thresholds))
        curves[name] = {}
        for limit in config.thresholds:
            below = distances < limit
            pairs = _greedy(ranks[below], places[below], len(there))
            matches = np.stack([found[pairs[:, 0]], there[pairs[:, 1]]], axis=1)
            with_errors = limit == config.error_threshold
            errors = _errors(predictions[matches[:, 0]], objects[matches[:, 1]], name) if with_errors else {}
            curves[name][limit] = _curve(predictions.scores[found], pairs[:, 0], len(there), errors, matches)
            if (np.diff(curves[name][limit].score) > 0).any():
                raise ValueError(
                    f"{name}: scores must be 0 or more, got {predictions.scores[found].min()} (-1 stands for a box "
                    "without detection_score)"
                )
    return curves


def _near_pairs(
    predictions: Detections, objects: Detections, found: np.ndarray, there: np.ndarray, limit: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs in one sample nearer than the limit, on the ground.

    Args:
        predictions: Boxes.
        objects: Boxes.
        found: (P,), indices of predictions, in the order in which they are matched.
        there: (O,), indices of objects, sorted by their samples.
        limit: In metres.

    Returns:
        Places in `found`, places in `there`, and distances; sorted by the first, then the distance, then the second.
    """
    starts = np.searchsorted(objects.samples[there], predictions.samples[found], "left")
    counts = np.searchsorted(objects.samples[there], predictions.samples[found], "right") - starts
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for first, last in _portions(counts):
        number = counts[first:last]
        ranks = np.repeat(np.arange(first, last), number)
        # 0, 1, ... within each prediction.
        step = np.arange(len(ranks)) - np.repeat(np.cumsum(number) - number, number)
        places = np.repeat(starts[first:last], number) + step
        way = predictions.translations[found[ranks], :2] - objects.translations[there[places], :2]
        distances = np.sqrt((way**2).sum(-1))
        near = distances < limit
        parts.append((ranks[near], places[near], distances[near]))
    ranks, places, distances = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((places, distances, ranks))
    return ranks[order], places[order], distances[order]


def _portions(counts: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of predictions that have about as many pairs together as are looked at at once."""
    ends = np.cumsum(counts)
    first = 0
    while first < len(counts):
        done = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + _PAIRS, "right")))
        yield first, last
        first = last


def _greedy(ranks: np.ndarray, places: np.ndarray, objects: int) -> np.ndarray:
    """(matches, 2): of pairs in their order those whose prediction and object are both free."""
    taken = bytearray(objects)
    matches = []
    matched = -1
    for rank, place in zip(ranks.tolist(), places.tolist(), strict=True):
        if rank != matched and not taken[place]:
            taken[place] = 1
            matched = rank
            matches.append((rank, place))
    return np.array(matches, np.int64).reshape(-1, 2)


def _curve(
    scores: np.ndarray, matched: np.ndarray, objects: int, errors: dict[str, np.ndarray], matches: np.ndarray
) -> Curve:
    """Sample what is known of predictions in their order.

    Args:
        scores: (P,), in descending order.
        matched: Places of those that match.
        objects: How many there are.
        errors: Of the matches.
        matches: As of `Curve`.
    """
    if not len(matched):
        zero = np.zeros_like(_RECALLS)
        return Curve(zero, zero, dict.fromkeys(errors, np.ones_like(_RECALLS)), matches)
    hits = np.zeros(len(scores))
    hits[matched] = 1
    true = np.cumsum(hits)
    precision, recall = true / np.arange(1, len(scores) + 1), true / objects
    score = np.interp(_RECALLS, recall, scores, right=0)
    sampled = {
        name: np.interp(score[::-1], scores[matched][::-1], _running_mean(values)[::-1])[::-1]
        for name, values in errors.items()
    }
    return Curve(np.interp(_RECALLS, recall, precision, right=0), score, sampled, matches)


def _running_mean(values: np.ndarray) -> np.ndarray:
    """The mean up to each place without NaN: 0 before the first number, 1 everywhere if there is none."""
    known = ~np.isnan(values)
    if not known.any():
        return np.ones(len(values))
    count = np.cumsum(known)
    return np.nancumsum(values) / np.maximum(count, 1)


def _errors(predictions: Detections, objects: Detections, name: str) -> dict[str, np.ndarray]:
    """The errors of matches, boxes in the same order."""
    period = np.pi if name == "barrier" else 2 * np.pi
    way = predictions.translations[:, :2] - objects.translations[:, :2]
    turn = np.abs(_turn(yaw_of(objects.rotations), yaw_of(predictions.rotations), period))
    drift = np.sqrt(((predictions.velocities - objects.velocities) ** 2).sum(-1))
    right = np.where(objects.attributes < 0, np.nan, objects.attributes == predictions.attributes)
    return {
        "trans_err": np.sqrt((way**2).sum(-1)),
        "scale_err": 1 - _aligned_iou(predictions.sizes, objects.sizes),
        "orient_err": turn,
        "vel_err": drift,
        "attr_err": 1 - right,
    }


def _turn(to: np.ndarray, start: np.ndarray, period: float) -> np.ndarray:
    """The smallest turn from one angle to another where angles a period apart are the same."""
    return (to - start + period / 2) % period - period / 2


def _aligned_iou(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes with sides (N, 3) that have one centre and direction; NaN without volume."""
    common = np.minimum(left, right).prod(-1)
    union = left.prod(-1) + right.prod(-1) - common
    return common / np.where(union == 0, np.nan, union)
