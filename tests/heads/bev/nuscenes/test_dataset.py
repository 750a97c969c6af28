"""Samples from the tables to the tensors of a batch, with pictures and point clouds made here."""

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate

from attnzoo.heads.bev.nuscenes import sampler
from attnzoo.heads.bev.nuscenes.boxes import annotated_boxes
from attnzoo.heads.bev.nuscenes.calibration import can_bus, can_bus_step, rigid_inverse, sensor_to_global
from attnzoo.heads.bev.nuscenes.classes import CAMERAS, CLASSES
from attnzoo.heads.bev.nuscenes.dataset import NuScenesDataset
from attnzoo.heads.bev.nuscenes.lidar import depth_maps, load_points, project
from attnzoo.heads.bev.nuscenes.tables import NuScenes
from attnzoo.heads.bev.nuscenes.transforms import (
    BoxRangeFilter,
    DrawBEVMap,
    LoadLidarDepth,
    LoadMultiViewImages,
    MultiViewPhotoMetricDistortion,
    ResizeMultiViewImages,
)
from attnzoo.heads.mm.registry import DATA_SAMPLERS, DATASETS

SCENES = ["scene-0101", "scene-0102"]
WIDTH, HEIGHT = 160, 90
RANGE = [-32, -32, -5, 32, 32, 3]
PIPELINE = [
    dict(type="attnzoo.LoadMultiViewImages"),
    dict(type="attnzoo.MultiViewPhotoMetricDistortion"),
    dict(type="attnzoo.ResizeMultiViewImages", scale=0.5),
    dict(type="attnzoo.LoadLidarDepth"),
    dict(type="attnzoo.BoxRangeFilter", point_range=[-30, -30, -5, 30, 30, 3]),
    dict(type="attnzoo.PackBEVInputs"),
]


@pytest.fixture(scope="module")
def root(nusc):
    """The golden tables with a small picture of each camera and a cloud of each sample."""
    generator = np.random.default_rng(0)
    samples = nusc.samples(SCENES)
    for channel in CAMERAS:
        for record in nusc.key_frames(samples, channel):
            path = nusc.path(int(record))
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), generator.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
    for record in nusc.key_frames(samples, "LIDAR_TOP"):
        path = nusc.path(int(record))
        path.parent.mkdir(parents=True, exist_ok=True)
        points = generator.uniform(-40, 40, (20_000, 5)).astype("<f4")
        points[:, 2] /= 10
        points.tofile(path)
    return nusc.dataroot


def dataset(root, pipeline=PIPELINE, split=SCENES, **kwargs) -> NuScenesDataset:
    return DATASETS.build(
        dict(
            type="attnzoo.NuScenesDataset",
            data_root=str(root),
            version="v1.0-golden",
            split=split,
            pipeline=pipeline,
            **kwargs,
        )
    )


def test_a_batch_of_frames_with_history(root, nusc):
    data = dataset(root, history=2)
    assert len(data) == 7 and data.metainfo["classes"] == CLASSES
    batch = pseudo_collate([data[3], data[6]])
    assert [x.shape for x in batch["inputs"]] == [(3, 6, 3, 45, 80)] * 2
    for sample, index in zip(batch["data_samples"], (3, 6), strict=True):
        assert sample.token == nusc.table("sample").token(int(nusc.samples(SCENES)[index]))
        assert sample.lidar2img.shape == (3, 6, 4, 4) and sample.can_bus.shape == (3, 18)
        assert sample.img_shape == (45, 80) and sample.gt_depth.shape == (6, 45, 80) and sample.gt_depth.any()
        boxes, labels = sample.gt_instances_3d.bboxes_3d, sample.gt_instances_3d.labels_3d
        assert boxes.dtype == torch.float32 and len(boxes) == len(labels) > 0 and boxes[:, :2].abs().max() < 30
        assert sample.has_previous.tolist() == [False, True, True]
        assert not sample.can_bus[0, :3].any() and sample.can_bus[1:, :3].any(1).all()


