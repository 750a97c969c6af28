"""The sensors of nuScenes' vehicle: where they are, which way they look, and when."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ....heads.bev.nuscenes import rotations
from ....heads.bev.nuscenes.classes import CAMERAS, LIDAR

# Camera: place in the vehicle's frame in metres, direction in degrees to the left, field of view in degrees, and when
# the LiDAR's beam passes its middle, in milliseconds before the key frame, at whose time the turn ends.
_CAMERAS: dict[str, tuple[tuple[float, float, float], float, float, float]] = {
    "CAM_FRONT": ((1.70, 0.016, 1.51), 0, 70, 35),
    "CAM_FRONT_RIGHT": ((1.55, -0.49, 1.49), -55, 70, 27),
    "CAM_FRONT_LEFT": ((1.52, 0.49, 1.51), 55, 70, 43),
    "CAM_BACK": ((0.03, 0.003, 1.58), 180, 110, 10),
    "CAM_BACK_LEFT": ((1.035, 0.485, 1.59), 110, 70, 3),
    "CAM_BACK_RIGHT": ((1.015, -0.48, 1.56), -110, 70, 19),
}
_LIDAR_PLACE = (0.94, 0.0, 1.84)


@dataclass(frozen=True)
class Sensor:
    """A calibrated sensor.

    Attributes:
        channel: nuScenes' name.
        translation: Of the sensor in the vehicle's frame (3,), in metres.
        rotation: Likewise, a unit quaternion (w, x, y, z). A camera looks along z, with x to the right and y down;
            the LiDAR has x to the right, y ahead and z up.
        intrinsic: Of a camera (3, 3), in pixels: pixel i covers i…i + 1. None for the LiDAR.
        delay: By how many seconds it is earlier than the key frame.
    """

    channel: str
    translation: np.ndarray
    rotation: np.ndarray
    intrinsic: np.ndarray | None
    delay: float


def make_rig(rng: np.random.Generator, image_size: tuple[int, int]) -> dict[str, Sensor]:
    """The sensors of one vehicle by channel: nuScenes' rig, each off by about a centimetre and a third of a degree.

    Args:
        rng: What draws.
        image_size: Width and height of the cameras' images, in pixels.
    """
    width, height = image_size
    rig = {}
    for channel in CAMERAS:
        place, direction, view, delay = _CAMERAS[channel]
        yaw = np.radians(direction)
        axes = [(np.sin(yaw), -np.cos(yaw), 0.0), (0.0, 0.0, -1.0), (np.cos(yaw), np.sin(yaw), 0.0)]
        focal = width / 2 / np.tan(np.radians(view) / 2) * float(rng.uniform(0.995, 1.005))
        centre = np.array([0.51 * width, 0.53 * height]) + rng.uniform(-0.01, 0.01, 2) * width
        intrinsic = np.array([[focal, 0.0, centre[0]], [0.0, focal, centre[1]], [0.0, 0.0, 1.0]])
        translation, rotation = _mounted(rng, place, np.array(axes).T)
        rig[channel] = Sensor(channel, translation, rotation, intrinsic, delay / 1000)
    right_ahead_up = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    translation, rotation = _mounted(rng, _LIDAR_PLACE, right_ahead_up)
    rig[LIDAR] = Sensor(LIDAR, translation, rotation, None, 0.0)
    return rig


def _mounted(
    rng: np.random.Generator, place: tuple[float, float, float], axes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    translation = np.round(np.array(place) + rng.normal(0, 0.01, 3), 4)
    slip = np.concatenate([[1.0], rng.normal(0, 0.003, 3)])
    return translation, rotations.multiply(rotations.from_matrix(axes), slip / np.linalg.norm(slip))


def sensor_pose(sensor: Sensor, translation: np.ndarray, rotation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pose of a sensor in the global frame.

    Args:
        sensor: The sensor.
        translation: Of the vehicle (3,).
        rotation: Of the vehicle (4,).

    Returns:
        Its place (3,) and the rotation matrix (3, 3) from its frame to the global one, float64.
    """
    turn = rotations.to_matrix(rotation)
    return translation + turn @ sensor.translation, turn @ rotations.to_matrix(sensor.rotation)
