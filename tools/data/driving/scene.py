"""Scenes: a road, a vehicle with sensors on it, and objects beside and on it that never overlap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .motion import EGO_SIZE, EgoMotion, Motion, overlap, track
from .road import Road
from .shapes import Shape, make_shape

SAMPLE_TIME = 0.5  # seconds between key frames
# Seconds that a scene goes on before its first and after its last key frame, for sweeps and cameras.
AROUND = 0.5
# How far objects stand behind the first and ahead of the last place of the vehicle, in metres.
_REACH = 32.0
# The ground goes on so far around the vehicle's path, in metres.
_GROUND_REACH = 64.0
# Least distance between objects, in metres; pedestrians and cones come nearer than vehicles.
_GAP, _NARROW_GAP = 0.6, 0.25
_TRIES = 30


@dataclass(frozen=True)
class Object:
    """One object of a scene.

    Attributes:
        category: nuScenes' name.
        attribute: nuScenes' name, None for a category that has none.
        shape: Its look.
        motion: Its course, at the same time on the ground.
    """

    category: str
    attribute: str | None
    shape: Shape
    motion: Motion


@dataclass(frozen=True)
class Scene:
    """A scene; key frames are at 0, 0.5, 1, … seconds.

    Attributes:
        name: nuScenes' way, `scene-0001`.
        description: A few words.
        road: The road; its frame is the global one, with x and y of all ground positive.
        extent: Width and height of the ground, in metres, from x = y = 0.
        ego: The vehicle of the sensors.
        objects: The others.
        samples: Number of key frames.
        sun: Direction to the sun (3,), a unit vector.
        haze: Share of light that 100 m of air take.
        brightness: Of the light.
    """

    name: str
    description: str
    road: Road
    extent: tuple[float, float]
    ego: EgoMotion
    objects: tuple[Object, ...]
    samples: int
    sun: np.ndarray
    haze: float
    brightness: float


def make_scene(rng: np.random.Generator, name: str, samples: int) -> Scene:
    """Draw a scene.

    Args:
        rng: What draws.
        name: Of the scene.
        samples: Number of key frames.
    """
    duration = (samples - 1) * SAMPLE_TIME
    speed = float(rng.uniform(3, 9)) if rng.random() < 0.9 else 0.0
    frequency = float(rng.uniform(0.6, 1.0))
    # Standing still it does not weave either; else it brakes and accelerates by 2 m/s2 at most.
    swing = float(rng.uniform(0.2, 1)) * min(0.8 * speed, 2 / frequency)
    lanes = (int(rng.integers(1, 3)), int(rng.integers(1, 3)))
    right, left = (float(rng.choice([0.0, 2.4], p=[0.3, 0.7])) for _ in range(2))
    heading = float(rng.uniform(-np.pi, np.pi))
    length = speed * duration
    crossing = float(rng.uniform(12, length + 25)) if rng.random() < 0.5 else None
    begin, end = -_GROUND_REACH - 5, length + _GROUND_REACH + 5
    bend = 0.0 if rng.random() < 0.4 else float(rng.choice([-1, 1]) / rng.uniform(60, 150))
    # No road comes back to itself.
    curvature = float(np.clip(bend, -3 / (end - begin), 3 / (end - begin)))
    road = Road(0.0, 0.0, heading, curvature, begin, end, lanes, (right, left), crossing)
    road, extent = _moved(road, length)
    lane = road.middles[int(rng.integers(lanes[0]))][0]
    weave = float(rng.uniform(0, 0.3)) if speed else 0.0
    ego = EgoMotion(road, lane, speed, swing, frequency, float(rng.uniform(0, 2 * np.pi)), weave)
    height, azimuth = np.radians(rng.uniform(45, 65)), rng.uniform(0, 2 * np.pi)
    sun = np.array([np.cos(height) * np.cos(azimuth), np.cos(height) * np.sin(azimuth), np.sin(height)])
    objects = tuple(_objects(rng, road, ego, duration, length))
    kind = "straight" if not curvature else "left bend" if curvature > 0 else "right bend"
    description = f"Simulated: {kind}{', crossing' if crossing is not None else ''}, {len(objects)} objects"
    haze, brightness = float(rng.uniform(0.15, 0.4)), float(rng.uniform(0.85, 1.05))
    return Scene(name, description, road, extent, ego, objects, samples, sun, haze, brightness)


def _moved(road: Road, length: float) -> tuple[Road, tuple[float, float]]:
    """The road, moved so that the ground around the path begins at 0, and the extent of that ground, whole metres."""
    path = np.stack(road.pose(np.linspace(0, max(length, 1.0), 50), 0.0)[:2], -1)
    low, high = path.min(0) - _GROUND_REACH, path.max(0) + _GROUND_REACH
    width, height = np.ceil(high - low)
    moved = replace(road, x=road.x - float(low[0]), y=road.y - float(low[1]))
    return moved, (float(width), float(height))


# What draws a place: the motion there and the attribute; None where there is no such place.
_Place = tuple[Motion, str | None] | None


def _objects(rng: np.random.Generator, road: Road, ego: EgoMotion, duration: float, length: float) -> Iterator[Object]:
    times = np.arange(-AROUND, duration + AROUND, 0.1)
    taken: list[tuple[np.ndarray, tuple[float, float]]] = [(ego.middle(times), EGO_SIZE)]
    places = _Places(rng, road, length)
    # The large ones first, while there is room.
    wanted: list[tuple[str, Callable[[], _Place], int]] = [
        ("vehicle.bus.rigid", places.in_lane, int(rng.integers(1, 3))),
        ("vehicle.truck", places.in_lane, int(rng.integers(1, 3))),
        ("vehicle.truck", places.parked, int(rng.integers(0, 3))),
        ("vehicle.car", places.in_lane, int(rng.integers(4, 8))),
        ("movable_object.barrier", places.row(2.9, True), int(rng.integers(3, 7))),
        ("movable_object.trafficcone", places.row(3.0, False), int(rng.integers(4, 9))),
        ("vehicle.car", places.parked, int(rng.integers(4, 9))),
        ("vehicle.bicycle", places.cycling, int(rng.integers(2, 5))),
        ("vehicle.bicycle", places.left_bicycle, int(rng.integers(0, 3))),
        ("human.pedestrian.adult", places.walking, int(rng.integers(5, 10))),
        ("human.pedestrian.adult", places.across, int(rng.integers(0, 3))),
    ]
    for category, place, count in wanted:
        for _ in range(count):
            shape = make_shape(rng, category, ridden=place != places.left_bicycle)
            size = (shape.size[1], shape.size[0])
            gap = _NARROW_GAP if category.startswith(("human", "movable_object")) else _GAP
            for _ in range(_TRIES):
                found = place()
                if found is None:
                    continue
                motion, attribute = found
                course = track(motion, times)
                if not overlap(course, size, taken, gap):
                    taken.append((course, size))
                    yield Object(category, attribute, shape, motion)
                    break


class _Places:
    """Places for objects, drawn anew at each call."""

    def __init__(self, rng: np.random.Generator, road: Road, length: float):
        self.rng, self.road = rng, road
        self.begin, self.end = -_REACH, length + _REACH
        self.mean_speed = float(rng.uniform(4, 9))

    def _way(self) -> float:
        return float(self.rng.uniform(self.begin, self.end))

    def _along(self, way: float, offset: float, direction: int, speed: float, turned: float = 0.0) -> Motion:
        """Along the road at an offset; `turned` is an angle out of the road's direction, of what stands."""
        x, y, heading = (float(value) for value in self.road.pose(way, offset))
        curvature = self.road.curvature / (1 - self.road.curvature * offset)
        return Motion(x, y, heading + turned + (0 if direction > 0 else np.pi), speed, direction * speed * curvature)

    def in_lane(self) -> _Place:
        """Moving or waiting in a lane."""
        offset, direction = self.road.middles[int(self.rng.integers(len(self.road.middles)))]
        moves = self.rng.random() < 0.8
        speed = self.mean_speed + float(self.rng.uniform(-1.5, 2.5)) if moves else 0.0
        offset += float(self.rng.normal(0, 0.15))
        return self._along(self._way(), offset, direction, speed), "vehicle.moving" if moves else "vehicle.stopped"

    def parked(self) -> _Place:
        """On a parking strip, away from the crossing."""
        side = int(self.rng.integers(2))
        way, direction = self._way(), int(self.rng.choice([-1, 1]))
        if not self.road.parking[side] or self.road.is_near_crossing(way, 10.0):
            return None
        offset = self.road.kerbs[side] + (1.3 if side == 0 else -1.3)
        return self._along(way, offset, direction, 0.0, float(self.rng.normal(0, 0.03))), "vehicle.parked"

    def row(self, step: float, facing: bool) -> Callable[[], _Place]:
        """Places in a row beside the lanes, `step` metres apart, each turned to the road or at random."""
        rng, road = self.rng, self.road
        side, number = int(rng.integers(2)), -1
        offset = road.edges[side] + float(rng.uniform(-0.9, 0.9))
        first = float(rng.uniform(self.begin + 14, self.end - 20))

        def place() -> _Place:
            nonlocal number
            number += 1
            way = first + step * number + float(rng.normal(0, 0.08))
            turned = (np.pi / 2 if side == 0 else -np.pi / 2) + float(rng.normal(0, 0.08))
            if road.is_near_crossing(way, 0.0):
                return None
            return self._along(way, offset, 1, 0.0, turned if facing else float(rng.uniform(-np.pi, np.pi))), None

        return place

    def cycling(self) -> _Place:
        """Near the edge of the last lane, with a rider."""
        side = int(self.rng.integers(2))
        offset = self.road.edges[side] + (0.6 if side == 0 else -0.6)
        speed = float(self.rng.uniform(2.5, 5.5))
        return self._along(self._way(), offset, 1 if side == 0 else -1, speed), "cycle.with_rider"

    def left_bicycle(self) -> _Place:
        """On a sidewalk, without a rider."""
        offset = self.road.sidewalks[int(self.rng.integers(2))] + float(self.rng.uniform(-0.8, 0.8))
        turned = float(self.rng.uniform(-np.pi, np.pi))
        return self._along(self._way(), offset, 1, 0.0, turned), "cycle.without_rider"

    def walking(self) -> _Place:
        """On a sidewalk, walking or standing."""
        offset = self.road.sidewalks[int(self.rng.integers(2))] + float(self.rng.uniform(-1.2, 1.2))
        if self.rng.random() < 0.25:
            turned = float(self.rng.uniform(-np.pi, np.pi))
            return self._along(self._way(), offset, 1, 0.0, turned), "pedestrian.standing"
        direction, speed = int(self.rng.choice([-1, 1])), float(self.rng.uniform(0.8, 1.8))
        return self._along(self._way(), offset, direction, speed), "pedestrian.moving"

    def across(self) -> _Place:
        """Crossing the road, on the zebra where there is one."""
        way = self._way()
        if self.road.crossing is not None:
            way = self.road.crossing + float(self.rng.choice([-1, 1]) * self.rng.uniform(6.3, 9.2))
        offset = float(self.rng.uniform(self.road.kerbs[0] - 1, self.road.kerbs[1] + 1))
        x, y, heading = (float(value) for value in self.road.pose(way, offset))
        side = 1 if self.rng.random() < 0.5 else -1
        yaw = heading + side * np.pi / 2
        return Motion(x, y, yaw, float(self.rng.uniform(0.9, 1.7))), "pedestrian.moving"


def boxes_at(scene: Scene, time: float) -> Any:
    """Where the objects of a scene are.

    Returns:
        x, y and yaw (N, 3) of their middles, float64.
    """
    return np.array([item.motion.pose(time) for item in scene.objects], np.float64).reshape(-1, 3)
