"""Sizes of images, as files tell them and as the images have them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from .images import SUFFIXES, image_size, open_image

# A label map is read for its values; of more maps these are spread over the data set. So are images whose headers are.
_MAPS_READ, _HEADERS_READ = 64, 1000


def stored_size(path: str) -> tuple[int, int]:
    """Width and height of an image as its pixels lie in the file."""
    with open_image(path) as image:
        return image.size


def seen_size(path: str, read: Callable[[str], tuple[int, int]] = image_size) -> tuple[int, int] | None:
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
    for index in range(0, len(files), steps_of(files)[1]):
        file = files[index]
        if file is None:
            continue
        told = images[index]["width"], images[index]["height"]
        try:
            found = seen_size(file, stored_size)
            # As the pixels lie in the file, or as its EXIF data turn them.
            if found is not None and told != found and (told != found[::-1] or told != seen_size(file)):
                raise UserError(
                    f"width and height {told[0]} x {told[1]}: allowed is {found[0]} x {found[1]}, which {file} has"
                )
        except UserError as error:
            raise UserError(f"{field}: {path}: images[{index}]: {error}") from error


def steps_of(entries: Collection[Any]) -> tuple[int, int]:
    """Each how many of the entries a map is read for its values, and for its header."""
    values, headers = (max(1, math.ceil(len(entries) / most)) for most in (_MAPS_READ, _HEADERS_READ))
    return values, headers
