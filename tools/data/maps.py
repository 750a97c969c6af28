"""Label maps, and maps of segments."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import UserError
from ..common.messages import some
from .images import SUFFIXES, image_size, open_image
from .sizes import seen_size, steps_of, stored_size

# Rows of a map of segments that are looked at together: eight bytes a pixel.
_BAND = 256


def check_segment_maps(field: str, path: Path, content: Mapping[str, Any], folder: Path) -> None:
    """Check the maps of a panoptic COCO file: that each is there, and size and ids of a number of them.

    Args:
        field: Of the config, for the message.
        path: The COCO file, for the message.
        content: What is in it, checked.
        folder: Where the maps are.

    Raises:
        UserError: naming the map and what is allowed.
    """
    segments: dict[Any, set[int]] = {image["id"]: set() for image in content["images"]}
    for entry in content["annotations"]:
        segments.get(entry["image_id"], set()).update(segment["id"] for segment in entry["segments_info"])
    # As mmdet names them, whatever the annotations say.
    files = [os.path.join(folder, image["file_name"].replace(".jpg", ".png")) for image in content["images"]]
    missing = [file for file in files if not os.path.isfile(file)]
    if missing:
        raise UserError(
            f"{field}: {path}: {len(missing)} of {len(files)} maps of segments are missing: {some(missing)}"
        )
    step, of_header = steps_of(files)
    for index, (image, file) in enumerate(zip(content["images"], files, strict=True)):
        if index % step and index % of_header:
            continue
        try:
            with open_image(file) as opened:
                size, expected = opened.size, (image["width"], image["height"])
                found = _segments(opened) if size == expected and index % step == 0 else set()
        except UserError as error:
            raise UserError(f"{field}: {path}: no map of segments that can be read ({error})") from error
        if size != expected:
            raise UserError(
                f"{field}: {path}: {file}: {size[0]} x {size[1]}: allowed is {expected[0]} x {expected[1]}, as "
                f"images[{index}] has"
            )
        if bad := found - segments[image["id"]] - {0}:
            raise UserError(
                f"{field}: {path}: {file}: segments {some(sorted(bad))}: allowed are those of its annotation, "
                f"{some(sorted(segments[image['id']]))}, and 0 for none"
            )


def _segments(image: Any) -> set[int]:
    """The ids in an open map of segments, of which a large one must not take much more memory than its pixels."""
    coloured = image if image.mode == "RGB" else image.convert("RGB")
    found: set[int] = set()
    for top in range(0, image.height, _BAND):
        band = np.asarray(coloured.crop((0, top, image.width, min(top + _BAND, image.height))))
        red, green, blue = (band[..., channel].astype(np.uint32) for channel in range(3))
        found.update(np.unique(red | green << 8 | blue << 16).tolist())
    return found


@dataclass(frozen=True)
class LabelMaps:
    """How the label maps of a data set, and its images, are read.

    Attributes:
        images: Whether images are read as Pillow sees them, so that their size can be compared.
        upright: Whether they are turned as their EXIF data say.
        maps: Whether maps are read as they are.
        labels: Whether what is in them reaches the model, up to the changes that the data set itself describes.
        ignored: Labels that heads and metrics leave out, beside that of the data set.
    """

    images: bool = True
    upright: bool = True
    maps: bool = True
    labels: bool = True
    ignored: frozenset[int] = frozenset()


def check_label_maps(field: str, dataset: Any, reading: LabelMaps) -> None:
    """Check the label maps of a data set of mmseg: that each is there, and size and content of a number of them.

    Args:
        field: Of the config, for the message.
        dataset: A `BaseSegDataset`.
        reading: How its maps are read.

    Raises:
        UserError: naming the field, the map and what is allowed, if there is no image or a map is missing, no image,
            not of its image's size, or holds a label that is no class.
    """
    entries = [dataset.get_data_info(index) for index in range(len(dataset))]
    if not entries:
        place = dataset.data_prefix.get("img_path")
        raise UserError(f"{field}.data_prefix.img_path: no image *{dataset.img_suffix} in {str(place)!r}")
    missing = [entry["seg_map_path"] for entry in entries if not os.path.isfile(entry["seg_map_path"])]
    if missing:
        raise UserError(
            f"{field}.data_prefix.seg_map_path: {len(missing)} of {len(entries)} label maps are missing: "
            f"{some(missing)}"
        )
    if not reading.maps:
        return
    classes = len(dataset.metainfo.get("classes") or ())
    first, last = (0, classes) if dataset.reduce_zero_label else (0, classes - 1)
    others = sorted({dataset.ignore_index, *reading.ignored})
    allowed = [*range(first, last + 1), *others]
    step, of_header = steps_of(entries)
    for index, entry in enumerate(entries):
        path, whole = entry["seg_map_path"], index % step == 0
        # Of a TIFF the header alone does not tell the size, and to decode all of them takes long.
        if not whole and (index % of_header or Path(entry["img_path"]).suffix.lower() in (".tif", ".tiff")):
            continue
        if Path(path).suffix.lower() not in SUFFIXES:
            continue
        expected = (
            seen_size(entry["img_path"], image_size if reading.upright else stored_size) if reading.images else None
        )
        try:
            with open_image(path) as opened:
                size, bands = opened.size, opened.getbands()
                fits = len(bands) == 1 and expected in (None, size)
                looked_at = fits and whole and reading.labels and not dataset.label_map and classes
                bad = np.setdiff1d(np.asarray(opened) if looked_at else (), allowed)
        except UserError as error:
            raise UserError(f"{field}: {path}: no label map that can be read ({error})") from error
        if not fits:
            shape = (size[1], size[0], len(bands))[: 2 + (len(bands) > 1)]
            place = (
                f"{expected[1]} x {expected[0]}, one label a pixel, as {entry['img_path']} has" if expected else None
            )
            raise UserError(f"{field}: {path}: {shape}: allowed is {place or 'one label a pixel'}")
        if len(bad):
            raise UserError(
                f"{field}: {path}: labels {some(bad.tolist())}: allowed are {first} to {last}, and "
                f"{', '.join(map(str, others))} for no label"
            )
