"""nuScenes' detections as arrays, and the file in which they are submitted.

The file is an object of `meta`, five flags that say what a method uses, and `results`: for the token of each sample a
list of at most 500 boxes in the global frame, https://www.nuscenes.org/object-detection.
"""

import contextlib
import json
import math
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from .classes import ATTRIBUTES, EVALUATION_CLASSES
from .json_stream import JsonStream
from .records import Field

MAX_BOXES = 500
# What a camera method says of itself.
CAMERA_META: Mapping[str, bool] = {
    "use_camera": True,
    "use_lidar": False,
    "use_radar": False,
    "use_map": False,
    "use_external": False,
}
_LABELS = {name: i for i, name in enumerate(EVALUATION_CLASSES)}
_ATTRIBUTES = {"": -1, **{name: i for i, name in enumerate(ATTRIBUTES)}}
_START = '{"meta": {"use_'


@dataclass(frozen=True)
class Detections:
    """N boxes of several samples, in the global frame.

    Attributes:
        samples: (N,), indices of their samples, of whatever list of samples they are of.
        translations: (N, 3), centres in metres.
        sizes: (N, 3), width, length and height in metres.
        rotations: (N, 4), quaternions (w, x, y, z).
        velocities: (N, 2), m/s along x and y, NaN where unknown.
        labels: (N,), indices in `classes.EVALUATION_CLASSES`.
        scores: (N,); -1 where there is none.
        attributes: (N,), indices in `classes.ATTRIBUTES`; -1 for none.
        points: (N,), how many points of LiDAR and radar they hold; -1 where unknown.
    """

    samples: np.ndarray
    translations: np.ndarray
    sizes: np.ndarray
    rotations: np.ndarray
    velocities: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    attributes: np.ndarray
    points: np.ndarray

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: np.ndarray) -> "Detections":
        """The boxes of an index or a mask."""
        return Detections(*(getattr(self, field.name)[index] for field in fields(self)))


@dataclass(frozen=True)
class Submission:
    """What a file of results holds.

    Attributes:
        meta: Its flags.
        tokens: Of the samples, in the order of the file.
        boxes: In the same order; `samples` are indices in `tokens`.
        name: The file, for errors.
    """

    meta: dict[str, Any]
    tokens: list[str]
    boxes: Detections
    name: str = "the submission"

    def select(self, tokens: Sequence[str]) -> "Submission":
        """What is said of some samples, in their order: what the devkit takes of a file for a split of one's own.

        Raises:
            ValueError: A sample is missing.
        """
        known = {token: i for i, token in enumerate(self.tokens)}
        missing = [token for token in tokens if token not in known]
        if missing:
            raise ValueError(f"{self.name}: results has no sample {missing[0]!r} ({len(missing)} are missing)")
        place = np.full(len(self.tokens), -1)
        place[[known[token] for token in tokens]] = np.arange(len(tokens))
        samples = place[self.boxes.samples]
        index = np.argsort(samples, kind="stable")
        index = index[samples[index] >= 0]
        boxes = self.boxes[index]
        boxes.samples[:] = samples[index]
        return Submission(self.meta, list(tokens), boxes, self.name)

    def index_in_sample(self) -> np.ndarray:
        """(N,): the place of each box in the list of its sample."""
        _, starts, counts = np.unique(self.boxes.samples, return_index=True, return_counts=True)
        return np.arange(len(self.boxes)) - np.repeat(starts, counts)


def read_submission(path: str | os.PathLike, max_boxes: int = MAX_BOXES) -> Submission:
    """Read a file of results, sample by sample: it may be larger than the memory that its objects would take.

    A box may lack `detection_score`, which counts as -1, and may have `num_pts`, as in the devkit.

    Args:
        path: Of the file.
        max_boxes: Of a sample, at most.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not such a file, naming it, the sample, the box and the field.
    """
    path = Path(path)
    meta: Any = None
    parts: list[Detections] = []
    tokens: list[str] | None = None
    for parent, key, value in JsonStream(path).entries("results"):
        if parent is None and key == "results":
            tokens = []
        elif parent is None and key == "meta":
            meta = value
        elif parent is not None and tokens is not None:
            parts.append(_boxes_of(f"{path}: results[{key!r}]", key, len(tokens), value, max_boxes))
            tokens.append(key)
    return _submission(meta, tokens, parts, str(path))


