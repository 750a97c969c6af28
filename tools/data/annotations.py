"""Checks of what annotation files say, before a training run meets it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import UserError
from .images import SUFFIXES, image_size, open_image

# A label map is read for its values; of more maps these are spread over the data set. So are images whose headers are.
_MAPS_READ, _HEADERS_READ = 64, 1000

# What OpenCV reads at most: pixels of a side, and of an image.
_SIDE, _PIXELS = 2**20, 2**30
# Boxes and polygons may stick out of their image, by so many times its longer side, and must come as near as a pixel.
_REACH, _NEAR = 10, 1
# Sums and products of such numbers are finite.
_LARGEST = 1e15
# pycocotools holds every pixel of an outline in memory, forty bytes each.
_OUTLINE = 10_000_000
_NUMBERS = {int, float}
# Ids of images are compared only; those of annotations and categories are counted with.
_INT64 = 2**63
_CODE = re.compile(r"[0-o]+")
# Levels of lists and entries in what pycocotools copies, which fails where there are very many.
_LEVELS = 50
# Rows of a map of segments that are looked at together: eight bytes a pixel.
_BAND = 256


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


def _some(values: Collection[Any]) -> str:
    shown = [repr(value) for value in list(values)[:5]]
    return ", ".join(shown) + (", …" if len(values) > 5 else "")


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
    return text if len(text) <= 80 else text[:79] + "…"


def _is_shallow(value: Any, levels: int) -> bool:
    parts = value.values() if type(value) is dict else value if type(value) is list else ()
    return levels >= 0 and all(_is_shallow(part, levels - 1) for part in parts)


def _check_images(
    wrong: Wrong, images: list[dict[str, Any]], needs: CocoNeeds
) -> tuple[list[str | None], dict[Any, tuple[int, int]]]:
    """The names of the images, and width and height by their id."""
    names: list[str | None] = []
    # Without masks, mmdet and pycocotools compare sizes only.
    whole = {int} if needs.masks or needs.kind == "panoptic" else _NUMBERS
    sizes: dict[Any, tuple[int, int]] = {}
    kind = None
    for index, image in enumerate(images):
        place = f"images[{index}]"
        for key in ("width", "height"):
            side: Any = image.get(key)
            if type(side) not in whole or not 1 <= side <= _SIDE or side != int(side):
                raise wrong(f"{place}.{key}", side, f"a positive number of pixels, at most {_SIDE}")
        size: tuple[int, int] = image["width"], image["height"]
        if size[0] * size[1] > _PIXELS:
            raise wrong(f"{place}.height", image["height"], f"no more than {_PIXELS} pixels in all")
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
        raise wrong("categories", _some(names), f"names among the classes of the data set: {_some(needs.classes)}")
    if needs.ordered and taken != list(needs.classes[: len(taken)]):
        raise wrong(
            "categories",
            _some(taken),
            f"the order of the data set's classes, since labels are numbered in the order of the file, without a gap: "
            f"{_some(needs.classes)}",
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
            odd = [one for one in polygons if _is_odd(one)]
            if odd:
                told.add(f"annotations[{index}].segmentation", odd[0], "not 6 or more numbers, x and y in turn")
                mask = [one for one in polygons if not _is_odd(one)]
            allowed = _mask_fault(mask, *size) if mask or not odd else None
            if allowed:
                fault = "segmentation", allowed
            elif type(mask) is dict and type(mask["counts"]) is str:
                codes.append((index, mask["counts"].encode("ascii"), size[0] * size[1]))
        if fault is not None:
            key, allowed = fault
            raise wrong(f"annotations[{index}].{key}", entry.get(key), allowed)
    for start in range(0, len(codes), 10_000):
        bad = _first_bad_code(codes[start : start + 10_000])
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
        return "category_id", f"an id of categories: {_some(categories)}"
    box = entry.get("bbox")
    # Values so large that a sum of them overflows, and NaN, fail here.
    if type(box) is not list or len(box) != 4 or not {*map(type, box)} <= _NUMBERS or not all(map(_is_moderate, box)):
        return "bbox", "four finite numbers: x, y, width, height"
    area: Any = entry.get("area")
    if type(area) not in _NUMBERS or not _is_moderate(area) or (area < 0 and needs.reader == "other"):
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
    reach = _REACH * max(size)
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


def _is_odd(polygon: Any) -> bool:
    """Whether mmdet leaves out a polygon, as it has too few corners or half of one."""
    numbers = type(polygon) is list and {*map(type, polygon)} <= _NUMBERS
    return numbers and (len(polygon) < 6 or len(polygon) % 2 == 1)


def _mask_fault(mask: Any, width: int, height: int) -> str | None:
    """What is allowed for a segmentation that is wrong; the runs in a text are left to `_first_bad_code`."""
    if type(mask) is dict:
        size, counts = mask.get("size"), mask.get("counts")
        if type(size) is not list or size != [height, width] or {*map(type, size)} != {int}:
            return f"run lengths with the size of the image, [{height}, {width}]"
        if type(counts) is list:
            whole = {*map(type, counts)} == {int} and min(counts) >= 0 and sum(counts) == width * height
            return None if whole else f"run lengths of all {width * height} pixels of the image"
        text = type(counts) is str and _CODE.fullmatch(counts)
        return None if text else "run lengths, as a list of numbers or as COCO's text"
    if type(mask) is not list or not mask:
        return "polygons of 6 or more numbers, or run lengths"
    reach = _REACH * max(width, height)
    least, most = -reach, max(width, height) + reach
    outline = 0.0
    for polygon in mask:
        if type(polygon) is not list or len(polygon) < 6 or len(polygon) % 2 or not {*map(type, polygon)} <= _NUMBERS:
            return "polygons of 6 or more numbers, or a code of run lengths"
        low, high = min(polygon), max(polygon)
        # NaN can hide from the smallest and largest, but not from the sum.
        if not (least <= low and high <= most and _is_finite_sum(polygon)):
            return f"polygons of finite numbers, less than {reach} pixels outside of the image of {width} x {height}"
        outline += len(polygon) * (high - low)
    if outline > _OUTLINE and sum(map(_outline, mask)) > _OUTLINE:
        return f"polygons with outlines of at most {_OUTLINE} pixels"
    return None


def _is_finite_sum(numbers: list[float]) -> bool:
    try:
        return math.isfinite(sum(numbers))
    except OverflowError:  # an integer larger than any float, beside NaN
        return False


def _outline(polygon: list[float]) -> float:
    """Pixels on the sides of a polygon."""
    corners = np.array(polygon, float).reshape(-1, 2)
    return float(np.abs(corners - np.roll(corners, 1, 0)).max(1).sum())


def _first_bad_code(codes: list[tuple[int, bytes, int]]) -> int | None:
    """The first of COCO's compressed masks that does not cover its image; pycocotools trusts them.

    A run is written in groups of five bits, low ones first, a character each: 32 says that more follow, 16 in the last
    that the number is negative. From the fourth on, the difference to the run before the last is written.

    Args:
        codes: Index, text (of characters 0 to o) and pixels of the image.

    Returns:
        The index.
    """
    if not codes:
        return None
    lengths = np.array([len(code) for _, code, _ in codes])
    ends = lengths.cumsum()
    text = np.frombuffer(b"".join(code for _, code, _ in codes), np.uint8).astype(np.int64) - ord("0")
    bad = text[ends - 1] >= 32
    last = text < 32
    last[ends - 1] = True
    stops = np.flatnonzero(last)
    starts = np.append(0, stops[:-1] + 1)
    digits = stops - starts + 1
    place = np.arange(len(text)) - np.repeat(starts, digits)
    owner = np.searchsorted(ends, starts, side="right")
    # Runs of 32 bits have seven digits at most.
    bad[owner[digits > 7]] = True
    values = np.add.reduceat((text & 31) << (5 * np.minimum(place, 6)), starts)
    values -= np.where(text[stops] & 16, 1 << (5 * np.minimum(digits, 7)), 0)
    first = np.searchsorted(owner, np.arange(len(codes)))
    position = np.arange(len(values)) - first[owner]
    # The first run, the other even ones and the odd ones are three rows of sums.
    row = 3 * owner + np.where(position == 0, 0, 1 + position % 2)
    order = np.argsort(row, kind="stable")
    sums = values[order].cumsum()
    begins = np.flatnonzero(np.diff(row[order], prepend=-1))
    before = np.append(0, sums)[begins]
    runs = np.empty_like(values)
    runs[order] = sums - np.repeat(before, np.diff(np.append(begins, len(values))))
    bad[owner[(runs < 0) | (runs > _PIXELS)]] = True
    bad |= np.add.reduceat(runs, first) != [pixels for _, _, pixels in codes]
    return codes[int(bad.argmax())][0] if bad.any() else None


def _stored_size(path: str) -> tuple[int, int]:
    with open_image(path) as image:
        return image.size


def _size(path: str, read: Callable[[str], tuple[int, int]] = image_size) -> tuple[int, int] | None:
    """Width and height of an image as Pillow tells them; None of one that Pillow does not read and OpenCV may.

    Raises:
        UserError: for what is no image to either.
    """
    import cv2

    if Path(path).suffix.lower() not in SUFFIXES:
        return None
    try:
        return read(path)
    except UserError:
        # Of floats, for instance, or of a format that the name does not tell: the run shows whether it can.
        if os.path.isfile(path) and cv2.haveImageReader(path):
            return None
        raise


def check_sizes(field: str, path: Path, images: list[dict[str, Any]], files: list[str | None]) -> None:
    """Compare the sizes that a COCO file tells with those of the images themselves, of a number of them.

    Args:
        field: Of the config, for the message.
        path: The COCO file, for the message.
        images: Its entries, checked.
        files: Of each, where it is, or None.

    Raises:
        UserError: naming the entry, its size and that of the file, or a file that is no image.
    """
    for index in range(0, len(files), max(1, math.ceil(len(files) / _HEADERS_READ))):
        file = files[index]
        if file is None:
            continue
        told = images[index]["width"], images[index]["height"]
        try:
            found = _size(file, _stored_size)
            # As the pixels lie in the file, or as its EXIF data turn them.
            if found is not None and told != found and (told != found[::-1] or told != _size(file)):
                raise UserError(
                    f"width and height {told[0]} x {told[1]}: allowed is {found[0]} x {found[1]}, which {file} has"
                )
        except UserError as error:
            raise UserError(f"{field}: {path}: images[{index}]: {error}") from error


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
            f"{field}: {path}: {len(missing)} of {len(files)} maps of segments are missing: {_some(missing)}"
        )
    step, of_header = _steps_of(files)
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
                f"{field}: {path}: {file}: segments {_some(sorted(bad))}: allowed are those of its annotation, "
                f"{_some(sorted(segments[image['id']]))}, and 0 for none"
            )


def _steps_of(entries: Collection[Any]) -> tuple[int, int]:
    """Each how many of the entries a map is read for its values, and for its header."""
    values, headers = (max(1, math.ceil(len(entries) / most)) for most in (_MAPS_READ, _HEADERS_READ))
    return values, headers


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
            f"{_some(missing)}"
        )
    if not reading.maps:
        return
    classes = len(dataset.metainfo.get("classes") or ())
    first, last = (0, classes) if dataset.reduce_zero_label else (0, classes - 1)
    others = sorted({dataset.ignore_index, *reading.ignored})
    allowed = [*range(first, last + 1), *others]
    step, of_header = _steps_of(entries)
    for index, entry in enumerate(entries):
        path, whole = entry["seg_map_path"], index % step == 0
        # Of a TIFF the header alone does not tell the size, and to decode all of them takes long.
        if not whole and (index % of_header or Path(entry["img_path"]).suffix.lower() in (".tif", ".tiff")):
            continue
        if Path(path).suffix.lower() not in SUFFIXES:
            continue
        expected = _size(entry["img_path"], image_size if reading.upright else _stored_size) if reading.images else None
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
                f"{field}: {path}: labels {_some(bad.tolist())}: allowed are {first} to {last}, and "
                f"{', '.join(map(str, others))} for no label"
            )
