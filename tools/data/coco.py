"""Checks of what COCO files say, before a training run meets it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.messages import shortened, some
from .outlines import NUMBERS, PIXELS, REACH, first_bad_code, is_odd, mask_fault

# What OpenCV reads at most of a side, in pixels.
_SIDE = 2**20
# They must come as near to their image, in pixels.
_NEAR = 1
# Sums and products of such numbers are finite.
_LARGEST = 1e15
# Ids of images are compared only; those of annotations and categories are counted with.
_INT64 = 2**63
# Levels of lists and entries in what pycocotools copies, which fails where there are very many.
_LEVELS = 50


@dataclass(frozen=True)
class CocoNeeds:
    """What a COCO file is used for.

    Attributes:
        kind: `instances`, or `panoptic` (annotations list segments).
        reader: `data set` for mmdet's own, which leaves out what is nothing to train on; `metric`, which compares
            predictions with it; `other` for a class of one's own, of which it is not known what it leaves out.
        annotated: Whether there must be annotations.
        classes: Names that the data set takes; empty for any.
        ordered: Whether the data set numbers its labels by the order of the file, as mmdet's does.
        masks: Whether segmentations are read.
        evaluated: Whether pycocotools compares predictions with it.
        naming: What names the files of images: `file_name`, `short` for what LVIS 0.5 makes of it, `last_folder` for
            what Objects365 v2 makes of it, or `coco_url` as in LVIS 1; None if no file is read.
        unread: Names of images that the data set leaves out.
    """

    kind: str = "instances"
    reader: str = "other"
    annotated: bool = True
    classes: tuple[str, ...] = ()
    ordered: bool = False
    masks: bool = False
    evaluated: bool = False
    naming: str | None = "file_name"
    unread: frozenset[str] = frozenset()


class _Told:
    """Entries that are not refused and not used either: how many, and the first."""

    def __init__(self) -> None:
        self.count = 0
        self.first = ""

    def add(self, place: str, value: Any, why: str) -> None:
        self.count += 1
        self.first = self.first or f"{place}: {_shown(value)}: {why}"


def check_coco(
    field: str, path: Path, content: Mapping[str, Any], needs: CocoNeeds
) -> tuple[list[str | None], str | None]:
    """Check the entries of a COCO file.

    Everything that pycocotools and mmdet use is looked at; other fields may be whatever they are. What would crash, or
    be trained on or compared wrongly, is refused; what mmdet leaves out by itself is told.

    Args:
        field: Of the config, for the message.
        path: The file, for the message.
        content: What is in it.
        needs: What it is used for.

    Returns:
        The file names of the images, below their folder, None for one that is left out; and how many annotations are
        left out, with the first of them, None if none is.

    Raises:
        UserError: naming file, entry and what is allowed, for the first entry that is wrong.
    """

    def wrong(place: str, value: Any, allowed: str) -> UserError:
        return UserError(f"{field}: {path}: {place}: {_shown(value)}: allowed is {allowed}")

    parts: dict[str, Any] = {key: content.get(key) for key in ("images", "annotations", "categories")}
    # As in COCO's files for the test server.
    if "annotations" not in content and not needs.annotated:
        parts["annotations"] = []
    for key, entries in parts.items():
        if type(entries) is not list:
            raise wrong(key, type(entries).__name__, "a list of entries")
        for index, entry in enumerate(entries):
            if type(entry) is not dict:
                raise wrong(f"{key}[{index}]", entry, "an entry with named fields")
    for key in ("info", "categories") if needs.evaluated else ():
        if not _is_shallow(content.get(key), _LEVELS):
            raise wrong(key, "…", f"values in no more than {_LEVELS} levels")
    images, annotations, listed = parts.values()
    names, sizes = _check_images(wrong, images, needs)
    categories = _check_categories(wrong, listed, needs)
    told = _Told()
    _check_annotations(wrong, told, annotations, sizes, categories, needs)
    if not told.count:
        return names, None
    what = "are left out, or parts of them, as mmdet does"
    if needs.reader == "metric":
        what = "count as missed or not at all"
    total = f"{len(annotations)} annotations"
    if needs.kind == "panoptic":
        total = f"{sum(len(entry['segments_info']) for entry in annotations)} segments"
    return names, f"{field}: {path}: {told.count} of {total} {what}: {told.first}"


Wrong = Callable[[str, Any, str], UserError]


def _shown(value: Any) -> str:
    try:
        text = str(value)
    except (RecursionError, ValueError):  # nested too deep, or an integer of too many digits
        text = f"a {type(value).__name__}"
    return shortened(text, 80)


def _is_shallow(value: Any, levels: int) -> bool:
    parts = value.values() if type(value) is dict else value if type(value) is list else ()
    return levels >= 0 and all(_is_shallow(part, levels - 1) for part in parts)


def _check_images(
    wrong: Wrong, images: list[dict[str, Any]], needs: CocoNeeds
) -> tuple[list[str | None], dict[Any, tuple[int, int]]]:
    """The names of the images, and width and height by their id."""
    names: list[str | None] = []
    # Without masks, mmdet and pycocotools compare sizes only.
    whole = {int} if needs.masks or needs.kind == "panoptic" else NUMBERS
    sizes: dict[Any, tuple[int, int]] = {}
    kind = None
    for index, image in enumerate(images):
        place = f"images[{index}]"
        for key in ("width", "height"):
            side: Any = image.get(key)
            if type(side) not in whole or not 1 <= side <= _SIDE or side != int(side):
                raise wrong(f"{place}.{key}", side, f"a positive number of pixels, at most {_SIDE}")
        size: tuple[int, int] = image["width"], image["height"]
        if size[0] * size[1] > PIXELS:
            raise wrong(f"{place}.height", image["height"], f"no more than {PIXELS} pixels in all")
        number: Any = image.get("id")
        kind = kind or type(number)
        if kind not in (int, str) or type(number) is not kind or (kind is int and not -_INT64 <= number < _INT64):
            raise wrong(f"{place}.id", number, "a number that annotations refer to, or in all images a text")
        if number in sizes:
            raise wrong(f"{place}.id", number, "an id that no other image has")
        sizes[number] = size
        if needs.naming:
            name = _name_of(wrong, place, image, needs.naming)
            names.append(None if name in needs.unread else name)
    return names, sizes


def _name_of(wrong: Wrong, place: str, image: dict[str, Any], naming: str) -> str:
    key = "coco_url" if naming == "coco_url" else "file_name"
    name = image.get(key)
    if type(name) is not str or not name:
        raise wrong(f"{place}.{key}", name, "the path of a file below the folder of images; this is not a COCO file")
    if key == "coco_url":
        name = name.replace("http://images.cocodataset.org/", "")
    if not _is_below(name):
        raise wrong(f"{place}.{key}", name, "a path below the folder of images, without '..'")
    if naming == "last_folder":
        folder, file = os.path.split(name)
        return os.path.join(os.path.basename(folder), file)
    # COCO's names of 2014 become those of 2017.
    return name[-16:] if naming == "short" and name.startswith("COCO") else name


def _is_below(name: str) -> bool:
    """Whether a name is a path that leads down from where it is looked for, on any system."""
    parts = name.replace("\\", "/").split("/")
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return bool(parts[0]) and ".." not in parts and "\0" not in name and not re.match("[A-Za-z]:", name)


def _check_categories(wrong: Wrong, categories: list[dict[str, Any]], needs: CocoNeeds) -> dict[int, str]:
    """Names of the categories by their id."""
    found: dict[int, str] = {}
    seen: set[str] = set()
    for index, category in enumerate(categories):
        place, number, name = f"categories[{index}]", category.get("id"), category.get("name")
        if type(number) is not int or not -_INT64 <= number < _INT64:
            raise wrong(f"{place}.id", number, "a number that annotations refer to")
        if number in found:
            raise wrong(f"{place}.id", number, "an id that no other category has")
        if type(name) is not str or not name:
            raise wrong(f"{place}.name", name, "a text")
        if name in seen and (name in needs.classes or not needs.classes):
            raise wrong(f"{place}.name", name, "a name that no other category has")
        if needs.kind == "panoptic" and category.get("isthing") not in (0, 1):
            raise wrong(f"{place}.isthing", category.get("isthing"), "1 for things, 0 for stuff")
        found[number] = name
        seen.add(name)
    wanted = set(needs.classes)
    taken = [name for name in found.values() if name in wanted]
    if needs.classes and not taken:
        names = list(found.values())
        raise wrong("categories", some(names), f"names among the classes of the data set: {some(needs.classes)}")
    if needs.ordered and taken != list(needs.classes[: len(taken)]):
        raise wrong(
            "categories",
            some(taken),
            f"the order of the data set's classes, since labels are numbered in the order of the file, without a gap: "
            f"{some(needs.classes)}",
        )
    return found


def _check_annotations(
    wrong: Wrong,
    told: _Told,
    annotations: list[dict[str, Any]],
    sizes: dict[Any, tuple[int, int]],
    categories: dict[int, str],
    needs: CocoNeeds,
) -> None:
    seen: set[int] = set()
    codes: list[tuple[int, bytes, int]] = []
    astray = 0
    for index, entry in enumerate(annotations):
        image_id, number = entry.get("image_id"), entry.get("id")
        if needs.kind != "panoptic":
            if type(number) is not int or not -_INT64 <= number < _INT64:
                raise wrong(f"annotations[{index}].id", number, "a number")
            if number in seen:
                raise wrong(f"annotations[{index}].id", number, "an id that no other annotation has")
            seen.add(number)
        known = type(image_id) in (int, str)
        size = sizes.get(image_id) if known else None
        if size is None:
            astray += 1
            # Where it is so with all, they are of other images.
            if not known or needs.reader == "other" or (index == len(annotations) - 1 and astray == len(annotations)):
                raise wrong(f"annotations[{index}].image_id", image_id, "the id of one of images")
            told.add(f"annotations[{index}].image_id", image_id, "not the id of one of images")
            # They come into the index of categories all the same.
            if needs.kind == "panoptic":
                _check_segments(wrong, _Told(), index, entry, (_SIDE, _SIDE), categories, needs)
            elif type(entry.get("category_id")) is not int:
                raise wrong(f"annotations[{index}].category_id", entry.get("category_id"), "an id of categories")
            continue
        if needs.kind == "panoptic":
            _check_segments(wrong, told, index, entry, size, categories, needs)
            continue
        fault = _fault(told, f"annotations[{index}]", entry, size, categories, needs)
        if fault is None and needs.evaluated and "iscrowd" not in entry:
            fault = "iscrowd", "0 or 1, without which predictions cannot be compared"
        if fault is None and needs.masks and _needs_mask(entry, size, categories, needs):
            mask = entry.get("segmentation")
            polygons = mask if needs.reader == "data set" and type(mask) is list else ()
            odd = [one for one in polygons if is_odd(one)]
            if odd:
                told.add(f"annotations[{index}].segmentation", odd[0], "not 6 or more numbers, x and y in turn")
                mask = [one for one in polygons if not is_odd(one)]
            allowed = mask_fault(mask, *size) if mask or not odd else None
            if allowed:
                fault = "segmentation", allowed
            elif type(mask) is dict and type(mask["counts"]) is str:
                codes.append((index, mask["counts"].encode("ascii"), size[0] * size[1]))
        if fault is not None:
            key, allowed = fault
            raise wrong(f"annotations[{index}].{key}", entry.get(key), allowed)
    for start in range(0, len(codes), 10_000):
        bad = first_bad_code(codes[start : start + 10_000])
        if bad is not None:
            value = annotations[bad]["segmentation"]["counts"]
            raise wrong(f"annotations[{bad}].segmentation.counts", value, "run lengths of all pixels of the image")


def _check_segments(
    wrong: Wrong,
    told: _Told,
    number: int,
    entry: dict[str, Any],
    size: tuple[int, int],
    categories: dict[int, str],
    needs: CocoNeeds,
) -> None:
    """Check an annotation of a panoptic file: the file with the ids of its segments, and these."""
    place, name, segments = f"annotations[{number}]", entry.get("file_name"), entry.get("segments_info")
    if type(name) is not str or not _is_below(name):
        raise wrong(f"{place}.file_name", name, "the path of a file below the folder of segments, without '..'")
    if type(segments) is not list:
        raise wrong(f"{place}.segments_info", segments, "a list of segments")
    for index, segment in enumerate(segments):
        inner = f"{place}.segments_info[{index}]"
        if type(segment) is not dict or type(segment.get("id")) is not int:
            raise wrong(inner, segment, "a segment with the number that it has in the file")
        fault = _fault(told, inner, segment, size, categories, needs)
        if fault is not None:
            raise wrong(f"{inner}.{fault[0]}", segment.get(fault[0]), fault[1])


def _fault(
    told: _Told,
    place: str,
    entry: dict[str, Any],
    size: tuple[int, int],
    categories: dict[int, str],
    needs: CocoNeeds,
) -> tuple[str, str] | None:
    """The field of an annotation that is wrong, and what is allowed there; None if none is, or if it is told."""
    category = entry.get("category_id")
    if type(category) is not int or category not in categories:
        return "category_id", f"an id of categories: {some(categories)}"
    box = entry.get("bbox")
    # Values so large that a sum of them overflows, and NaN, fail here.
    if type(box) is not list or len(box) != 4 or not {*map(type, box)} <= NUMBERS or not all(map(_is_moderate, box)):
        return "bbox", "four finite numbers: x, y, width, height"
    area: Any = entry.get("area")
    if type(area) not in NUMBERS or not _is_moderate(area) or (area < 0 and needs.reader == "other"):
        return "area", "a finite number of pixels, not negative"
    crowd = entry.get("iscrowd", 0)
    if type(crowd) not in (int, float, bool) or crowd not in (0, 1):
        return "iscrowd", "0 or 1"
    if needs.reader != "other" and (useless := _useless(box, area, size, needs.kind)):
        # Nobody misses what is to be ignored, or of a class that is not taken.
        if not entry.get("ignore") and (not needs.classes or categories[category] in needs.classes):
            told.add(f"{place}.{useless[0]}", entry[useless[0]], useless[1])
        return None
    width, height = size
    reach = REACH * max(size)
    x, y, w, h = box
    if not (-reach <= x <= width + reach and -reach <= y <= height + reach):
        return "bbox", f"x and y of finite numbers, less than {reach} pixels outside of the image of {width} x {height}"
    if not (0 <= w <= width + 2 * reach and 0 <= h <= height + 2 * reach):
        return "bbox", f"a width and height not negative, and less than {reach} pixels outside of {width} x {height}"
    if x > width + _NEAR or y > height + _NEAR or x + w < -_NEAR or y + h < -_NEAR:
        return "bbox", f"a box that is in its image, of {width} x {height} pixels"
    return None


def _is_moderate(number: float) -> bool:
    return -_LARGEST <= number <= _LARGEST


def _useless(box: list[float], area: float, size: tuple[int, int], kind: str) -> tuple[str, str] | None:
    """The field for which mmdet leaves out an annotation, and why; None if it takes it."""
    x, y, w, h = box
    if kind != "panoptic" and not (min(x + w, size[0]) > max(x, 0) and min(y + h, size[1]) > max(y, 0)):
        return "bbox", f"no part of the image of {size[0]} x {size[1]} pixels"
    if area <= 0:
        return "area", "not positive"
    return ("bbox", "smaller than a pixel") if w < 1 or h < 1 else None


def _needs_mask(entry: dict[str, Any], size: tuple[int, int], categories: dict[int, str], needs: CocoNeeds) -> bool:
    """Whether the segmentation of an annotation is read."""
    of_class = not needs.classes or categories[entry["category_id"]] in needs.classes
    taken = of_class and not _useless(entry["bbox"], entry["area"], size, needs.kind) and not entry.get("ignore")
    if needs.reader == "data set":
        return taken
    # pycocotools reads those of all that it compares.
    return taken or (of_class and needs.evaluated) or bool(entry.get("segmentation"))
