"""Point clouds of nuScenes' LiDAR, and what cameras see of them."""

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from .calibration import rigid_inverse, sensor_to_global
from .classes import LIDAR
from .tables import NuScenes

# x, y, z, intensity and ring of a point.
_NUMBERS = 5


def load_points(path: Path) -> np.ndarray:
    """The points of a `.pcd.bin` file: (N, 5) of float32, x, y, z in metres, intensity and ring.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds no rows of 5 numbers, naming it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such point cloud")
    size = path.stat().st_size
    if size % (4 * _NUMBERS):
        raise ValueError(f"{path}: must hold rows of {_NUMBERS} numbers of float32, got {size} bytes")
    return np.fromfile(path, "<f4").astype(np.float32, copy=False).reshape(-1, _NUMBERS)


def load_sweeps(
    nusc: NuScenes, sample: int, count: int, channel: str = LIDAR, min_distance: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """The points of a sample and of the sweeps before it, in the frame of the LiDAR at the sample.

    Args:
        nusc: The tables, with sweeps.
        sample: A sample.
        count: How many point clouds at most; a scene has none before its first sweep.
        channel: Of the LiDAR.
        min_distance: In metres: points that are nearer than this in both x and y belong to the vehicle and are left
            out.

    Returns:
        Points (N, 4), float32: x, y, z in metres and intensity, of the newest cloud first; and their lag (N,), seconds
        before the sample.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file holds no rows of 5 numbers, or the tables were read without sweeps.
    """
    newest = int(nusc.key_frames(sample, channel))
    chain = nusc.sweep_chain(newest, count)
    matrices = rigid_inverse(sensor_to_global(nusc, newest)) @ sensor_to_global(nusc, np.array(chain))
    seconds = nusc.table("sample_data")["timestamp"] * 1e-6
    clouds, lags = [np.zeros((0, 4), np.float32)], [np.zeros(0)]
    for record, matrix in zip(chain, matrices, strict=True):
        points = load_points(nusc.path(record))
        points = points[~(np.abs(points[:, :2]) < min_distance).all(-1)]
        clouds.append(np.concatenate([_transformed(points, matrix), points[:, 3:4]], axis=1).astype(np.float32))
        lags.append(np.full(len(points), seconds[newest] - seconds[record]))
    return np.concatenate(clouds), np.concatenate(lags)


def project(points: np.ndarray, lidar2img: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Points in images, in float64: float32 at global coordinates would move them by pixels.

    Args:
        points: (N, 3 or more), x, y, z in the LiDAR's frame.
        lidar2img: (..., 4, 4), as of `calibration.lidar_to_image`.

    Returns:
        Pixels (..., N, 2), u and v, which mean nothing behind the camera; depths (..., N) along the camera's axis.
    """
    seen = _transformed(points, np.asarray(lidar2img, np.float64))
    depth = seen[..., 2]
    return seen[..., :2] / np.where(depth == 0, 1e-12, depth)[..., None], depth


def in_image(
    pixels: np.ndarray, depth: np.ndarray, size: tuple[int, int], margin: float = 1.0, min_depth: float = 1.0
) -> np.ndarray:
    """The mask (...) of projected points that stand in an image, as nuScenes' devkit takes them.

    Args:
        pixels: (..., 2).
        depth: (...), in metres.
        size: Width and height of the image.
        margin: Pixels at each side that do not count; all comparisons are strict.
        min_depth: In metres.
    """
    inside = (pixels > margin) & (pixels < np.array(size) - margin)
    return inside.all(-1) & (depth > min_depth)


def depth_maps(points: np.ndarray, lidar2img: ArrayLike, shape: tuple[int, int]) -> np.ndarray:
    """The depth of LiDAR points in images, for the supervision of depth.

    Args:
        points: (N, 3 or more), x, y, z in the LiDAR's frame.
        lidar2img: (cameras, 4, 4), with what resizing did to the images.
        shape: Height and width of the images.

    Returns:
        (cameras, height, width), float32, in metres: of each pixel the smallest depth, 0 where there is no point.
        Points nearer than 1 m are left out.
    """
    height, width = shape
    pixels, depth = project(points, lidar2img)
    maps = np.full((len(depth), height, width), np.inf, np.float32)
    # From 0 on and below the width, not strictly inside: such a point belongs to the pixel at the border.
    seen = (pixels >= 0).all(-1) & (pixels < (width, height)).all(-1) & (depth > 1)
    cameras, index = np.nonzero(seen)
    columns, rows = pixels[cameras, index].astype(np.int64).T
    np.minimum.at(maps, (cameras, rows, columns), depth[cameras, index].astype(np.float32))
    maps[np.isinf(maps)] = 0
    return maps


def _transformed(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The first three numbers of points (N, 3 or more) by matrices (..., 4, 4) -> (..., N, 3), float64."""
    return points[:, :3].astype(np.float64) @ np.swapaxes(matrix[..., :3, :3], -1, -2) + matrix[..., None, :3, 3]
