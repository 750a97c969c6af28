"""The ground and the horizon of a scene, painted once and looked up by rays.

Colours are float32 in 0…1, RGB.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import photos
from .scene import Scene

TEXEL = 0.08  # metres, of the finest level
_LEVELS = 7
# Surfaces in the order of their labels: photograph, colour, strength of the grain.
_SURFACES = {
    "grass": ("foliage", (0.30, 0.42, 0.20), 0.16),
    "sidewalk": ("facade", (0.60, 0.57, 0.53), 0.05),
    "drivable": ("haze", (0.33, 0.33, 0.35), 0.04),
    "edge_line": ("haze", (0.86, 0.86, 0.84), 0.04),
    "centre_line": ("haze", (0.88, 0.74, 0.30), 0.04),
    "dash": ("haze", (0.86, 0.86, 0.84), 0.04),
    "zebra": ("haze", (0.84, 0.84, 0.82), 0.06),
}
HAZE = np.array([0.80, 0.84, 0.89], np.float32)  # the colour of far air
_TILE = 128  # texels of the square that repeats, mirrored
_COLUMNS, _ROWS, _TOP = 1024, 96, 0.5  # of the horizon's picture, and the tangent of its upper edge's elevation


@dataclass(frozen=True)
class Ground:
    """A painted ground.

    Attributes:
        packed: Colours of all levels (M,), int32, red in the lowest byte; the rows of a level from y = 0 upwards.
        starts: Index of the first texel of each level.
        shapes: Rows and columns of each level, each level half of the one before.
        horizon: Picture of what is behind the ground (96, 1024, 3), by elevation from 0 upwards and azimuth from -pi.
    """

    packed: np.ndarray
    starts: np.ndarray
    shapes: np.ndarray
    horizon: np.ndarray

    def colour(self, x: np.ndarray, y: np.ndarray, level: np.ndarray) -> np.ndarray:
        """Colours (3, N) at places (N,) in metres, at the level (N,) that fits the distance; beyond it is its edge."""
        size = np.ldexp(np.float32(TEXEL), level)
        rows, columns = self.shapes[level].T
        row = np.clip((y / size).astype(np.int32), 0, rows - 1)
        column = np.clip((x / size).astype(np.int32), 0, columns - 1)
        texels = self.packed[self.starts[level] + row * columns + column]
        return np.stack([texels & 255, (texels >> 8) & 255, (texels >> 16) & 255]).astype(np.float32) / 255

    def sky(self, directions: np.ndarray) -> np.ndarray:
        """Colours (3, N) that rays with directions (3, N) see that go upwards."""
        x, y, z = directions
        row = (z / np.hypot(x, y) * (_ROWS / _TOP)).clip(0, _ROWS - 1).astype(np.int32)
        column = ((np.arctan2(y, x) + np.pi) * (_COLUMNS / (2 * np.pi))).astype(np.int32) % _COLUMNS
        return self.horizon.reshape(-1, 3)[row * _COLUMNS + column].T


def level_of(footprint: np.ndarray) -> np.ndarray:
    """The level (N,) whose texels are as large as pixels (N,) on the ground, in metres."""
    return np.log2(footprint / TEXEL).round().clip(0, _LEVELS - 1).astype(np.int32)


def paint_ground(rng: np.random.Generator, scene: Scene) -> Ground:
    """Paint the ground and the horizon of a scene."""
    from PIL import Image, ImageDraw

    width, height = (int(np.ceil(side / TEXEL)) for side in scene.extent)
    labels = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(labels)
    names = list(_SURFACES)
    for name, polygons in scene.road.surfaces().items():
        for polygon in polygons:
            # The middle of texel i lies at i + 0.5, and at i for the drawing.
            draw.polygon([tuple(point) for point in polygon / TEXEL - 0.5], fill=names.index(name))
    tiles = np.stack(
        [
            np.array(colour) * rng.uniform(0.92, 1.08) + strength * photos.grain(rng, photo, _TILE)[..., None]
            for photo, colour, strength in _SURFACES.values()
        ]
    )
    tiles = np.concatenate([tiles, tiles[:, ::-1]], 1)
    tiles = np.concatenate([tiles, tiles[:, :, ::-1]], 2)
    label = np.asarray(labels)
    index = label.astype(np.int32) * (2 * _TILE) ** 2
    index += (np.arange(height, dtype=np.int32) % (2 * _TILE) * (2 * _TILE))[:, None]
    index += np.arange(width, dtype=np.int32) % (2 * _TILE)
    texels = np.full((*tiles.shape[:3], 4), 255, np.uint8)
    texels[..., :3] = (255 * tiles.clip(0, 1)).round()
    # Not as RGBA, of which Pillow would weigh the colours.
    levels = [Image.frombytes("RGBX", (width, height), texels.view("<i4").ravel()[index].tobytes())]
    while len(levels) < _LEVELS:
        levels.append(levels[-1].reduce(2))
    packed = [np.asarray(level).view("<i4")[..., 0] for level in levels]
    sizes = np.array([level.size for level in packed])
    shapes = np.array([level.shape for level in packed], np.int32)
    starts = np.concatenate([[0], sizes.cumsum()[:-1]]).astype(np.int32)
    return Ground(np.concatenate([level.ravel() for level in packed]), starts, shapes, _horizon(rng))


def _horizon(rng: np.random.Generator) -> np.ndarray:
    """A sky over rows of trees and houses."""
    rise = np.linspace(0, 1, _ROWS)[:, None, None] ** 0.6
    picture = np.broadcast_to((1 - rise) * HAZE + rise * np.array([0.45, 0.62, 0.86]), (_ROWS, _COLUMNS, 3)).copy()
    row, column = np.arange(_ROWS)[:, None], np.arange(_COLUMNS)
    # Trees: a course of waves that closes after a turn.
    waves = [
        rng.uniform(0.3, 1) * np.sin(count * column * 2 * np.pi / _COLUMNS + rng.uniform(0, 2 * np.pi))
        for count in (3, 7, 17, 41, 90)
    ]
    trees = row < 9 + 3.5 * sum(waves)
    foliage = np.stack([photos.patch(rng, "foliage", _ROWS) for _ in range(-(-_COLUMNS // _ROWS))])
    strip = np.concatenate(list(foliage), 1)[::-1, :_COLUMNS]
    picture[trees] = (0.75 * strip + 0.25 * HAZE)[trees]
    for _ in range(int(rng.integers(10, 22))):
        wide, high = int(rng.integers(14, 50)), int(rng.integers(8, 26))
        left = int(rng.integers(_COLUMNS - wide))
        wall = photos.patch(rng, "facade", 64)[::-1][:high, :wide]
        picture[:high, left : left + wide] = 0.7 * wall + 0.3 * HAZE
    return picture.astype(np.float32)
