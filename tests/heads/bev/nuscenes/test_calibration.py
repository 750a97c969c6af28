"""The chain of frames against what nuScenes' devkit and the published BEVFormer compute."""

import json

import golden_files
import numpy as np
import pytest
import torch

from attnzoo.heads.bev.nuscenes.calibration import (
    camera_intrinsics,
    can_bus,
    can_bus_step,
    ego_to_global,
    lidar_to_image,
    rigid,
    rigid_inverse,
    sensor_to_ego,
    sensor_to_lidar,
)
from attnzoo.heads.bev.nuscenes.lidar import project
from attnzoo.heads.bev.nuscenes.tables import NuScenes

GOLDEN = golden_files.load("nuscenes_calibration")


def chain():
    """(cameras, 4, 4) from cameras to the LiDAR, and the intrinsics."""
    cameras, lidar = GOLDEN["kwargs"]["cameras"], GOLDEN["kwargs"]["lidar"]

    def matrix(entries, name):
        return rigid([x[f"{name}_translation"] for x in entries], [x[f"{name}_rotation"] for x in entries])

    camera_global = matrix(cameras, "ego2global") @ matrix(cameras, "cam2ego")
    lidar_global = matrix([lidar], "ego2global") @ matrix([lidar], "lidar2ego")
    return sensor_to_lidar(camera_global, lidar_global), np.array([camera["intrinsic"] for camera in cameras])


def test_the_published_chain():
    camera_lidar, intrinsics = chain()
    lidar2img = lidar_to_image(intrinsics, camera_lidar, GOLDEN["kwargs"]["image_scale"])
    points = 20 * golden_files.noise(GOLDEN["input"]["shape"], GOLDEN["input"]["seed"]).numpy()
    pixels, depth = project(points, lidar2img)
    found = {
        "sensor2lidar_rotation": camera_lidar[:, :3, :3],
        "sensor2lidar_translation": camera_lidar[:, :3, 3],
        "lidar2img": lidar2img,
        "depth": depth,
        "pixels_seen": pixels[depth > 1e-5],
    }
    assert found.keys() == GOLDEN["outputs"].keys()
    for name, value in found.items():
        assert golden_files.error(torch.from_numpy(value), GOLDEN["outputs"][name]) < 1e-6, name


def test_matrices_of_the_tables(nusc):
    for token, golden in golden_files.load("nuscenes_geometry")["outputs"]["transform_matrices"].items():
        record = nusc.table("sample_data").row(token)
        assert nusc.channels[int(nusc.sensor_channels(record))] == golden["channel"]
        ego, sensor = ego_to_global(nusc, record), sensor_to_ego(nusc, record)
        for matrix, name in ((ego, "ego_to_global"), (rigid_inverse(ego), "global_to_ego")):
            np.testing.assert_allclose(matrix, golden[name], rtol=1e-9, atol=1e-9)
        for matrix, name in ((sensor, "sensor_to_ego"), (rigid_inverse(sensor), "ego_to_sensor")):
            np.testing.assert_allclose(matrix, golden[name], rtol=1e-9, atol=1e-9)


def test_scales_of_both_sides():
    camera_lidar, intrinsics = chain()
    whole = lidar_to_image(intrinsics, camera_lidar)
    scaled = lidar_to_image(intrinsics, camera_lidar, (0.5, 0.25))
    np.testing.assert_allclose(scaled[:, :2], whole[:, :2] * np.array([0.5, 0.25])[:, None])
    np.testing.assert_allclose(scaled[:, 2:], whole[:, 2:])