def test_frames_of_training_are_relative_to_each_other(root, nusc):
    data = dataset(root, history=2)
    samples = nusc.samples(["scene-0101"]).tolist()
    buses = {row: can_bus(nusc, row, int(nusc.key_frames(row, "LIDAR_TOP"))) for row in samples}
    tokens = {nusc.table("sample").token(row): row for row in samples}
    pairs = set()
    for _ in range(20):
        frames = data.frames(samples[3], samples[2::-1])
        rows = [tokens[frame["token"]] for frame in frames]
        pairs.add(tuple(rows[:2]))
        assert [frame["is_history"] for frame in frames] == [True, True, False]
        for frame, row, before in zip(frames, rows, [None, *rows], strict=False):
            step = can_bus_step(buses[row], None if before is None else buses[before])
            np.testing.assert_array_equal(frame["can_bus"], step)
    # Two of three, at random.
    assert pairs == {(samples[0], samples[1]), (samples[0], samples[2]), (samples[1], samples[2])}
    # At the start of a scene the oldest comes again, and starts anew.
    for index, wanted in ((0, [0, 0, 0]), (1, [0, 0, 1]), (2, [0, 1, 2])):
        frames = data.frames(samples[index], samples[:index][::-1])
        assert [tokens[frame["token"]] for frame in frames] == [samples[i] for i in wanted]
        starts = [not frame["has_previous"] for frame in frames]
        assert starts == {0: [True] * 3, 1: [True, True, False], 2: [True, False, False]}[index]
    assert not dataset(root).frames(samples[3], [])[0]["has_previous"]


def test_testing_follows_the_scene(root, nusc):
    data = dataset(root, history=2, test_mode=True)
    found = [data[i] for i in range(7)]
    assert {x["inputs"].shape for x in found} == {(6, 3, 45, 80)}
    samples = [x["data_samples"] for x in found]
    assert [x.has_previous for x in samples] == [False, True, True, True, False, True, True]
    for before, now in pairwise(samples):
        assert now.prev == (before.token if now.has_previous else "")
        way = now.ego2global[:3, 3] - before.ego2global[:3, 3]
        np.testing.assert_allclose(now.can_bus[:3], way if now.has_previous else 0)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_scenes_stay_whole_in_several_processes(root, nusc, monkeypatch, processes):
    data = dataset(root, test_mode=True, split=["scene-0102", "scene-0101"])
    found = []
    for rank in range(processes):
        monkeypatch.setattr(sampler, "get_dist_info", lambda rank=rank: (rank, processes))
        built = DATA_SAMPLERS.build(dict(type="attnzoo.SceneSampler", dataset=data, seed=0))
        assert len(built) == len(list(built))
        found.append(list(built))
    # Of 3 and 4 samples; a third process has nothing to do.
    assert found == {1: [[*range(7)]], 2: [[0, 1, 2], [3, 4, 5, 6]], 3: [[0, 1, 2], [3, 4, 5, 6], []]}[processes]


def test_objects_have_points_and_classes(root, nusc):
    classes = ("car", "pedestrian", "bus", "bicycle")
    data, table = dataset(root, classes=classes), nusc.table("sample_annotation")
    unseen = 0
    for sample in nusc.samples(SCENES).tolist():
        rows = nusc.annotations(sample)
        labels = nusc.annotation_labels(rows, classes)
        seen = (table["num_lidar_pts"] + table["num_radar_pts"])[rows] > 0
        kept = (labels >= 0) & seen
        unseen += ((labels >= 0) & ~seen).sum()
        lidar = sensor_to_global(nusc, nusc.key_frames(sample, "LIDAR_TOP"))
        wanted = annotated_boxes(nusc, rows[kept]).moved(rigid_inverse(lidar)).rows()
        frame = data.frames(sample, [])[0]
        np.testing.assert_array_equal(frame["gt_bboxes_3d"], wanted)
        np.testing.assert_array_equal(frame["gt_labels_3d"], labels[kept])
    assert unseen


def loaded(root, *steps, **kwargs) -> dict:
    frame = dataset(root, pipeline=[], **kwargs).frames(0, [])[0]
    for step in (LoadMultiViewImages(), *steps):
        frame = step(frame)
    return frame


