"""What objects look like: their sizes, the boxes that they are made of, and the textures on these.

The frame of an object has its origin in the middle of its box, x ahead, y to the left, z up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import photos

# Faces of a box, in the order of the textures.
FRONT, BACK, LEFT, RIGHT, TOP, BOTTOM = range(6)
_SIDE = 32  # texels
# What is seen is smaller than the annotated box by this on each side, in metres, so that LiDAR points on it are inside.
_MARGIN = 0.01
_LIFT = 0.02  # metres from the ground to a box, so that no point on the ground is inside

_DARK, _GLASS, _WHITE = (0.07, 0.07, 0.08), (0.16, 0.22, 0.28), (0.95, 0.95, 0.9)
_RED, _GREY = (0.75, 0.06, 0.05), (0.55, 0.55, 0.56)


@dataclass(frozen=True)
class Shape:
    """The look of one object.

    Attributes:
        size: Width, length and height of its box, in metres.
        parts: Lower and upper corners (P, 2, 3) of its boxes in its frame, float32, in metres.
        textures: Colours of its parts' faces (P, 6, S, S, 3), float32 in 0…1, for S of 32 and its halves. Of a front
            or back, column and row run along y and z; of a side along x and z; of a top or bottom along x and y.
    """

    size: tuple[float, float, float]
    parts: np.ndarray
    textures: tuple[np.ndarray, ...]

    @property
    def middle(self) -> float:
        """How high the middle of the box is above the ground, in metres."""
        return self.size[2] / 2 + _LIFT


# A part: begin and end of length, width and height, as shares of the box from its back, right and bottom; its texture.
_Part = tuple[tuple[float, float], tuple[float, float], tuple[float, float], np.ndarray]


def _plain(rng: np.random.Generator, colour: tuple[float, ...], photo: str = "petals", strength: float = 0.12):
    """One texture (6, 32, 32, 3) of a colour with the grain of a photograph on all faces."""
    faces = np.stack([photos.grain(rng, photo, _SIDE) for _ in range(6)])
    return (np.array(colour) + strength * faces[..., None]).astype(np.float32)


def _fill(texture: np.ndarray, faces, columns: tuple[float, float], rows: tuple[float, float], colour) -> None:
    """Paint a rectangle, told in shares of the face, onto some faces; the grain stays a little."""
    (left, right), (low, high) = ([round(_SIDE * share) for share in shares] for shares in (columns, rows))
    for face in np.atleast_1d(faces):
        part = texture[face, low:high, left:right]
        grey = part.mean(-1, keepdims=True)
        part[:] = np.array(colour) + 0.5 * (grey - grey.mean())


def _wheels(texture: np.ndarray, places: tuple[float, ...], width: float, height: float) -> None:
    for place in places:
        _fill(texture, (LEFT, RIGHT), (place - width / 2, place + width / 2), (0.0, height), _DARK)
        _fill(texture, (LEFT, RIGHT), (place - width / 6, place + width / 6), (height / 3, 2 * height / 3), _GREY)


def _lights(texture: np.ndarray, low: float, high: float) -> None:
    """White lights ahead, red ones behind: what tells the front."""
    for columns in ((0.04, 0.26), (0.74, 0.96)):
        _fill(texture, FRONT, columns, (low, high), (1.0, 0.98, 0.82))
        _fill(texture, BACK, columns, (low, high), _RED)


def _colour(rng: np.random.Generator, *colours: tuple[float, float, float]) -> tuple[float, ...]:
    """One of some colours, varied."""
    return tuple(np.clip(np.array(colours[rng.integers(len(colours))]) + rng.uniform(-0.06, 0.06, 3), 0.03, 0.97))


def _car(rng: np.random.Generator) -> list[_Part]:
    paint = _colour(
        rng, (0.75, 0.75, 0.77), (0.12, 0.13, 0.15), (0.10, 0.22, 0.55), (0.60, 0.08, 0.08), (0.88, 0.88, 0.86)
    )
    body, cabin = _plain(rng, paint, strength=0.06), _plain(rng, paint, strength=0.06)
    _wheels(body, (0.2, 0.8), 0.16, 0.55)
    _fill(body, FRONT, (0.3, 0.7), (0.3, 0.65), _DARK)
    _fill(body, (FRONT, BACK), (0.0, 1.0), (0.0, 0.2), _DARK)
    _lights(body, 0.5, 0.8)
    _fill(cabin, (FRONT, BACK), (0.08, 0.92), (0.1, 0.85), _GLASS)
    _fill(cabin, (LEFT, RIGHT), (0.06, 0.48), (0.15, 0.85), _GLASS)
    _fill(cabin, (LEFT, RIGHT), (0.54, 0.94), (0.15, 0.85), _GLASS)
    return [((0, 1), (0, 1), (0, 0.58), body), ((0.1, 0.7), (0.06, 0.94), (0.58, 1), cabin)]


def _truck(rng: np.random.Generator) -> list[_Part]:
    cab = _plain(rng, _colour(rng, (0.85, 0.85, 0.85), (0.75, 0.35, 0.08), (0.12, 0.35, 0.3)), strength=0.06)
    cargo = 0.45 * _plain(rng, _colour(rng, (0.75, 0.68, 0.5), (0.5, 0.55, 0.62))) + 0.55 * np.stack(
        [photos.patch(rng, "facade", _SIDE)[::-1] for _ in range(6)]
    )
    chassis = _plain(rng, (0.14, 0.14, 0.15))
    _fill(cab, FRONT, (0.06, 0.94), (0.5, 0.92), _GLASS)
    _fill(cab, (LEFT, RIGHT), (0.3, 0.9), (0.5, 0.9), _GLASS)
    _fill(cab, FRONT, (0.25, 0.75), (0.12, 0.4), _DARK)
    _lights(cab, 0.1, 0.3)
    _wheels(chassis, (0.1, 0.25, 0.85), 0.12, 0.95)
    _lights(chassis, 0.3, 0.9)
    return [
        ((0, 0.98), (0.03, 0.97), (0, 0.28), chassis),
        ((0, 0.7), (0, 1), (0.28, 1), cargo.astype(np.float32)),
        ((0.74, 1), (0.02, 0.98), (0.12, 0.82), cab),
    ]


def _bus(rng: np.random.Generator) -> list[_Part]:
    body = _plain(rng, _colour(rng, (0.85, 0.65, 0.08), (0.15, 0.5, 0.3), (0.2, 0.45, 0.75)), strength=0.06)
    _fill(body, (LEFT, RIGHT), (0.0, 1.0), (0.24, 0.3), _WHITE)
    for i in range(7):
        _fill(body, (LEFT, RIGHT), (0.03 + 0.135 * i, 0.135 + 0.135 * i), (0.46, 0.82), _GLASS)
    _fill(body, FRONT, (0.05, 0.95), (0.35, 0.82), _GLASS)
    _fill(body, FRONT, (0.2, 0.8), (0.86, 0.96), (0.9, 0.6, 0.1))
    _fill(body, BACK, (0.15, 0.85), (0.55, 0.82), _GLASS)
    _lights(body, 0.14, 0.26)
    _wheels(body, (0.22, 0.78), 0.09, 0.28)
    return [((0, 1), (0, 1), (0, 1), body)]


def _pedestrian(rng: np.random.Generator) -> list[_Part]:
    skin = _colour(rng, (0.8, 0.6, 0.48), (0.5, 0.33, 0.22))
    legs = _plain(rng, _colour(rng, (0.12, 0.14, 0.25), (0.2, 0.18, 0.16)))
    torso = _plain(
        rng, _colour(rng, (0.8, 0.2, 0.3), (0.9, 0.85, 0.3), (0.3, 0.65, 0.35), (0.75, 0.45, 0.8)), strength=0.2
    )
    head = _plain(rng, skin, strength=0.05)
    _fill(head, (LEFT, RIGHT), (0.0, 0.55), (0.35, 1.0), _DARK)
    _fill(head, (BACK, TOP), (0.0, 1.0), (0.2, 1.0), _DARK)
    _fill(torso, (FRONT, BACK), (0.0, 0.18), (0.0, 0.35), skin)
    _fill(torso, (FRONT, BACK), (0.82, 1.0), (0.0, 0.35), skin)
    _fill(legs, (FRONT, BACK), (0.42, 0.58), (0.0, 1.0), _DARK)
    return [
        ((0, 1), (0.22, 0.78), (0, 0.46), legs),
        ((0.22, 0.78), (0, 1), (0.46, 0.85), torso),
        ((0.3, 0.7), (0.32, 0.68), (0.85, 1), head),
    ]


def _bicycle(rng: np.random.Generator, ridden: bool) -> list[_Part]:
    frame = _plain(rng, _colour(rng, (0.2, 0.6, 0.75), (0.75, 0.75, 0.2), (0.75, 0.3, 0.2)))
    wheel, bar = _plain(rng, _GREY, strength=0.05), _plain(rng, _DARK)
    row, column = np.mgrid[:_SIDE, :_SIDE] / (_SIDE / 2) - 1
    wheel[:] = np.where(np.hypot(row, column)[..., None] < 0.72, wheel, _DARK)
    top = 0.43 if ridden else 0.72
    parts = [((0, 0.4), (0.42, 0.58), (0, top), wheel), ((0.6, 1), (0.42, 0.58), (0, top), wheel),
             ((0.4, 0.6), (0.44, 0.56), (0.4 * top, top), frame)]  # fmt: skip
    if not ridden:
        return [*parts, ((0.7, 0.8), (0, 1), (0.88, 1), bar), ((0.72, 0.78), (0.42, 0.58), (top, 0.88), frame),
                ((0.22, 0.42), (0.3, 0.7), (top, 0.84), bar)]  # fmt: skip
    rider, head = _plain(rng, _colour(rng, (0.15, 0.45, 0.75), (0.9, 0.5, 0.1)), strength=0.2), _plain(rng, _WHITE)
    _fill(head, FRONT, (0.1, 0.9), (0.0, 0.5), (0.8, 0.6, 0.48))
    return [*parts, ((0.7, 0.78), (0, 1), (0.5, 0.57), bar), ((0.3, 0.62), (0.1, 0.9), (top, 0.84), rider),
            ((0.5, 0.64), (0.34, 0.66), (0.84, 1), head)]  # fmt: skip


def _cone(rng: np.random.Generator) -> list[_Part]:
    orange, white = _plain(rng, (0.95, 0.38, 0.06), strength=0.08), _plain(rng, _WHITE, strength=0.05)
    edges, levels = (0.0, 0.18, 0.24, 0.3, 0.36, 0.42), (0.0, 0.08, 0.3, 0.52, 0.74, 1.0)
    return [
        ((edge, 1 - edge), (edge, 1 - edge), (levels[i], levels[i + 1]), white if i in (2, 4) else orange)
        for i, edge in enumerate(edges[:5])
    ]


def _barrier(rng: np.random.Generator) -> list[_Part]:
    foot, board = _plain(rng, (0.5, 0.49, 0.47), "facade"), _plain(rng, _WHITE, "facade", 0.06)
    row, column = np.mgrid[:_SIDE, :_SIDE]
    board[:, (row + column) % 16 < 8] = (0.78, 0.1, 0.1)
    return [((0, 1), (0, 1), (0, 0.3), foot), ((0.3, 0.7), (0, 1), (0.3, 1), board)]


# Category: least and largest width, length and height, in metres, and what makes the parts.
_Range = tuple[float, float]
_KINDS: dict[str, tuple[_Range, _Range, _Range, Callable[..., list[_Part]]]] = {
    "vehicle.car": ((1.75, 2.0), (4.1, 4.9), (1.45, 1.75), _car),
    "vehicle.truck": ((2.4, 2.6), (6.5, 8.5), (2.9, 3.5), _truck),
    "vehicle.bus.rigid": ((2.7, 2.95), (10.0, 11.5), (3.1, 3.5), _bus),
    "human.pedestrian.adult": ((0.6, 0.75), (0.6, 0.85), (1.6, 1.9), _pedestrian),
    "vehicle.bicycle": ((0.55, 0.7), (1.65, 1.9), (1.7, 1.85), _bicycle),
    "movable_object.trafficcone": ((0.38, 0.45), (0.38, 0.45), (0.75, 1.0), _cone),
    "movable_object.barrier": ((2.1, 2.5), (0.5, 0.6), (0.95, 1.1), _barrier),
}
CATEGORIES = tuple(_KINDS)


def make_shape(rng: np.random.Generator, category: str, ridden: bool = True) -> Shape:
    """Draw the size and the look of an object.

    Args:
        rng: What draws.
        category: One of `CATEGORIES`.
        ridden: Of a bicycle, whether somebody sits on it; one without is lower.
    """
    width, length, height, parts_of = _KINDS[category]
    size: Any = tuple(round(float(rng.uniform(*span)), 3) for span in (width, length, height))
    if category == "vehicle.bicycle":
        size = size if ridden else (size[0], size[1], round(0.62 * size[2], 3))
        parts = _bicycle(rng, ridden)
    else:
        parts = parts_of(rng)
    shares = np.array([part[:3] for part in parts]).swapaxes(1, 2)
    extent = np.array([size[1], size[0], size[2]])
    corners = (shares - 0.5) * (extent - 2 * _MARGIN)
    textures = [np.clip(np.stack([part[3] for part in parts]), 0, 1).astype(np.float32)]
    while textures[-1].shape[2] > 2:
        count, half = len(parts), textures[-1].shape[2] // 2
        textures.append(textures[-1].reshape(count, 6, half, 2, half, 2, 3).mean((3, 5)))
    return Shape(size, corners.astype(np.float32), tuple(textures))
