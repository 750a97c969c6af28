"""Images with classes, in a split to train on and one held out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import UserError
from .images import SUFFIXES, read_image

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Data:
    """Images with classes, in two splits.

    Attributes:
        name: What is told of it.
        classes: Names of the classes.
        items: Of each split, `train` and `val`: pairs of what `read` takes and a class.
        read: Gives an RGB image.
        crop: Whether a model's transform may cut off the border, as most do.
    """

    name: str
    classes: tuple[str, ...]
    items: dict[str, list[tuple[Any, int]]]
    read: Callable[[Any], Image.Image]
    crop: bool


def digits() -> Data:
    """scikit-learn's digits.

    Raises:
        UserError: if scikit-learn is not installed.
    """
    if find_spec("sklearn") is None:
        raise UserError("--digits needs scikit-learn: pip install scikit-learn")
    from sklearn.datasets import load_digits

    from .digits import CLASSES, split_scans

    scans = load_digits()
    items = {
        split: [(scans.images[index], int(scans.target[index])) for index in part]
        for split, part in split_scans().items()
    }
    return Data("scikit-learn's digits", CLASSES, items, _read_scan, crop=False)


def _read_scan(scan: Any) -> Image.Image:
    """A scan (8, 8) with values 0 to 16 as a picture."""
    from PIL import Image

    return Image.fromarray((scan * (255 / 16)).astype("uint8")).convert("RGB")


def image_folder(root: str | os.PathLike[str], val_share: float = 0.2) -> Data:
    """Images in folders by class.

    Args:
        root: With folders `train` and `val` (or `test`) of classes, or with the classes themselves.
        val_share: Of each class, held out where there is no folder for it; drawn with a fixed seed.

    Raises:
        UserError: if there is no such folder, a split has other classes than the other, or a class too few images.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"--data: no folder {str(root)!r}")
    train = root / "train"
    val = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
    found = _by_class(train) if train.is_dir() else {}
    if not found:
        # The classes themselves, one of which may be called train.
        train, val, found = root, None, _by_class(root)
    if len(found) < 2:
        raise UserError(f"--data: {str(train)!r} has {len(found)} folders with images, and two classes are needed")
    classes = tuple(found)
    if val is not None:
        held_out = _by_class(val)
        if held_out.keys() != found.keys():
            differing = ", ".join(sorted(held_out.keys() ^ found.keys())[:5])
            raise UserError(f"--data: {train.name}/ and {val.name}/ have other classes: {differing}")
    else:
        found, held_out = _split(found, val_share)
    items = {
        name: [(path, label) for label, one in enumerate(classes) for path in part[one]]
        for name, part in (("train", found), ("val", held_out))
    }
    return Data(str(root), classes, items, read_image, crop=True)


def _by_class(folder: Path) -> dict[str, list[Path]]:
    """The images of each class that has some, both sorted."""
    found = {}
    for one in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        images = sorted(path for path in one.rglob("*") if path.suffix.lower() in SUFFIXES)
        if images:
            found[one.name] = images
    return found


def _split(found: dict[str, list[Path]], share: float) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """The same share of each class, one image at least, held out."""
    import torch

    if not 0 < share < 1:
        raise UserError(f"--val-share must be between 0 and 1, got {share}")
    train, val = {}, {}
    generator = torch.Generator().manual_seed(0)
    for name, paths in found.items():
        if len(paths) < 2:
            raise UserError(f"--data: class {name!r} has one image, and one of each class is held out")
        order = torch.randperm(len(paths), generator=generator).tolist()
        count = min(max(round(share * len(paths)), 1), len(paths) - 1)
        val[name], train[name] = ([paths[i] for i in sorted(part)] for part in (order[:count], order[count:]))
    return train, val
