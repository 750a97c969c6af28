"""A LiDAR that spins: rays sent into the scene that the cameras see."""

from __future__ import annotations

from typing import Any

import numpy as np

from .ground import Ground, level_of
from .rendering import first_hits, local_rays, surface_colour
from .scene import Scene
from .shapes import Shape

BEAMS = 32
_LOWEST, _HIGHEST = -30.67, 10.67  # degrees, of nuScenes' LiDAR
_FAR = 70.0  # metres


def sweep(
    scene: Scene, ground: Ground, boxes: np.ndarray, place: np.ndarray, axes: np.ndarray, azimuths: int
) -> tuple[np.ndarray, np.ndarray]:
    """One turn of the LiDAR, as if all rays were sent at once (nuScenes corrects for the motion in a turn).

    Args:
        scene: The scene.
        ground: Its ground.
        boxes: x, y and yaw (N, 3) of its objects.
        place: Of the LiDAR in the global frame (3,).
        axes: Rotation matrix (3, 3) from the LiDAR's frame to the global one.
        azimuths: Number of directions of each of the 32 beams in a turn.

    Returns:
        Points (P, 5), float32: x, y and z in the LiDAR's frame in metres, intensity in 0…255, and the beam from 0 for
        the lowest; and of each point the index of the object that it lies on, -1 for the ground.
    """
    height = np.radians(np.linspace(_LOWEST, _HIGHEST, BEAMS))[:, None]
    # The first direction looks back, so that the seam is there.
    angle = -np.pi / 2 + 2 * np.pi * (np.arange(azimuths) + 0.5) / azimuths
    own = np.stack(
        np.broadcast_arrays(np.cos(height) * np.cos(angle), np.cos(height) * np.sin(angle), np.sin(height))
    ).astype(np.float32)
    turn = axes.astype(np.float32)
    rays = turn[:, 0, None, None] * own[0] + turn[:, 1, None, None] * own[1] + turn[:, 2, None, None] * own[2]

    with np.errstate(divide="ignore"):
        distance = np.float32(-place[2]) / rays[2]
    distance[(distance < 0) | (distance > _FAR)] = np.inf
    instance = np.full(distance.shape, -1, np.int32)
    bright = np.zeros(distance.shape, np.float32)
    below = np.isfinite(distance)
    x, y = (np.float32(place[i]) + distance[below] * rays[i][below] for i in range(2))
    colours = ground.colour(x, y, level_of(np.full(x.shape, 0.1)))
    bright[below] = colours.mean(0) * np.abs(rays[2][below])
    for index, (item, box) in enumerate(zip(scene.objects, boxes, strict=True)):
        columns = _columns(item.shape, box, place, axes, azimuths)
        origin, directions = local_rays(item.shape, box, place, rays[:, :, columns])
        hit, part = first_hits(item.shape, origin, directions)
        seen = (hit < distance[:, columns]) & (hit < _FAR)
        if seen.any():
            directions_seen: Any = tuple(ray[seen] for ray in directions)
            colours, face = surface_colour(item.shape, part[seen], origin, directions_seen, hit[seen], 1)
            facing = np.abs(np.choose(face // 2, directions_seen))
            row, column = np.nonzero(seen)
            distance[row, columns[column]] = hit[seen]
            instance[row, columns[column]] = index
            bright[row, columns[column]] = colours.mean(0) * facing
    found = np.isfinite(distance)
    beam = np.broadcast_to(np.arange(BEAMS, dtype=np.float32)[:, None], distance.shape)
    points = np.stack([*(distance[found] * own[:, found]), 255 * bright[found], beam[found]], -1)
    return points, instance[found]


def _columns(shape: Shape, box: np.ndarray, place: np.ndarray, axes: np.ndarray, azimuths: int) -> np.ndarray:
    """The directions in which an object may be met: those of the sphere around its box."""
    middle = axes.T @ (np.array([box[0], box[1], shape.middle]) - place)
    radius, away = np.linalg.norm(shape.size) / 2, np.hypot(middle[0], middle[1])
    if away <= radius:
        return np.arange(azimuths)
    step = 2 * np.pi / azimuths
    first = (np.arctan2(middle[1], middle[0]) + np.pi / 2) / step
    half = np.arcsin(radius / away) / step + 1
    return np.arange(int(np.floor(first - half)), int(np.ceil(first + half)) + 1) % azimuths