def test_pictures_in_the_order_of_the_cameras(root, nusc):
    frame = loaded(root, cameras=("CAM_BACK", "CAM_FRONT"))
    assert ["CAM_BACK/" in frame["img_path"][0], "CAM_FRONT/" in frame["img_path"][1]] == [True, True]
    whole = loaded(root)
    np.testing.assert_array_equal(frame["lidar2img"], whole["lidar2img"][[CAMERAS.index("CAM_BACK"), 0]])
    np.testing.assert_array_equal(frame["img"][1], cv2.imread(frame["img_path"][1]))
    assert whole["img_shape"] == (HEIGHT, WIDTH) and whole["img"][0].dtype == np.float32


def test_resizing_moves_the_projection(root):
    """A point is at the same place of the picture."""
    before, after = loaded(root), loaded(root, ResizeMultiViewImages(0.77))
    points = np.random.default_rng(0).normal(size=(50, 3)) * 20
    pixels, depth = project(points, before["lidar2img"])
    moved, same = project(points, after["lidar2img"])
    np.testing.assert_allclose(depth, same)
    # 160 x 90 becomes 123 x 69.
    np.testing.assert_allclose(moved, pixels * np.array([123 / 160, 69 / 90]))
    assert after["img_shape"] == (69, 123) == after["img"][0].shape[:2]


def test_distortion_is_drawn_for_each_picture(root):
    frame = loaded(root)
    frame["img"] = [np.full((4, 4, 3), 100, np.float32) for _ in range(6)]
    np.random.seed(0)
    distorted = MultiViewPhotoMetricDistortion()(frame)["img"]
    # One or the other may stay as it is.
    assert len({image.tobytes() for image in distorted}) > 4 and distorted[0].shape == (4, 4, 3)


def test_depth_of_the_lidar(root):
    frame = loaded(root, ResizeMultiViewImages(0.5), LoadLidarDepth())
    wanted = depth_maps(load_points(Path(frame["lidar_path"])), frame["lidar2img"], (45, 80))
    np.testing.assert_array_equal(frame["gt_depth"], wanted)
    assert (wanted > 0).any()


def test_depth_of_history(root):
    steps = [dict(step, history=True) if "LidarDepth" in step["type"] else step for step in PIPELINE]
    sample = dataset(root, pipeline=steps, history=1)[2]["data_samples"]
    assert sample.gt_depth.shape == (2, 6, 45, 80) and sample.gt_depth.flatten(1).any(1).all()


def test_bev_maps(root):
    """Vehicles by their boxes; the ground by the picture of the scene's log."""
    frame = dataset(root, pipeline=[], maps=True).frames(0, [])[0]
    picture = Path(frame["map_path"]["semantic_prior"])
    picture.parent.mkdir(exist_ok=True)
    # All east of the vehicle can be driven on.
    east, north = frame["ego2global"][:2, 3]
    mask = np.zeros((10 * int(north + 100), 10 * int(east + 100)), np.uint8)
    mask[:, round(10 * east) :] = 255
    cv2.imwrite(str(picture), mask)
    drawn = DrawBEVMap(["drivable_area", "vehicle"], 64, 48, RANGE)(dict(frame))["gt_bev_map"]
    assert drawn.shape == (2, 64, 48) and drawn.dtype == bool and drawn[1].any()
    assert 0.4 < drawn[0].mean() < 0.6
    x, y = (np.argwhere(drawn[0])[:, ::-1] + 0.5 - [24, 32]).mean(0) * [64 / 48, 1]
    assert (frame["ego2global"] @ frame["lidar2ego"])[0, :2] @ [x, y] > 10
    vehicles = [CLASSES.index(name) for name in ("car", "truck", "bus", "trailer", "construction_vehicle")]
    large = np.isin(frame["gt_labels_3d"], vehicles) & (np.abs(frame["gt_bboxes_3d"][:, :2]) < 30).all(1)
    column, row = ((frame["gt_bboxes_3d"][large, :2] + 32) / 64 * [48, 64]).astype(int).T
    assert large.any() and drawn[1][row, column].all()
    with pytest.raises(ValueError, match=r"map\.json has no map of the category 'lane_divider' for its log"):
        DrawBEVMap(["lane_divider"], 64, 48, RANGE)(dict(frame))
    with pytest.raises(ValueError, match=r"classes has 'drivable_area': the data set must have maps=True"):
        DrawBEVMap(["drivable_area"], 4, 4, RANGE)(dataset(root, pipeline=[]).frames(0, [])[0])


