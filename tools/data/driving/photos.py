"""Patches of scikit-learn's two photographs, which come with the package, as textures.

A colour is three numbers in 0…1, RGB.
"""

from __future__ import annotations

from functools import cache

import numpy as np

# Where in which photograph (0 the pagoda, 1 the flower): top, bottom, left and right, in pixels.
_REGIONS = {
    "foliage": (0, 300, 420, 340, 560),
    "facade": (0, 185, 320, 90, 330),
    "tiles": (0, 250, 285, 190, 310),
    "haze": (0, 225, 300, 400, 560),
    "petals": (1, 100, 350, 185, 435),
    "leaves": (1, 60, 330, 0, 140),
}


@cache
def _photos() -> list[np.ndarray]:
    from sklearn.datasets import load_sample_images

    return [image.astype(np.float32) / 255 for image in load_sample_images().images]


@cache
def _region(name: str) -> np.ndarray:
    photo, top, bottom, left, right = _REGIONS[name]
    return _photos()[photo][top:bottom, left:right]


@cache
def _grey(name: str) -> np.ndarray:
    return _region(name).mean(-1)


def _cut(rng: np.random.Generator, source: np.ndarray, size: int) -> np.ndarray:
    side = min(size, *source.shape[:2])
    top, left = (int(rng.integers(length - side + 1)) for length in source.shape[:2])
    piece = source[top : top + side, left : left + side]
    if side < size:
        # A smaller region is repeated, mirrored, so that no seam shows.
        index = np.arange(size) % (2 * side)
        index = np.where(index < side, index, 2 * side - 1 - index)
        piece = piece[index][:, index]
    return piece[:, ::-1] if rng.random() < 0.5 else piece


def patch(rng: np.random.Generator, name: str, size: int) -> np.ndarray:
    """A square of `size` pixels (size, size, 3), float32, cut at a random place of a region, mirrored at random."""
    return _cut(rng, _region(name), size)


def grain(rng: np.random.Generator, name: str, size: int) -> np.ndarray:
    """The brightness of a patch (size, size), with mean 0 and within -1…1."""
    grey = _cut(rng, _grey(name), size)
    grey = grey - grey.mean()
    return np.clip(grey / (2.5 * np.sqrt((grey * grey).mean()) + 1e-6), -1, 1)