def parse_submission(content: Any, max_boxes: int = MAX_BOXES, name: str = "the submission") -> Submission:
    """Likewise from what the JSON of such a file holds.

    Raises:
        ValueError: Likewise.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{name}: must be an object of meta and results, got {type(content).__name__}")
    results = content.get("results")
    if not isinstance(results, dict):
        raise ValueError(f"{name}: results must be an object of lists of boxes, got {results!r:.80}")
    parts = [
        _boxes_of(f"{name}: results[{token!r}]", token, i, boxes, max_boxes)
        for i, (token, boxes) in enumerate(results.items())
    ]
    return _submission(content.get("meta"), list(results), parts, name)


def write_submission(path: str | os.PathLike, submission: Submission) -> None:
    """Write a file of results, whole or not at all; a file of results that is there is replaced.

    Args:
        path: Of the file; its folder is made.
        submission: With the flags `use_camera`, `use_lidar`, `use_radar`, `use_map` and `use_external` in `meta`.

    Raises:
        FileExistsError: Another file is there.
        ValueError: A flag is missing, or a sample has more than 500 boxes.
    """
    path = Path(path)
    missing = [flag for flag in CAMERA_META if not isinstance(submission.meta.get(flag), bool)]
    if missing:
        raise ValueError(f"{path}: meta must have {', '.join(CAMERA_META)}, each true or false; {missing[0]} is not")
    boxes = submission.boxes
    counts = np.bincount(boxes.samples, minlength=len(submission.tokens))
    if (counts > MAX_BOXES).any():
        token = submission.tokens[int(counts.argmax())]
        raise ValueError(f"{path}: at most {MAX_BOXES} boxes a sample, got {counts.max()} for {token!r}")
    if path.exists() and not _is_submission(path):
        raise FileExistsError(f"{path}: is there and not a file of results: move it away or name another")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(6)}.tmp")
    meta = {flag: submission.meta[flag] for flag in CAMERA_META} | submission.meta
    order = np.argsort(boxes.samples, kind="stable")
    ends = np.cumsum(counts)
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(f'{{"meta": {json.dumps(meta)}, "results": {{')
            for i, token in enumerate(submission.tokens):
                rows = order[ends[i] - counts[i] : ends[i]]
                file.write(f"{', ' if i else ''}{json.dumps(token)}: {json.dumps(_entries(token, boxes[rows]))}")
            file.write("}}")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def _is_submission(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_START)) == _START.encode()


def _entries(token: str, boxes: Detections) -> list[dict[str, Any]]:
    columns: Iterable[tuple] = zip(
        boxes.translations.tolist(),
        boxes.sizes.tolist(),
        boxes.rotations.tolist(),
        boxes.velocities.tolist(),
        boxes.labels.tolist(),
        boxes.scores.tolist(),
        boxes.attributes.tolist(),
        strict=True,
    )
    return [
        {
            "sample_token": token,
            "translation": translation,
            "size": size,
            "rotation": rotation,
            "velocity": velocity,
            "detection_name": EVALUATION_CLASSES[label],
            "detection_score": score,
            "attribute_name": ATTRIBUTES[attribute] if attribute >= 0 else "",
        }
        for translation, size, rotation, velocity, label, score, attribute in columns
    ]


def _submission(meta: Any, tokens: list[str] | None, parts: list[Detections], name: str) -> Submission:
    if not isinstance(meta, dict):
        raise ValueError(f"{name}: meta must be an object of flags, got {meta!r:.80}")
    if tokens is None:
        raise ValueError(f"{name}: the key 'results' is missing")
    return Submission(meta, tokens, joined(parts), name)


def joined(parts: Sequence[Detections]) -> Detections:
    """The boxes of all parts, one after the other."""
    parts = [*parts, NO_BOXES]
    return Detections(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Detections)))


def _boxes_of(place: str, token: str, sample: int, boxes: Any, max_boxes: int) -> Detections:
    """The boxes of a sample, checked.

    Raises:
        ValueError: With the place, the box and the field.
    """
    if not isinstance(boxes, list):
        raise ValueError(f"{place}: must be a list of boxes, got {boxes!r:.80}")
    if len(boxes) > max_boxes:
        raise ValueError(f"{place}: at most {max_boxes} boxes a sample, got {len(boxes)}")
    try:
        return _columns(token, sample, boxes)
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError):
        for i, box in enumerate(boxes):
            try:
                _columns(token, sample, [box])
            except ValueError as error:
                raise ValueError(f"{place}[{i}]: {error}") from None
            except KeyError as error:
                raise ValueError(f"{place}[{i}]: the field {error} is missing") from None
            except OverflowError:
                raise ValueError(f"{place}[{i}]: has a number beyond those of float64") from None
            except (TypeError, AttributeError):
                raise ValueError(f"{place}[{i}]: must be an object, got {box!r:.80}") from None
        raise


def _columns(token: str, sample: int, boxes: list) -> Detections:
    def column(field: Field) -> np.ndarray:
        values = [box[field.name] for box in boxes]
        array = field.array(values)
        if array is None:
            raise ValueError(f"{field.name} must be {field.expected}, got {values[0]!r:.80}")
        return array

    def codes(name: str, known: dict[str, int]) -> np.ndarray:
        values = [box[name] for box in boxes]
        # A value that cannot be hashed is no text.
        wrong = [value for value in values if not isinstance(value, str) or value not in known]
        if wrong:
            allowed = ", ".join(map(repr, known))
            raise ValueError(f"{name} must be one of {allowed}, got {wrong[0]!r:.80}")
        return np.array([known[value] for value in values], np.int64)

    for box in boxes:
        if box["sample_token"] != token:
            raise ValueError(f"sample_token must be that of the list, got {box['sample_token']!r:.80}")
    scores = [box.get("detection_score", -1.0) for box in boxes]
    velocities = [box["velocity"] for box in boxes]
    return Detections(
        samples=np.full(len(boxes), sample),
        translations=column(Field("translation", "numbers", 3)),
        sizes=column(Field("size", "numbers", 3)),
        rotations=column(Field("rotation", "numbers", 4)),
        velocities=_velocities(velocities),
        labels=codes("detection_name", _LABELS),
        scores=_scores(scores),
        attributes=codes("attribute_name", _ATTRIBUTES),
        points=_points([box.get("num_pts", -1) for box in boxes]),
    )


def _velocities(values: list) -> np.ndarray:
    for value in values:
        if not isinstance(value, list) or len(value) != 2 or {type(number) for number in value} - {int, float}:
            raise ValueError(f"velocity must be a list of 2 numbers, each may be NaN, got {value!r:.80}")
    return np.array(values, np.float64).reshape(-1, 2)


def _scores(values: list) -> np.ndarray:
    for value in values:
        if type(value) not in (int, float) or math.isnan(value):
            raise ValueError(f"detection_score must be a number and not NaN, got {value!r:.80}")
    return np.array(values, np.float64)


def _points(values: list) -> np.ndarray:
    for value in values:
        if type(value) is not int:
            raise ValueError(f"num_pts must be a whole number, got {value!r:.80}")
    return np.array(values, np.int64)


NO_BOXES = _columns("", 0, [])
