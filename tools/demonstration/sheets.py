"""Pictures of held-out images, the truth above the prediction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..common.files import atomic_path
from ..data import digits
from ..data.drawing import default_palette, draw_instances
from .tasks import Task

_SCALE = 3  # of the 160-pixel images in the sheets, so that labels can be read


def draw_sheet(task: Task, out: Path, data: digits.Digits, image_ids: list[int]) -> None:
    """Write the picture of a task: held-out images side by side, the truth above, the prediction below."""
    coco = json.loads(data.annotations["val"].read_text())
    names = {image["id"]: image["file_name"] for image in coco["images"]}
    folder = out / task.name / "predictions"
    predicted = json.loads((folder / "predictions.json").read_text())["images"]
    rows: dict[str, list[np.ndarray]] = {"truth": [], "prediction": []}
    for number, entry in zip(image_ids, predicted, strict=True):
        image = Image.open(data.images["val"] / names[number])
        if task.name == "detector":
            truth = [
                {"box": [x, y, x + w, y + h], "label": annotation["category_id"] - 1}
                for annotation in coco["annotations"]
                if annotation["image_id"] == number
                for x, y, w, h in [annotation["bbox"]]
            ]
            rows["truth"].append(_with_boxes(image, truth))
            rows["prediction"].append(_with_boxes(image, entry["instances"]))
        else:
            rows["truth"].append(_with_map(image, data.seg_maps["val"] / names[number]))
            rows["prediction"].append(_with_map(image, folder / entry["map"]))

    gap, margin = 12, 36
    height, width = rows["truth"][0].shape[:2]
    sheet = Image.new("RGB", (gap + (width + gap) * len(image_ids), (margin + height) * len(rows) + gap), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=24)
    for row, (title, pictures) in enumerate(rows.items()):
        top = row * (margin + height)
        draw.text((gap, top + 4), title, font=font, fill="black")
        for column, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture), (gap + column * (width + gap), top + margin))
    with atomic_path(out / task.sheet) as temporary:
        sheet.save(temporary)


def _with_boxes(image: Any, instances: list[dict[str, Any]]) -> np.ndarray:
    """The image, enlarged, with boxes (`box`, `label`, and `score` where predicted) and the names of their classes."""
    size = (image.width * _SCALE, image.height * _SCALE)
    scores = np.array([instance["score"] for instance in instances if "score" in instance])
    return draw_instances(
        np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC)),
        _SCALE * np.array([instance["box"] for instance in instances]).reshape(-1, 4),
        np.array([instance["label"] for instance in instances], int),
        digits.CLASSES,
        default_palette(len(digits.CLASSES)),
        scores if len(scores) == len(instances) else None,
    )


def _with_map(image: Any, map_path: Path) -> np.ndarray:
    """The image, enlarged, its photograph darkened and its digits yellow."""
    size = (image.width * _SCALE, image.height * _SCALE)
    pixels = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
    digit = np.asarray(Image.open(map_path).resize(size, Image.Resampling.NEAREST)) == 1
    mixed = np.where(digit[..., None], 0.3 * pixels + 0.7 * np.array([255, 225, 25]), 0.45 * pixels)
    return mixed.round().astype(np.uint8)