def test_can_bus_without_files(nusc):
    first, second = nusc.samples(["scene-0101"])[:2]
    frames = [can_bus(nusc, sample, int(nusc.key_frames(sample, "LIDAR_TOP"))) for sample in (first, second)]
    poses = [ego_to_global(nusc, int(nusc.key_frames(sample, "LIDAR_TOP"))) for sample in (first, second)]
    for numbers, pose in zip(frames, poses, strict=True):
        assert numbers.shape == (18,) and (numbers[7:16] == 0).all()
        np.testing.assert_allclose(numbers[:3], pose[:3, 3])
        yaw = np.arctan2(pose[1, 0], pose[0, 0]) % (2 * np.pi)
        np.testing.assert_allclose(numbers[-2:], [yaw, np.degrees(yaw)])
    start, step = can_bus_step(frames[0], None), can_bus_step(frames[1], frames[0])
    assert (start[:3] == 0).all() and start[-1] == 0 and start[-2] == frames[0][-2]
    np.testing.assert_allclose(step[:3], poses[1][:3, 3] - poses[0][:3, 3])
    np.testing.assert_allclose(step[-1], np.degrees(frames[1][-2] - frames[0][-2]))
    np.testing.assert_allclose(step[3:7], frames[1][3:7])


def test_the_absolute_yaw_is_positive(folder, change):
    change("ego_pose", lambda rows: [row.update(rotation=[0.8, 0, 0, -0.6]) for row in rows])
    nusc = NuScenes(folder.parent, "v")
    numbers = can_bus(nusc, 0, int(nusc.key_frames(0, "LIDAR_TOP")))
    yaw = 2 * np.pi - 2 * np.arctan2(0.6, 0.8)
    np.testing.assert_allclose(numbers[-2:], [yaw, np.degrees(yaw)])


def test_a_heading_that_passes_east_turns_little():
    west, east = np.zeros(18), np.zeros(18)
    west[-1], east[-1] = 359.0, 1.5
    assert can_bus_step(east, west)[-1] == 2.5 and can_bus_step(west, east)[-1] == -2.5


def test_can_bus_of_a_file(folder):
    root = folder.parent
    nusc = NuScenes(root, "v")
    sample = nusc.samples(["scene-0101"])[1]
    time = int(nusc.table("sample")["timestamp"][sample])
    (root / "can_bus").mkdir()
    path = root / "can_bus" / "scene-0101_pose.json"

    def message(utime, number):
        return {"utime": utime, "accel": [number, 1, 2], "rotation_rate": [number, 3, 4], "vel": [number, 5, 6]}

    path.write_text(json.dumps([message(time - 5, 7), message(time, 8), message(time + 5, 9), message(time + 9, 10)]))
    lidar = int(nusc.key_frames(sample, "LIDAR_TOP"))
    assert can_bus(nusc, sample, lidar)[7:16].tolist() == [9, 1, 2, 9, 3, 4, 9, 5, 6]
    path.write_text(json.dumps([message(time - 5, 7)]))
    assert can_bus(nusc, sample, lidar)[7] == 7
    for content in ("[]", "{", '[{"utime": 1}]', json.dumps([{**message(time + 1, 1), "vel": [1]}])):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"scene-0101_pose\.json: must be a list of messages"):
            can_bus(nusc, sample, lidar)


def test_refused(nusc, change, folder):
    camera_lidar, intrinsics = chain()
    with pytest.raises(ValueError, match=r"intrinsics must have the shape \(\.\.\., 3, 3\), got \(3, 3, 4\)"):
        lidar_to_image(np.zeros((3, 3, 4)), camera_lidar)
    with pytest.raises(ValueError, match="intrinsics must be finite and not singular"):
        lidar_to_image(0 * intrinsics, camera_lidar)
    with pytest.raises(ValueError, match="scale=0: must be above 0"):
        lidar_to_image(intrinsics, camera_lidar, 0)
    with pytest.raises(ValueError, match=r"translations must have the shape \(\.\.\., 3\), got \(2,\)"):
        rigid([1.0, 2.0], [1.0, 0.0, 0.0, 0.0])
    lidar = int(nusc.key_frames(0, "LIDAR_TOP"))
    with pytest.raises(ValueError, match=r"calibrated_sensor\.json: row '\w+': camera_intrinsic must be 3 x 3 and not"):
        camera_intrinsics(nusc, lidar)
