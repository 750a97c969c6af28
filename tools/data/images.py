"""Image files as the commands read them: one library, a closed list of formats, each file opened once."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import UserError
from ..common.messages import one_line

if TYPE_CHECKING:
    from PIL import Image

# What is looked for in folders, and the formats behind it. Others stay shut whatever a file is called: Pillow starts
# Ghostscript for EPS.
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM")
_ORIENTATION = 0x0112
# The longest side, in pixels, that commands let a model compute with: an image of that size takes 3 GiB by itself.
MAX_SIDE = 16_384


def find_images(paths: Sequence[str | Path], read: Callable[[Path], Any] | None = None) -> list[Path]:
    """The image files among `paths` and in the folders among them, each of which can be read to its end.

    Args:
        paths: Files and folders.
        read: Reads a file and refuses one that will not do; `read_image` by default.

    Raises:
        UserError: naming the first that is missing or no image, or if there is none at all.
    """
    images: list[Path] = []
    for path in map(Path, paths):
        if os.path.isdir(path):
            images += sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        else:
            images.append(path)
    if not images:
        raise UserError(f"no images in {', '.join(map(str, paths))} (looked for {', '.join(SUFFIXES)})")
    for image in images:
        (read or read_image)(image)
    return images


def read_image(path: str | os.PathLike[str], convert: Callable[[Any], Any] | None = None) -> Any:
    """Read an image: the first frame, turned as its EXIF orientation says.

    Args:
        path: A regular file in one of `FORMATS`.
        convert: What to make of it, `to_rgb` by default. It is called before a pixel is decoded; `decoded` gives it the
            whole image, upright.

    Returns:
        What `convert` returns.

    Raises:
        UserError: naming the file, if it is missing, no regular file, or no image that can be read to its end.
    """
    with open_image(path) as image:
        return (convert or to_rgb)(image)


@contextmanager
def open_image(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """Open an image; whatever its decoder raises inside the block says that the file cannot be read.

    Yields:
        The image, of which the header has been read.

    Raises:
        UserError: as `read_image`.
    """
    from PIL import Image

    try:
        # Opening a pipe would wait for its writer, and a device can do anything.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UserError(f"{path}: not a regular file, so not an image that can be read")
    except (OSError, ValueError) as error:
        if os.path.lexists(path):
            raise UserError(f"{path}: not an image that can be read ({one_line(error, 160)})") from error
        raise UserError(f"no image {str(path)!r}") from error
    try:
        # Pillow warns of what is refused below, and of large images and odd metadata that are read all the same. Of a
        # path it would map a TIFF into memory, and get turned ones wrong.
        with warnings.catch_warnings(), open(path, "rb") as file:
            warnings.simplefilter("ignore")
            with Image.open(file, formats=FORMATS) as image:
                yield image
    except UserError:
        raise
    except Exception as error:  # each decoder fails in its own way on a damaged file
        raise UserError(f"{path}: not an image that can be read ({one_line(error, 160)})") from error


def decoded(image: Image.Image) -> Image.Image:
    """The whole of an open image, turned upright."""
    from PIL.Image import Transpose

    image.load()
    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    turn = turns.get(_orientation(image) or 1)
    return image if turn is None else image.transpose(turn)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height of an image as `read_image` gives it, from its header where that tells.

    Raises:
        UserError: as `read_image`, but for damage behind the header.
    """
    with open_image(path) as image:
        if image.format == "TIFF":  # of which the header alone does not tell
            return decoded(image).size
        return image.size[::-1] if _orientation(image) in (5, 6, 7, 8) else image.size


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation; None where there is none, or none that can be read."""
    try:
        found = image.getexif().get(_ORIENTATION)
        return found if isinstance(found, int) else None
    except Exception:  # the pixels of an image with broken EXIF data are whole
        return None


def to_rgb(image: Image.Image) -> Image.Image:
    """Decode an open image to RGB, 8 bits a channel, as OpenCV reads it in colour.

    Transparency is left out, of 16 bits the upper 8 are taken. Unlike OpenCV, the orientation is heeded in WebP too,
    and a TIFF's colours are not multiplied by its transparency.

    Raises:
        ValueError: for 32 bits a channel.
    """
    import numpy as np
    from PIL import Image

    kind, seen = image.format, decoded(image)
    if seen.mode.startswith("I;16") or (seen.mode == "I" and kind in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(seen, np.int32).clip(0, 0xFFFF) >> 8).astype(np.uint8)).convert("RGB")
    if seen.mode[0] in "IF":
        raise ValueError(f"32 bits a channel ({seen.mode}): convert it to 8 bits first")
    if seen.mode == "CMYK" and kind == "JPEG":
        # OpenCV's rounding, which differs from Pillow's by one.
        inks = np.asarray(seen).astype(np.int32)
        light = 255 - inks[..., 3:]
        return Image.fromarray((light - (inks[..., :3] * light >> 8)).astype(np.uint8))
    return seen.convert("RGB")
