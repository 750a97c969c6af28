"""Data sets whose files are named where they cannot be read, in the midst of a run and from a loader's worker too."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from mmengine.dataset import Compose

from ..common.errors import UserError
from ..common.messages import one_line
from ..config.building import place_of
from ..config.classes import is_own


def _has_own(step: Any) -> bool:
    """Whether a step is one of the user's own, or holds one."""
    inner = step if isinstance(step, (list, tuple)) else getattr(step, "transforms", ())
    within = isinstance(inner, (list, tuple)) and any(map(_has_own, inner))
    return within or (not isinstance(step, (list, tuple)) and is_own(type(step)))


class NamingPipeline(Compose):
    """A data set's pipeline, of which a step that fails says at which file, and which refuses labels without a class.

    Args:
        transforms: As of mmengine's.
        labels: How many classes a segmentor's label maps have, and the labels that are allowed beside them; None where
            they are not looked at. Steps of the user's own may change them: they are looked at behind the last one.
    """

    def __init__(self, transforms: list[Any], labels: tuple[int, set[int]] | None = None) -> None:
        super().__init__(transforms)
        self.labels = labels
        own = [number for number, step in enumerate(self.transforms) if _has_own(step)]
        self._own, self._settled = frozenset(own), max(own, default=0)

    def __call__(self, data: dict) -> dict | None:
        """Apply the steps.

        Raises:
            UserError: naming the file and the step that failed, or the label map and its labels.
        """
        image, labels = (data.get("img_path") or data.get("gt_path")), data.get("seg_map_path")
        map_file, checked = labels or image, False
        for number, step in enumerate(self.transforms):
            name = type(step).__name__
            file = (labels if "Annotations" in name else None) or image
            unread = "gt_seg_map" not in data
            try:
                data = step(data)
            except UserError:
                raise
            except Exception as error:  # steps of any library, and of the user's own
                raise UserError(f"{file}: {name} fails: {one_line(error)}{place_of(error)}") from error
            if data is None:
                return None
            if not self.labels or "gt_seg_map" not in data:
                continue
            if unread and number not in self._own:
                found, size = data["gt_seg_map"], tuple(data.get("ori_shape") or ())
                if size and found.shape != size:
                    raise UserError(f"{map_file}: {found.shape}: allowed is {size}, as {image} has, one label a pixel")
            if not checked and number >= self._settled:
                self._check_labels(map_file, data["gt_seg_map"], *self.labels)
                checked = True
        return data

    @staticmethod
    def _check_labels(file: Any, found: np.ndarray, classes: int, others: set[int]) -> None:
        if found.size and found.max() >= classes:
            bad = [label for label in np.unique(found).tolist() if label >= classes and label not in others]
            if bad:
                raise UserError(
                    f"{file}: labels {', '.join(map(str, bad[:5]))} as they are read: allowed are 0 to {classes - 1}, "
                    f"and {', '.join(map(str, sorted(others)))} for no label"
                )


def name_files(dataset: Any, ignored: Collection[int] = ()) -> None:
    """Let a data set, and those that it wraps, name the file that a step of their pipeline fails at.

    Args:
        dataset: Of any library.
        ignored: Labels that the run leaves out, beside that of a segmentor's data set.
    """
    parts = [getattr(dataset, "dataset", None), getattr(dataset, "_dataset", None)]
    several = getattr(dataset, "datasets", None)
    for part in [*parts, *(several if isinstance(several, (list, tuple)) else ())]:
        if part is not None:
            name_files(part, ignored)
    pipeline: Any = getattr(dataset, "pipeline", None)
    if type(pipeline) is Compose:
        dataset.pipeline = NamingPipeline(pipeline.transforms, _labels(dataset, ignored))


def _labels(dataset: Any, ignored: Collection[int]) -> tuple[int, set[int]] | None:
    """What the label maps of a data set of mmseg may hold once they are read, None where that is not known."""
    classes = len((getattr(dataset, "metainfo", None) or {}).get("classes") or ())
    if not classes or not hasattr(dataset, "reduce_zero_label") or getattr(dataset, "label_map", None):
        return None
    return classes, {dataset.ignore_index, *ignored} | ({255} if dataset.reduce_zero_label else set())
