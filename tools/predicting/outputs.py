"""The files of predictions: none over an input, and nothing in the way but what was written before."""

from __future__ import annotations

import itertools
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.outputs import identity, standing

# Stands in every picture that is written, so that it may be replaced by its successor.
STAMP = "attnzoo predict"
# File systems take names of 255 bytes; of these, endings and temporary names have their share.
_STEM_BYTES = 255 - 55


class Outputs:
    """The folder of a command's outputs.

    Args:
        folder: Where all goes; it need not be there yet.
        inputs: Files that are never replaced, by whatever name or link.
        overwrite: Whether others that are in the way may be.

    Raises:
        UserError: if nothing can be written there.
    """

    def __init__(self, folder: str | Path, inputs: Iterable[str | Path], overwrite: bool = False) -> None:
        self.folder = Path(folder)
        self.overwrite = overwrite
        self._inputs = {identity(path): path for path in inputs}
        self._taken: set[str] = set()
        there = standing(self.folder)
        if not os.path.isdir(there):
            raise UserError(f"{self.folder}: cannot be a folder: {there} is none")
        if not os.access(there, os.W_OK | os.X_OK):
            raise UserError(f"{self.folder}: nothing can be written into {there}: permission denied")

    def stem(self, wanted: str) -> str:
        """`wanted` to name files by, numbered where it is taken, as images in several folders may share theirs.

        A long one is shortened, so that endings of up to 20 bytes have room.
        """
        for number in itertools.count(1):
            extra = "" if number == 1 else f"-{number}"
            stem = _shortened(wanted, _STEM_BYTES - len(extra)) + extra
            # Some file systems do not tell capitals.
            if stem.casefold() not in self._taken:
                break
        self._taken.add(stem.casefold())
        return stem

    def check(self, names: Iterable[str]) -> None:
        """Check that files may be written under these names.

        Raises:
            UserError: naming the first that is an input, a folder, or something that this command has not written.
        """
        for path in (self.folder / name for name in names):
            if not os.path.lexists(path):
                continue
            source = self._inputs.get(identity(path))
            if source is not None:
                raise UserError(f"{path}: would be written over {source}, which this run reads: name another --out-dir")
            if os.path.isdir(path):
                raise UserError(f"{path}: a folder is in the way: name another --out-dir")
            if not self.overwrite and not _ours(path):
                raise UserError(
                    f"{path}: in the way, and not written by attnzoo predict: name another --out-dir, or replace it "
                    "with --overwrite"
                )


def _shortened(text: str, size: int) -> str:
    """The beginning of `text` that has at most `size` bytes as a file name, whole letters only."""
    while len(os.fsencode(text)) > size:
        text = text[:-1]
    return text


def _ours(path: Path) -> bool:
    """Whether an output of this command stands there: a picture with its stamp, or its JSON file."""
    from PIL import Image

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            return content.keys() == {"classes", "images"} and all("picture" in image for image in content["images"])
        with Image.open(path, formats=["JPEG", "PNG"]) as image:
            return STAMP in (image.info.get("Software"), image.info.get("comment", b"").decode("utf-8", "replace"))
    except Exception:  # whatever a damaged or foreign file raises, it is not one of these
        return False


def png_stamp() -> Any:
    """The stamp for `pnginfo` in Pillow's `save`."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Software", STAMP)
    return info
