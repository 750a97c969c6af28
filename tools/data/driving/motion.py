"""Motion on the ground plane: objects with constant speed and turn rate, the vehicle of the sensors, overlaps.

Lengths are in metres, times in seconds, angles in radians, anticlockwise from x.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....heads.bev.nuscenes import rotations
from .road import Road, arc

# Length and width of nuScenes' vehicle, and how far its middle is ahead of the rear axle, the origin of its frame.
EGO_SIZE = (4.084, 1.73)
EGO_MIDDLE = 1.33
# Body angle for an acceleration, radians for 1 m/s2.
_SOFTNESS = 0.003


@dataclass(frozen=True)
class Motion:
    """Constant speed and turn rate (the CTRV model).

    Attributes:
        x: Of the centre at time 0.
        y: Likewise.
        yaw: Heading at time 0.
        speed: In the direction of the heading, m/s.
        turn_rate: rad/s.
    """

    x: float
    y: float
    yaw: float
    speed: float = 0.0
    turn_rate: float = 0.0

    def pose(self, time: Any) -> tuple[Any, Any, Any]:
        """x, y and yaw at a time, or at each of an array of times."""
        return arc(self.x, self.y, self.yaw, self.speed * time, self.turn_rate * time)


@dataclass(frozen=True)
class EgoMotion:
    """The vehicle of the sensors: along a lane of a road, with changing speed.

    Attributes:
        road: The road.
        offset: Of the lane's middle from the road's, to the left.
        speed: Mean, m/s; 0 for one that stands.
        swing: Amplitude by which the speed changes, m/s, at most `speed`.
        frequency: Of that change, rad/s.
        phase: Likewise, radians.
        weave: Amplitude of the way from the lane's middle.
    """

    road: Road
    offset: float
    speed: float
    swing: float
    frequency: float
    phase: float
    weave: float

    def way(self, time: Any) -> Any:
        """Driven along the road since time 0, in metres."""
        change = np.cos(self.frequency * time + self.phase) - np.cos(self.phase)
        return self.speed * time - self.swing / self.frequency * change

    def pose(self, time: float) -> tuple[np.ndarray, np.ndarray]:
        """The pose of the vehicle: origin on the ground below the rear axle, x forward, y left, z up.

        Returns:
            The translation (3,) and the unit quaternion (4,), (w, x, y, z), of the vehicle in the global frame.
        """
        angle = self.frequency * time + self.phase
        speed = self.speed + self.swing * np.sin(angle)
        acceleration = self.swing * self.frequency * np.cos(angle)
        # The weave is a function of the way, so that the heading is along the path at any speed.
        way = self.way(time)
        offset = self.offset + self.weave * np.sin(0.15 * way)
        slope = self.weave * 0.15 * np.cos(0.15 * way)
        x, y, heading = self.road.pose(way, offset)
        yaw = heading + np.arctan2(slope, 1 - self.road.curvature * offset)
        # It dips when it brakes, and leans outwards in a bend.
        pitch, roll = -_SOFTNESS * acceleration, _SOFTNESS * speed**2 * self.road.curvature
        tilt = rotations.multiply(_turn(1, pitch), _turn(0, roll))
        return np.array([x, y, 0.0]), rotations.multiply(rotations.from_yaw(yaw), tilt)

    def middle(self, times: np.ndarray) -> np.ndarray:
        """x, y and yaw (T, 3) of the middle of the vehicle at times (T,)."""
        poses = [self.pose(float(time)) for time in times]
        yaw = rotations.yaw_of(np.stack([rotation for _, rotation in poses]))
        place = np.stack([translation[:2] for translation, _ in poses])
        ahead = EGO_MIDDLE * np.stack([np.cos(yaw), np.sin(yaw)], -1)
        return np.concatenate([place + ahead, yaw[:, None]], 1)


def _turn(axis: int, angle: float) -> np.ndarray:
    quaternion = np.zeros(4)
    quaternion[0], quaternion[1 + axis] = np.cos(angle / 2), np.sin(angle / 2)
    return quaternion


def track(motion: Motion, times: np.ndarray) -> np.ndarray:
    """x, y and yaw (T, 3) at times (T,)."""
    return np.stack(np.broadcast_arrays(*motion.pose(times)), -1)


def overlap(
    first: np.ndarray, size: tuple[float, float], others: Iterable[tuple[np.ndarray, tuple[float, float]]], gap: float
) -> bool:
    """Whether a rectangle comes nearer to any of others than a gap, at any time (test of separating axes).

    Args:
        first: x, y and yaw (T, 3) of its centre.
        size: Its length and width.
        others: The same of each other one, at the same times.
        gap: Least distance, in metres.
    """
    listed = list(others)
    if not listed:
        return False
    tracks = np.stack([other for other, _ in listed])
    halves = np.array([half for _, half in listed])[:, None] / 2
    own = np.broadcast_to(np.array(size) / 2 + gap, halves.shape)
    between = tracks[..., :2] - first[:, :2]
    apart = np.zeros(tracks.shape[:2], bool)
    turn = np.abs(np.stack([np.cos(tracks[..., 2] - first[:, 2]), np.sin(tracks[..., 2] - first[:, 2])]))
    for yaw, here, there in ((np.broadcast_to(first[:, 2], turn[0].shape), own, halves), (tracks[..., 2], halves, own)):
        cos, sin = np.cos(yaw), np.sin(yaw)
        along, across = cos * between[..., 0] + sin * between[..., 1], cos * between[..., 1] - sin * between[..., 0]
        apart |= np.abs(along) > here[..., 0] + there[..., 0] * turn[0] + there[..., 1] * turn[1]
        apart |= np.abs(across) > here[..., 1] + there[..., 0] * turn[1] + there[..., 1] * turn[0]
    return not apart.all()
