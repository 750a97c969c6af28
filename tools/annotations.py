"""Checks of what annotation files say, before a training run meets it."""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Real
from pathlib import Path
from typing import Any

from .errors import UserError

# A label map is read for its values; of more maps these are spread over the data set.
_MAPS_READ = 64


def _numbers(values: Any, count: int | None = None) -> bool:
    """Whether it is a list of finite numbers, `count` of them."""
    return (
        isinstance(values, list)
        and (count is None or len(values) == count)
        and all(isinstance(x, Real) and not isinstance(x, bool) and math.isfinite(x) for x in values)
    )


def _is_mask(mask: Any) -> bool:
    """Whether it is a segmentation of COCO: polygons of three points or more, or a run-length code."""
    if isinstance(mask, dict):
        return "counts" in mask and _numbers(mask.get("size"), 2)
    return isinstance(mask, list) and all(_numbers(p) and len(p) >= 6 and len(p) % 2 == 0 for p in mask)


def _some(values: Collection[Any]) -> str:
    shown = [repr(value) for value in list(values)[:5]]
    return ", ".join(shown) + (", …" if len(values) > 5 else "")


def check_coco(field: str, path: Path, content: dict[str, Any], classes: Collection[str], masks: bool) -> None:
    """Check the entries of a COCO file.

    Args:
        field: Of the config, for the message.
        path: The file, for the message.
        content: What is in it.
        classes: Names that the data set takes; empty for any.
        masks: Whether segmentations are needed.

    Raises:
        UserError: naming file, entry and what is allowed, for the first entry that is wrong.
    """

    def wrong(place: str, value: Any, allowed: str) -> UserError:
        return UserError(f"{field}: {path}: {place}: {str(value)[:80]}: allowed is {allowed}")

    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list) or not all(isinstance(entry, dict) for entry in content[key]):
            raise wrong(key, type(content.get(key)).__name__, "a list of entries")
    for index, image in enumerate(content["images"]):
        for key in ("width", "height"):
            if not isinstance(image.get(key), int) or image[key] < 1:
                raise wrong(f"images[{index}].{key}", image.get(key), "a positive number of pixels")
        if "id" not in image:
            raise wrong(f"images[{index}].id", None, "a number that annotations refer to")
    for index, category in enumerate(content["categories"]):
        if "id" not in category:
            raise wrong(f"categories[{index}].id", None, "a number that annotations refer to")
        if not isinstance(category.get("name"), str):
            raise wrong(f"categories[{index}].name", category.get("name"), "a text")
    names = [category["name"] for category in content["categories"]]
    if classes and not set(names) & set(classes):
        raise wrong("categories", _some(names), f"names among the classes of the data set: {_some(classes)}")

    images = {image["id"] for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    for index, entry in enumerate(content["annotations"]):
        place = f"annotations[{index}]"
        if entry.get("image_id") not in images:
            raise wrong(f"{place}.image_id", entry.get("image_id"), "the id of one of images")
        if entry.get("category_id") not in categories:
            raise wrong(f"{place}.category_id", entry.get("category_id"), f"an id of categories: {_some(categories)}")
        if not _numbers(entry.get("bbox"), 4):
            raise wrong(f"{place}.bbox", entry.get("bbox"), "four finite numbers: x, y, width, height")
        if not _numbers([entry.get("area")]):
            raise wrong(f"{place}.area", entry.get("area"), "a finite number of pixels")
        if masks and not _is_mask(entry.get("segmentation")):
            raise wrong(f"{place}.segmentation", entry.get("segmentation"), "polygons of 6 or more numbers, or a code")


def check_label_maps(field: str, dataset: Any) -> None:
    """Check the label maps of a data set of mmseg: that each is there, and what is in a number of them.

    Args:
        field: Of the config, for the message.
        dataset: A `BaseSegDataset`.

    Raises:
        UserError: naming the field, the map and what is allowed, if there is no image or a map is missing, no image,
            not of its image's size, or holds a label that is no class.
    """
    import numpy as np
    from PIL import Image

    entries = [dataset.get_data_info(index) for index in range(len(dataset))]
    if not entries:
        place = dataset.data_prefix.get("img_path")
        raise UserError(f"{field}.data_prefix.img_path: no image *{dataset.img_suffix} in {str(place)!r}")
    missing = [entry["seg_map_path"] for entry in entries if not Path(entry["seg_map_path"]).is_file()]
    if missing:
        raise UserError(
            f"{field}.data_prefix.seg_map_path: {len(missing)} of {len(entries)} label maps are missing: "
            f"{_some(missing)}"
        )
    classes = len(dataset.metainfo.get("classes") or ())
    first, last = (0, classes) if dataset.reduce_zero_label else (0, classes - 1)
    for entry in entries[:: max(1, math.ceil(len(entries) / _MAPS_READ))]:
        path = entry["seg_map_path"]
        try:
            with Image.open(path) as opened, Image.open(entry["img_path"]) as image:
                labels, size, expected = np.array(opened), opened.size, image.size
        except OSError as error:
            raise UserError(f"{field}: {path}: no label map that can be read ({error})") from error
        if size != expected or labels.ndim != 2:
            raise UserError(
                f"{field}: {path}: {labels.shape}: allowed is {expected[1]} x {expected[0]}, one label a pixel, as "
                f"{entry['img_path']} has"
            )
        bad = np.setdiff1d(labels, [*range(first, last + 1), dataset.ignore_index])
        if classes and not dataset.label_map and len(bad):
            raise UserError(
                f"{field}: {path}: labels {_some(bad.tolist())}: allowed are {first} to {last}, and "
                f"{dataset.ignore_index} for no label"
            )
