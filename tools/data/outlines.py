"""Outlines of objects in COCO files: polygons and run lengths."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

# What OpenCV reads at most of an image, in pixels.
PIXELS = 2**30
# Boxes and polygons may stick out of their image, by so many times its longer side.
REACH = 10
# pycocotools holds every pixel of an outline in memory, forty bytes each.
_OUTLINE = 10_000_000
NUMBERS = {int, float}
_CODE = re.compile(r"[0-o]+")


def is_odd(polygon: Any) -> bool:
    """Whether mmdet leaves out a polygon, as it has too few corners or half of one."""
    numbers = type(polygon) is list and {*map(type, polygon)} <= NUMBERS
    return numbers and (len(polygon) < 6 or len(polygon) % 2 == 1)


def mask_fault(mask: Any, width: int, height: int) -> str | None:
    """What is allowed for a segmentation that is wrong; the runs in a text are left to `first_bad_code`."""
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
    reach = REACH * max(width, height)
    least, most = -reach, max(width, height) + reach
    outline = 0.0
    for polygon in mask:
        if type(polygon) is not list or len(polygon) < 6 or len(polygon) % 2 or not {*map(type, polygon)} <= NUMBERS:
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


def first_bad_code(codes: list[tuple[int, bytes, int]]) -> int | None:
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
    bad[owner[(runs < 0) | (runs > PIXELS)]] = True
    bad |= np.add.reduceat(runs, first) != [pixels for _, _, pixels in codes]
    return codes[int(bad.argmax())][0] if bad.any() else None
