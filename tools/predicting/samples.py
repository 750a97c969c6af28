"""What a model of the mm libraries predicts in an image: drawn, and as it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools.mask import encode

from ..common.errors import UserError
from ..common.files import atomic_path
from ..data.drawing import draw_instances, draw_labels
from .outputs import png_stamp

# mmdet's panoptic maps hold class + 1000 * number of the instance.
INSTANCE_OFFSET = 1000


def drawn(image: np.ndarray, sample: Any, names: list[str], palette: list, score: float) -> tuple[np.ndarray, dict]:
    """Draw what a data sample predicts; return the picture and its entry for the JSON, less the file's name."""
    entry: dict[str, Any] = {"width": image.shape[1], "height": image.shape[0]}
    labels = None
    if "pred_sem_seg" in sample:
        labels = sample.pred_sem_seg.cpu().numpy().data.squeeze(0)
    elif "pred_panoptic_seg" in sample:
        labels = sample.pred_panoptic_seg.cpu().numpy().sem_seg.squeeze(0) % INSTANCE_OFFSET
    if labels is not None:
        image = draw_labels(image, labels, names, palette)
        counts = np.bincount(labels[labels < len(names)].ravel().astype(np.int64), minlength=len(names))
        entry["fractions"] = {name: int(count) / labels.size for name, count in zip(names, counts, strict=True)}
    if "pred_instances" in sample:
        found = sample.pred_instances.cpu().numpy()
        if not all(np.isfinite(found[key]).all() for key in ("bboxes", "scores")):
            raise UserError("what the model finds is not finite (NaN)")
        found = found[found.scores >= score]
        if len(found) and found.labels.max() >= len(names):
            raise UserError(f"the model finds class {found.labels.max()}, but the names are those of {len(names)}")
        masks = found.masks.astype(bool) if "masks" in found else None
        image = draw_instances(image, found.bboxes, found.labels, names, palette, found.scores, masks)
        entry["instances"] = [
            {"box": [round(float(value), 2) for value in box], "score": round(float(confidence), 4),
             "label": int(label), "name": names[label]}
            for box, confidence, label in zip(found.bboxes, found.scores, found.labels, strict=True)
        ]  # fmt: skip
        for instance, mask in zip(entry["instances"], masks if masks is not None else (), strict=False):
            instance["mask"] = _run_lengths(mask)
    return image, entry


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed run lengths of a mask (H, W)."""
    code = encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}


def write_map(path: Path, labels: np.ndarray, classes: int) -> None:
    """Write labels (H, W) as a PNG of 8 bits, or of 16 where that many are needed."""
    deep = max(classes - 1, int(labels.max())) > 255
    with atomic_path(path) as temporary:
        Image.fromarray(labels.astype("uint16" if deep else "uint8")).save(temporary, pnginfo=png_stamp())
