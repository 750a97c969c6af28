"""Rigid transforms between the frames of nuScenes, camera matrices, and what a vehicle's bus says of its way.

Frames: global; ego, the vehicle at the time of a record (x forward, y left, z up); that of a sensor. The LiDAR's has x
right, y forward, z up; a camera's x right, y down, z forward. Every record of a sensor has an ego pose of its own time.
Matrices are (..., 4, 4), float64, in metres, and map column vectors (x, y, z, 1).
"""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from ..motion import CAN_BUS
from .rotations import to_matrix, yaw_of
from .tables import Index, NuScenes


def rigid(translation: ArrayLike, rotation: ArrayLike) -> np.ndarray:
    """Translations (..., 3) and quaternions (..., 4) -> matrices (..., 4, 4) that rotate, then move.

    Raises:
        ValueError: For other shapes, and for quaternions that are zero or not finite.
    """
    offset = np.asarray(translation, np.float64)
    if offset.shape[-1:] != (3,):
        raise ValueError(f"translations must have the shape (..., 3), got {offset.shape}")
    turn = to_matrix(rotation)
    matrix = np.zeros((*np.broadcast_shapes(offset.shape[:-1], turn.shape[:-2]), 4, 4))
    matrix[..., :3, :3], matrix[..., :3, 3], matrix[..., 3, 3] = turn, offset, 1
    return matrix


def rigid_inverse(matrix: np.ndarray) -> np.ndarray:
    """The inverse (..., 4, 4) of rigid transforms (..., 4, 4)."""
    result = np.zeros_like(matrix)
    back = np.swapaxes(matrix[..., :3, :3], -1, -2)
    result[..., :3, :3], result[..., 3, 3] = back, 1
    result[..., :3, 3] = -(back @ matrix[..., :3, 3:])[..., 0]
    return result


def ego_to_global(nusc: NuScenes, records: Index) -> np.ndarray:
    """(..., 4, 4) at the times of records (...) of sensors."""
    poses = nusc.rows("sample_data", "ego_pose_token")[records]
    table = nusc.table("ego_pose")
    return rigid(table["translation"][poses], table["rotation"][poses])


def sensor_to_ego(nusc: NuScenes, records: Index) -> np.ndarray:
    """(..., 4, 4) of the sensors of records (...)."""
    sensors = nusc.rows("sample_data", "calibrated_sensor_token")[records]
    table = nusc.table("calibrated_sensor")
    return rigid(table["translation"][sensors], table["rotation"][sensors])


def sensor_to_global(nusc: NuScenes, records: Index) -> np.ndarray:
    """(..., 4, 4) at the times of records (...)."""
    return ego_to_global(nusc, records) @ sensor_to_ego(nusc, records)


def sensor_to_lidar(sensor_global: np.ndarray, lidar_global: np.ndarray) -> np.ndarray:
    """The way from the frame of a sensor at its own time to that of the LiDAR at its time, by the global frame.

    Args:
        sensor_global: (..., 4, 4), from the sensor's frame to the global one.
        lidar_global: (..., 4, 4), from the LiDAR's frame to the global one.

    Returns:
        (..., 4, 4).
    """
    return rigid_inverse(lidar_global) @ sensor_global


def lidar_to_image(intrinsic: ArrayLike, camera_lidar: np.ndarray, scale: ArrayLike = 1.0) -> np.ndarray:
    """Matrices from points of the LiDAR's frame to (u depth, v depth, depth, 1) in pixels and metres.

    Args:
        intrinsic: (..., 3, 3), in pixels.
        camera_lidar: (..., 4, 4), from the camera's frame to the LiDAR's.
        scale: By how much the image has been resized: one number, or (..., 2) for u and v. Padding at the right and
            the bottom changes nothing.

    Returns:
        (..., 4, 4).

    Raises:
        ValueError: The intrinsics have another shape, are not finite or singular, or the scale is not above 0.
    """
    camera = np.asarray(intrinsic, np.float64)
    if camera.shape[-2:] != (3, 3):
        raise ValueError(f"intrinsics must have the shape (..., 3, 3), got {camera.shape}")
    if not _regular(camera).all():
        raise ValueError(f"intrinsics must be finite and not singular, got {camera.tolist()}")
    factors = np.broadcast_to(np.asarray(scale, np.float64), (*camera.shape[:-2], 2))
    if not (np.isfinite(factors) & (factors > 0)).all():
        raise ValueError(f"scale={scale!r}: must be above 0")
    matrix = np.zeros((*camera.shape[:-2], 4, 4))
    matrix[..., :3, :3], matrix[..., 3, 3] = camera, 1
    matrix[..., :2, :] *= factors[..., None]
    return matrix @ rigid_inverse(camera_lidar)