def test_boxes_out_of_range_are_left_out():
    boxes = np.zeros((4, 9))
    boxes[:, 0], boxes[:, 1], boxes[:, 2] = [1, 5, -5.1, 0], [1, 0, 0, 9.9], [100, 0, 0, 0]
    frame = {"gt_bboxes_3d": boxes, "gt_labels_3d": np.arange(4)}
    assert BoxRangeFilter([-5, -10, -1, 5, 10, 1])(frame)["gt_labels_3d"].tolist() == [0, 3]
    assert frame["gt_bboxes_3d"].shape == (2, 9)


def test_missing_and_broken_files(folder, root):
    nusc = NuScenes(folder.parent, "v")
    (folder.parent / "samples").symlink_to(root / "samples")
    pipeline = [step for step in PIPELINE if step["type"] != "attnzoo.MultiViewPhotoMetricDistortion"]
    data = NuScenesDataset(str(folder.parent), "v", SCENES, pipeline=pipeline)
    assert data[0]["inputs"].shape == (6, 3, 45, 80)
    (folder.parent / "samples").unlink()
    with pytest.raises(FileNotFoundError, match=r"CAM_FRONT/.*\.jpg: there is no such image"):
        data[0]
    sample = int(nusc.samples(SCENES)[0])
    shape = (HEIGHT, WIDTH, 3)
    for channel in CAMERAS:
        path = nusc.path(int(nusc.key_frames(sample, channel)))
        path.parent.mkdir(parents=True)
        cv2.imwrite(str(path), np.zeros(shape, np.uint8))
    with pytest.raises(FileNotFoundError, match=r"\.pcd\.bin: there is no such point cloud"):
        data[0]
    cv2.imwrite(str(path), np.zeros((5, 5, 3), np.uint8))
    with pytest.raises(ValueError, match=r"CAM_BACK_RIGHT/.*\.jpg: the shape is \(5, 5, 3\), that of .*CAM_FRONT/"):
        data[0]
    path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"CAM_BACK_RIGHT/.*\.jpg: not an image that can be read"):
        data[0]


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        (dict(classes=["tram"]), ValueError, r"classes\[0\]='tram': allowed are"),
        (dict(cameras=["CAM_UP"]), ValueError, r"sensor\.json: has no channel 'CAM_UP'"),
        (dict(cameras=[]), ValueError, "cameras must have at least one channel"),
        (dict(history=-1), ValueError, "history=-1: must be 0 or more"),
        (dict(split="train"), ValueError, r"scene\.json: has no scene 'scene-0001'"),
        (dict(split=["x"]), ValueError, r"scene\.json: has no scene 'x'"),
        (dict(version="v9"), FileNotFoundError, "v9: there is no such folder of nuScenes tables"),
    ],
)
def test_wrong_arguments(nusc, kwargs, error, message):
    arguments = dict(data_root=str(nusc.dataroot), version=nusc.folder.name, split=SCENES) | kwargs
    with pytest.raises(error, match=message):
        NuScenesDataset(**arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResizeMultiViewImages(0), "scale=0: must be above 0"),
        (lambda: BoxRangeFilter([1, 2]), r"point_range=\[1, 2\]: must be \(x_min"),
        (lambda: DrawBEVMap(["tram"], 4, 4, RANGE), r"classes\[0\]='tram': allowed are"),
        (lambda: DrawBEVMap(["vehicle"] * 2, 4, 4, RANGE), "must be different names"),
        (lambda: DrawBEVMap(["vehicle"], 0, 4, RANGE), "rows=0: must be 1 or more"),
        (lambda: ResizeMultiViewImages(0.001)({"img_shape": (90, 160)}), r"scale=0\.001: nothing is left of images"),
    ],
)
def test_wrong_arguments_of_transforms(make, message):
    with pytest.raises(ValueError, match=message):
        make()
