"""Point clouds against what nuScenes' devkit computes."""

import golden_files
import numpy as np
import pytest

from attnzoo.heads.bev.nuscenes.calibration import (
    camera_intrinsics,
    lidar_to_image,
    sensor_to_global,
    sensor_to_lidar,
)
from attnzoo.heads.bev.nuscenes.lidar import depth_maps, in_image, load_points, load_sweeps, project
from attnzoo.heads.bev.nuscenes.tables import NuScenes

GOLDEN = golden_files.load("nuscenes_geometry")


def test_points_in_images(nusc):
    size = tuple(GOLDEN["kwargs"]["image"])
    for token, golden in GOLDEN["outputs"]["point_cloud_to_image"].items():
        sample = nusc.table("sample").row(token)
        lidar = sensor_to_global(nusc, nusc.key_frames(sample, "LIDAR_TOP"))
        points = np.array(golden["points"], np.float32)
        for channel, wanted in golden["cameras"].items():
            camera = nusc.key_frames(sample, channel)
            matrix = sensor_to_lidar(sensor_to_global(nusc, camera), lidar)
            pixels, depth = project(points, lidar_to_image(camera_intrinsics(nusc, camera), matrix))
            kept = in_image(pixels, depth, size)
            assert np.flatnonzero(kept).tolist() == wanted["kept"]
            np.testing.assert_allclose(pixels[kept].T, np.array(wanted["pixels_float64"])[:2], rtol=1e-6)
            np.testing.assert_allclose(depth[kept], wanted["depth_float64"], rtol=1e-6)


def test_points_at_the_border_do_not_count():
    pixels = np.array([[1.0, 25], [1.01, 25], [99.0, 25], [98.9, 25], [50, 1.0], [50, 48.9], [50, 49.0], [50, 25]])
    depth = np.array([2, 2, 2, 2, 2, 2, 2, 1.0])
    assert np.flatnonzero(in_image(pixels, depth, (100, 50))).tolist() == [1, 3, 5]


def write_cloud(nusc: NuScenes, record: int, points) -> None:
    path = nusc.path(record)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.array(points, "<f4").tofile(path)


def test_sweeps(folder):
    golden = GOLDEN["outputs"]["multisweep"]
    nusc = NuScenes(folder.parent, "v", sweeps=True)
    sample = nusc.table("sample").row(golden["sample"])
    for file in golden["files"]:
        points = file["points"]
        if isinstance(points, str):
            # "as in point_cloud_to_image", where all samples have the same.
            points = next(iter(GOLDEN["outputs"]["point_cloud_to_image"].values()))["points"]
        write_cloud(nusc, nusc.table("sample_data").row(file["sample_data"]), points)
    points, lag = load_sweeps(nusc, sample, golden["nsweeps"], min_distance=golden["min_distance"])
    assert points.dtype == np.float32 and points.shape == (len(lag), 4)
    np.testing.assert_allclose(points.T, golden["points_float32"], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(lag, golden["time_lag"], rtol=1e-6, atol=1e-9)
    one, _ = load_sweeps(nusc, sample, 1)
    np.testing.assert_array_equal(one, points[: len(one)])
    with pytest.raises(ValueError, match="read without sweeps"):
        load_sweeps(NuScenes(folder.parent, "v"), 0, 2)


def test_the_chain_ends_with_the_scene(folder):
    """One sweep precedes the first sample."""
    nusc = NuScenes(folder.parent, "v", sweeps=True)
    first = int(nusc.samples(["scene-0101"])[0])
    chain = nusc.sweep_chain(int(nusc.key_frames(first, "LIDAR_TOP")), 10)
    assert len(chain) == 2
    for record in chain:
        write_cloud(nusc, record, [[5, 0, 0, 1, 2], [0.5, -0.5, 3, 1, 2]])
    points, lag = load_sweeps(nusc, first, 10)
    # The square of 1 m is left out, and the first point stands where it is.
    assert len(points) == 2 and points[0].tolist() == pytest.approx([5, 0, 0, 1], abs=1e-5)
    assert lag[0] == 0 and lag[1] > 0


def test_files(tmp_path):
    path = tmp_path / "x.pcd.bin"
    with pytest.raises(FileNotFoundError, match=r"x\.pcd\.bin: there is no such point cloud"):
        load_points(path)
    path.write_bytes(b"123")
    with pytest.raises(ValueError, match=r"x\.pcd\.bin: must hold rows of 5 numbers of float32, got 3 bytes"):
        load_points(path)
    path.write_bytes(b"")
    assert load_points(path).shape == (0, 5)


def test_depth_maps_hold_the_smallest_depth_of_a_pixel():
    """A camera that looks along z: the point (x, y, z) is at (10 x / z, 10 y / z)."""
    matrix = lidar_to_image(np.diag([10.0, 10.0, 1.0]), np.eye(4))
    far, near = [2.4, 1.2, 4.0], [1.2, 0.6, 2.0]
    border = [0.0, 0.0, 8.0]
    points = np.array([far, near, border, [0.6, 0.3, 1.0], [-1.2, 0.6, 2.0], [0, 0, -3.0], [4.0, 0, 2.0]])
    maps = depth_maps(points, np.stack([matrix, matrix]), (8, 12))
    wanted = np.zeros((8, 12), np.float32)
    wanted[3, 6], wanted[0, 0] = 2, 8
    np.testing.assert_array_equal(maps, [wanted, wanted])
    assert maps.dtype == np.float32
    assert not depth_maps(points[:0], matrix[None], (8, 12)).any()


def test_depth_maps_of_many_points_by_a_loop():
    generator = np.random.default_rng(0)
    points = generator.uniform(-20, 20, (3000, 3))
    matrices = lidar_to_image(np.array([[2.0, 0, 2], [0, 2, 1.5], [0, 0, 1]]), np.eye(4))[None]
    maps = depth_maps(points, matrices, (3, 4))
    wanted = np.zeros((3, 4))
    for x, y, z in points:
        u, v = (2 * x + 2 * z) / z, (2 * y + 1.5 * z) / z
        if z > 1 and 0 <= u < 4 and 0 <= v < 3:
            cell = int(v), int(u)
            wanted[cell] = min(z, wanted[cell] or np.inf)
    np.testing.assert_allclose(maps[0], wanted, rtol=1e-6)
    assert (wanted > 0).all()