def camera_intrinsics(nusc: NuScenes, records: Index) -> np.ndarray:
    """(..., 3, 3) of the cameras of records (...), in pixels.

    Raises:
        ValueError: A matrix is missing or singular, naming file and row.
    """
    sensors = nusc.rows("sample_data", "calibrated_sensor_token")[records]
    table = nusc.table("calibrated_sensor")
    matrices = table["camera_intrinsic"][sensors]
    good = _regular(matrices)
    if not good.all():
        row = int(np.ravel(sensors)[np.ravel(good).argmin()])
        found = table["camera_intrinsic"][row].tolist()
        raise table.error(table.token(row), f"camera_intrinsic must be 3 x 3 and not singular, got {found}")
    return matrices


def can_bus(nusc: NuScenes, sample: int, lidar: int) -> np.ndarray:
    """What the published BEVFormer takes from the vehicle's bus, absolute: see `can_bus_step` for what models take.

    Acceleration, turn rate and velocity (7 to 15) come from `DATAROOT/can_bus/SCENE_pose.json` of nuScenes' CAN bus
    expansion, and are 0 where the file is missing. As published, they are those of the first message behind the
    sample's time.

    Args:
        nusc: The tables.
        sample: A sample.
        lidar: Its record of the LiDAR.

    Returns:
        (18,): the ego translation (3), its quaternion (4), acceleration, turn rate and velocity (3 each), the ego yaw
        in radians within [0, 2 pi), and in degrees.

    Raises:
        ValueError: The file has other content, naming it.
    """
    numbers = np.zeros(CAN_BUS)
    pose = int(nusc.rows("sample_data", "ego_pose_token")[lidar])
    table = nusc.table("ego_pose")
    numbers[:3], numbers[3:7] = table["translation"][pose], table["rotation"][pose]
    numbers[7:16] = _motion(nusc, sample)
    yaw = float(yaw_of(numbers[3:7])) % (2 * np.pi)
    numbers[-2:] = yaw, np.degrees(yaw)
    return numbers


def can_bus_step(now: np.ndarray, before: np.ndarray | None) -> np.ndarray:
    """`can_bus` (18,) with the translation and the yaw in degrees relative to the frame before; 0 without one.

    The difference of the yaws lies within [-180, 180). In the published code it jumps by 360 where the heading passes
    east.
    """
    step = now.copy()
    step[:3] = 0 if before is None else now[:3] - before[:3]
    step[-1] = 0 if before is None else (now[-1] - before[-1] + 180) % 360 - 180
    return step


def _motion(nusc: NuScenes, sample: int) -> np.ndarray:
    """(9,): acceleration, turn rate and velocity at a sample, 0 without a file."""
    samples = nusc.table("sample")
    scene = nusc.scenes[int(nusc.rows("sample", "scene_token")[sample])]
    path = nusc.dataroot / "can_bus" / f"{scene}_pose.json"
    if not path.is_file():
        return np.zeros(9)
    times, motion = _messages(path, path.stat().st_mtime_ns)
    behind = np.flatnonzero(times > samples["timestamp"][sample])
    return motion[behind[0] if len(behind) else -1]


@lru_cache(maxsize=64)
def _messages(path: Path, changed: int) -> tuple[np.ndarray, np.ndarray]:
    """Times (messages,) in microseconds, and acceleration, turn rate and velocity (messages, 9) of a file.

    Args:
        path: Of the file.
        changed: When, so that a file that has changed is read again.
    """
    try:
        messages = json.loads(path.read_text(encoding="utf-8"))
        times = np.array([message["utime"] for message in messages], np.int64)
        motion = np.array([[m["accel"], m["rotation_rate"], m["vel"]] for m in messages], np.float64)
        if not len(times):
            raise ValueError("it is empty")
        return times, motion.reshape(len(times), 9)
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(
            f"{path}: must be a list of messages with utime, and accel, rotation_rate and vel of 3 numbers each "
            f"({type(error).__name__}: {error})"
        ) from error


def _regular(matrices: np.ndarray) -> np.ndarray:
    """Which matrices (..., 3, 3) are finite and not singular."""
    with np.errstate(invalid="ignore"):
        # NaN does not pass.
        return np.abs(np.linalg.det(matrices)) >= 1e-6
