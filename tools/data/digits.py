"""The data set of the demo: handwritten digits set into photographs, in COCO's format.

Everything in it is real: the digits are the 1797 scans of 8×8 pixels behind `sklearn.datasets.load_digits`, the
backgrounds are cut from the two photographs of `sklearn.datasets.load_sample_images`. Both come with scikit-learn,
so nothing is downloaded.

The two splits share nothing: every fifth scan of a class is held out for `val`, and `val` backgrounds are cut from the
right third of each photograph, `train` backgrounds from the left two thirds. Each image records its photograph and
the rectangle cut from it, each annotation its scan, so the annotation files alone prove this.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..common.progress import bar
from .folders import Kind, build_folder, folder_path

CLASSES = tuple(str(digit) for digit in range(10))
SPLITS = ("train", "val")
STAMP = "digits.json"

_FORMAT = 2  # raised whenever the same parameters would give other files
_MOST_DIGITS = 8
_FEWEST_DIGITS = 3
_DIGIT_SIDE = (30, 72)  # of the enlarged scan, in pixels of a 160-pixel image
_TRAIN_WIDTH = 2 / 3
_CONTRAST = 70.0  # least difference in brightness, of 255, between a digit and what lies under it
_PLACES_TRIED = 50
_MOST_IMAGES = 10**6  # of a split: names have six figures


@dataclass(frozen=True)
class Digits:
    """Paths of a built data set.

    Attributes:
        root: Folder that holds all of it.
        annotations: COCO instance file of each split.
        images: Folder of the images of each split.
        seg_maps: Folder of the segmentation maps of each split: 0 is photograph, 1 is digit.
    """

    root: Path
    annotations: dict[str, Path]
    images: dict[str, Path]
    seg_maps: dict[str, Path]


def build(
    root: str | os.PathLike[str], train_images: int = 1200, val_images: int = 200, size: int = 160, seed: int = 0
) -> Digits:
    """Build the data set below `root`, or return at once if a complete one with these parameters is there.

    The files depend on the parameters alone. They are written to a folder beside `root` that takes its place when it
    is complete. A folder that was built here, with other parameters or with files missing since, is replaced; one in
    which a file has been changed or added is not.

    Args:
        root: Folder to build.
        train_images: Number of images for training.
        val_images: Number of held-out images.
        size: Height and width of an image, in pixels.
        seed: Seed of everything drawn at random.

    Returns:
        The paths of the data set.

    Raises:
        ValueError: If a number of images is not positive, `size` is under 64 or `seed` is negative.
        UserError: If `root` is something else than a folder built here, naming what is in it, or if another process
            is building it.
    """
    for name, value, least in (("train_images", train_images, 1), ("val_images", val_images, 1), ("size", size, 64)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
        if value > _MOST_IMAGES:
            raise ValueError(f"{name} must be at most {_MOST_IMAGES}, got {value}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    root = folder_path(root)
    counts = {"train": train_images, "val": val_images}
    parameters = {"format": _FORMAT, "images": counts, "size": size, "seed": seed}

    def write(folder: Path) -> None:
        for split in SPLITS:
            _write_split(folder, split, counts[split], size, seed)

    build_folder(_KIND, root, parameters, write)
    return Digits(
        root=root,
        annotations={split: root / "annotations" / f"instances_{split}.json" for split in SPLITS},
        images={split: root / split for split in SPLITS},
        seg_maps={split: root / "seg_maps" / split for split in SPLITS},
    )


def split_scans() -> dict[str, list[int]]:
    """Return the scans of each split, as indices into `sklearn.datasets.load_digits`."""
    from sklearn.datasets import load_digits

    labels = load_digits().target
    val = {int(index) for label in range(len(CLASSES)) for index in np.flatnonzero(labels == label)[::5]}
    return {"train": [index for index in range(len(labels)) if index not in val], "val": sorted(val)}


def split_region(split: str, height: int, width: int) -> tuple[int, int, int, int]:
    """Return the part of a photograph that belongs to a split, as x, y, width and height in pixels."""
    border = int(width * _TRAIN_WIDTH)
    return (0, 0, border, height) if split == "train" else (border, 0, width - border, height)


def _parts(stamp: dict[str, Any]) -> Callable[[str], bool] | None:
    """Which files a folder with this stamp holds, None if it is none of ours."""
    if set(stamp) != {"format", "images", "size", "seed"}:
        return None
    counts = stamp["images"]
    if not isinstance(counts, dict) or set(counts) != set(SPLITS):
        return None
    if any(not isinstance(count, int) or not 0 < count <= _MOST_IMAGES for count in counts.values()):
        return None
    names = {f"annotations/instances_{split}.json" for split in SPLITS}
    for split, count in counts.items():
        names |= {f"{folder}/{number:06d}.png" for folder in (split, f"seg_maps/{split}") for number in range(count)}
    return names.__contains__


_KIND = Kind("the demo's data set", STAMP, _parts)


def _write_split(root: Path, split: str, images: int, size: int, seed: int) -> None:
    import cv2
    from pycocotools import mask as rle
    from sklearn.datasets import load_digits, load_sample_images

    data = load_digits()
    photos = load_sample_images()
    scans = split_scans()[split]
    for folder in (root / split, root / "seg_maps" / split, root / "annotations"):
        folder.mkdir(parents=True, exist_ok=True)

    coco: dict[str, Any] = {
        "info": {"description": "scikit-learn's handwritten digits in scikit-learn's photographs"},
        "categories": [{"id": index + 1, "name": name} for index, name in enumerate(CLASSES)],
        "images": [],
        "annotations": [],
    }
    for number in bar(range(images), title=f"data set, {split}"):
        # One stream per image, so that an image does not depend on how many stand before it.
        rng = np.random.default_rng((seed, SPLITS.index(split), number))
        photo = int(rng.integers(len(photos.images)))
        image, crop = _cut_background(rng, photos.images[photo], split, size)
        ink = np.zeros((size, size), np.uint8)
        name = f"{number:06d}.png"
        for scan, mask, box in _set_digits(rng, image, data.images, scans):
            ink |= mask
            encoded = rle.encode(np.asfortranarray(mask))
            coco["annotations"].append(
                {
                    "id": len(coco["annotations"]) + 1,
                    "image_id": number + 1,
                    "category_id": int(data.target[scan]) + 1,
                    "bbox": box,
                    "area": int(mask.sum()),
                    "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")},
                    "iscrowd": 0,
                    "scan": scan,
                }
            )
        coco["images"].append(
            {
                "id": number + 1,
                "file_name": name,
                "height": size,
                "width": size,
                "photo": Path(photos.filenames[photo]).name,
                "crop": crop,
            }
        )
        for path, pixels in ((root / split / name, image[..., ::-1]), (root / "seg_maps" / split / name, ink)):
            # OpenCV itself says nothing where the disk is full.
            path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(coco))


def _cut_background(rng: np.random.Generator, photo: np.ndarray, split: str, size: int) -> tuple[np.ndarray, list[int]]:
    """Cut a random square from the split's part of a photograph.

    Returns:
        The square, resized to (size, size, 3) uint8 RGB and mirrored at random, and its x, y, width and height in the
        photograph.
    """
    import cv2

    # Both splits cut squares of the same sizes, or held-out images would show the photographs at another scale.
    largest = min(photo.shape[0], split_region("val", *photo.shape[:2])[2])
    side = int(rng.uniform(0.75, 1.0) * largest)
    left, top, width, height = split_region(split, *photo.shape[:2])
    x = left + int(rng.integers(width - side + 1))
    y = top + int(rng.integers(height - side + 1))
    image = cv2.resize(photo[y : y + side, x : x + side], (size, size), interpolation=cv2.INTER_AREA)
    if rng.random() < 0.5:
        image = np.ascontiguousarray(image[:, ::-1])
    return image, [x, y, side, side]


def _set_digits(
    rng: np.random.Generator, image: np.ndarray, scans: np.ndarray, allowed: list[int]
) -> list[tuple[int, np.ndarray, list[int]]]:
    """Set digits into `image`, in place, at random sizes, colours and places whose boxes do not overlap.

    Returns:
        Scan, ink mask of the whole image (H, W) uint8, and box (x, y, width, height) of each digit.
    """
    size = image.shape[0]
    placed: list[tuple[int, np.ndarray, list[int]]] = []
    for _ in range(int(rng.integers(_FEWEST_DIGITS, _MOST_DIGITS + 1))):
        scan = int(rng.choice(allowed))
        side = round(rng.uniform(*_DIGIT_SIDE) * size / 160)
        alpha = _enlarge(scans[scan], side)
        height, width = alpha.shape
        for _ in range(_PLACES_TRIED):
            x, y = int(rng.integers(size - width + 1)), int(rng.integers(size - height + 1))
            if not any(
                x < box[0] + box[2] and box[0] < x + width and y < box[1] + box[3] and box[1] < y + height
                for _, _, box in placed
            ):
                break
        else:
            continue  # a full image holds fewer digits than were drawn
        under = image[y : y + height, x : x + width]
        colour = _contrasting_colour(rng, under)
        under[:] = np.rint(under + alpha[..., None] * (colour - under))
        mask = np.zeros((size, size), np.uint8)
        mask[y : y + height, x : x + width] = alpha >= 0.5
        placed.append((scan, mask, [x, y, width, height]))
    return placed


def _enlarge(scan: np.ndarray, side: int) -> np.ndarray:
    """Return the opacity of a scan's ink at `side` pixels, cut to the pixels that are at least half opaque."""
    import cv2

    ink = cv2.resize(scan.astype(np.float32) / 16, (side, side), interpolation=cv2.INTER_CUBIC)
    alpha = np.clip((ink - 0.2) / 0.4, 0, 1)
    rows, columns = np.flatnonzero((alpha >= 0.5).any(1)), np.flatnonzero((alpha >= 0.5).any(0))
    return alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _contrasting_colour(rng: np.random.Generator, under: np.ndarray) -> np.ndarray:
    """Draw an RGB colour whose brightness differs from the mean of `under`, (H, W, 3), by `_CONTRAST` or more."""
    weights = np.array([0.299, 0.587, 0.114])
    brightness = under.reshape(-1, 3).mean(0) @ weights
    while True:
        colour = rng.uniform(0, 255, 3)
        if abs(colour @ weights - brightness) >= _CONTRAST:
            return colour
