"""The data set: its files and tables, read by the reader of nuScenes, against the scenes that it was made of."""

import itertools
import json
import re

import numpy as np
import pytest
from PIL import Image
from tools_helpers import contents

from attnzoo.heads.bev.nuscenes import boxes as nuscenes_boxes
from attnzoo.heads.bev.nuscenes import calibration, lidar, rotations
from attnzoo.heads.bev.nuscenes.classes import CAMERAS, CLASSES, LIDAR
from attnzoo.heads.bev.nuscenes.maps import BEVGrid, GroundMap
from attnzoo.heads.bev.nuscenes.tables import NuScenes
from attnzoo.tools.common.errors import UserError
from attnzoo.tools.data.driving.dataset import make_driving_data
from attnzoo.tools.data.driving.recording import make_recording
from attnzoo.tools.data.driving.rendering import cast
from attnzoo.tools.data.driving.scene import boxes_at
from attnzoo.tools.data.driving.sensors import sensor_pose
from attnzoo.tools.data.driving.tables import TABLES, visibility_token

SAMPLES, SIZE = 3, (128, 72)


@pytest.fixture(scope="module")
def nusc(data):
    return NuScenes(data.root, data.version, sweeps=True)


@pytest.fixture(scope="module")
def tables(data):
    return {name: json.loads((data.root / data.version / f"{name}.json").read_text()) for name in TABLES}


@pytest.fixture(scope="module")
def recordings(small):
    """What the scenes were made of, by name."""
    found = [make_recording(split, 0, small["seed"], SAMPLES, SIZE, 360) for split in ("train", "val")]
    return {recording.scene.name: recording for recording in found}


@pytest.fixture(scope="module")
def cases(nusc, recordings):
    """Of each sample: its scene, its record of the LiDAR, those of the cameras, and their matrices."""
    found = []
    for row, name in enumerate(nusc.scenes):
        for sample in nusc.scene_samples(row):
            own = int(nusc.key_frames(int(sample), LIDAR))
            records = np.array([int(nusc.key_frames(int(sample), camera)) for camera in CAMERAS])
            at_lidar = calibration.sensor_to_global(nusc, own)
            camera_lidar = calibration.sensor_to_lidar(calibration.sensor_to_global(nusc, records), at_lidar)
            matrices = calibration.lidar_to_image(calibration.camera_intrinsics(nusc, records), camera_lidar)
            found.append((recordings[name], int(sample), own, records, matrices))
    return found


def seen_by(recording, nusc, record, camera, factor=1):
    """The rays through the middles of pixels at the time of a record."""
    time = recording.seconds(int(nusc.table("sample_data")["timestamp"][record]))
    sensor = recording.rig[camera]
    place, axes = sensor_pose(sensor, *recording.scene.ego.pose(time))
    intrinsic = sensor.intrinsic * np.array([[factor], [factor], [1]])
    size = (SIZE[0] * factor, SIZE[1] * factor)
    return time, cast(recording.scene, recording.ground, boxes_at(recording.scene, time), place, axes, intrinsic, size)


def test_files_are_those_of_the_tables(data, tables):
    files = set(contents(data.root))
    named = {row["filename"] for row in [*tables["sample_data"], *tables["map"]]}
    assert len(named) == len(tables["sample_data"]) + len(tables["map"])
    others = {f"{data.version}/{name}.json" for name in (*TABLES, "splits")} | {"driving.json"}
    assert files == named | others
    assert json.loads((data.root / data.version / "splits.json").read_text()) == data.splits
    assert data.splits == {"train": ["scene-0001"], "val": ["scene-5001"]}


def test_tokens_are_unique_and_point_to_rows(tables):
    known = {name: {row["token"] for row in rows} for name, rows in tables.items()}
    fields = {"first_sample_token": "sample", "last_sample_token": "sample"}
    fields |= {f"{end}_annotation_token": "sample_annotation" for end in ("first", "last")}
    checked = 0
    for name, rows in tables.items():
        assert len(known[name]) == len(rows) > 0
        for row in rows:
            for field, value in row.items():
                target = fields.get(field) or (
                    re.sub("_tokens?$", "", field) if re.search("_tokens?$", field) else None
                )
                target = name if field in ("prev", "next") and value else target
                for token in value if isinstance(value, list) and target else [value] if target else ():
                    assert token in known[target], (name, field)
                    checked += 1
    assert checked > 1000
    assert all(re.fullmatch("[0-9a-f]{32}", token) for name in TABLES if name != "visibility" for token in known[name])


def test_records_are_chained_in_time(tables):
    rows = {row["token"]: row for row in tables["sample_data"]}
    samples = {row["token"]: row for row in tables["sample"]}
    channels = {row["token"]: row["channel"] for row in tables["sensor"]}
    sensors = {row["token"]: channels[row["sensor_token"]] for row in tables["calibrated_sensor"]}
    poses = {row["token"]: row["timestamp"] for row in tables["ego_pose"]}
    starts = [row for row in rows.values() if not row["prev"]]
    assert len(starts) == 2 * 7
    for row in starts:
        chain = [row]
        while chain[-1]["next"]:
            chain.append(rows[chain[-1]["next"]])
            assert chain[-1]["prev"] == chain[-2]["token"]
        channel = sensors[row["calibrated_sensor_token"]]
        times = [item["timestamp"] for item in chain]
        own = [samples[item["sample_token"]]["timestamp"] for item in chain]
        assert {sensors[item["calibrated_sensor_token"]] for item in chain} == {channel}
        assert [poses[item["ego_pose_token"]] for item in chain] == times and times == sorted(set(times))
        if channel == LIDAR:
            # A sweep before each key frame, at whose time it is.
            assert [item["is_key_frame"] for item in chain] == [False, True] * SAMPLES
            assert [there - time for there, time in zip(own, times, strict=True)] == [250000, 0] * SAMPLES
            assert set(np.diff(times)) == {250000}
        else:
            assert len(chain) == SAMPLES and all(item["is_key_frame"] for item in chain)
            late = [there - time for there, time in zip(own, times, strict=True)]
            assert all(0 < value < 46000 for value in late) and len(set(late)) == SAMPLES
            assert {(item["width"], item["height"]) for item in chain} == {SIZE}


def test_instances_are_chained(tables):
    rows = {row["token"]: row for row in tables["sample_annotation"]}
    times = {row["token"]: row["timestamp"] for row in tables["sample"]}
    count = 0
    for instance in tables["instance"]:
        chain = [rows[instance["first_annotation_token"]]]
        while chain[-1]["next"]:
            chain.append(rows[chain[-1]["next"]])
            assert chain[-1]["prev"] == chain[-2]["token"]
        assert chain[-1]["token"] == instance["last_annotation_token"] and not chain[0]["prev"]
        assert len(chain) == instance["nbr_annotations"]
        assert {row["instance_token"] for row in chain} == {instance["token"]}
        assert len({str(row["size"]) for row in chain}) == 1
        stamps = [times[row["sample_token"]] for row in chain]
        assert stamps == sorted(set(stamps))
        count += len(chain)
    assert count == len(rows)


def test_headings_and_velocities_are_those_of_the_motion(nusc, cases):
    errors = []
    for recording, sample, *_ in cases:
        annotations = nusc.annotations(sample)
        boxes = nuscenes_boxes.annotated_boxes(nusc, annotations)
        time = recording.seconds(int(nusc.table("sample")["timestamp"][sample]))
        truth = boxes_at(recording.scene, time)
        yaws = rotations.yaw_of(boxes.orientations)
        for center, velocity, yaw in zip(boxes.centers, boxes.velocities, yaws, strict=True):
            index = np.hypot(*(truth[:, :2] - center[:2]).T).argmin()
            assert np.cos(yaw - truth[index, 2]) > 1 - 1e-9
            motion = recording.scene.objects[index].motion
            ahead = motion.speed * np.array([np.cos(truth[index, 2]), np.sin(truth[index, 2])])
            # Not exact at the ends of a chain in a bend, where the difference is one-sided.
            errors.append(np.hypot(*(velocity[:2] - ahead)))
    assert len(errors) > 100 and max(errors) < 0.5 and np.median(errors) < 0.01


def test_boxes_hold_the_lidar_points_that_are_counted(nusc, cases):
    counted = 0
    for _, sample, own, *_ in cases:
        annotations = nusc.annotations(sample)
        inside = calibration.rigid_inverse(calibration.sensor_to_global(nusc, own))
        boxes = nuscenes_boxes.annotated_boxes(nusc, annotations).moved(inside)
        points = lidar.load_points(nusc.path(own))
        counts = boxes.contain(points[:, :3]).sum(1)
        np.testing.assert_array_equal(counts, nusc.table("sample_annotation")["num_lidar_pts"][annotations])
        counted += counts.sum()
    assert counted > 1000


def test_sweeps_lie_on_what_stands(nusc, cases):
    """Points of the sweep before a sample, brought to the sample, are on the ground and in the boxes that stand."""
    on_boxes = 0
    for _, sample, own, *_ in cases:
        points, lags = lidar.load_sweeps(nusc, sample, 2)
        points = points[lags > 0]
        at_lidar = calibration.sensor_to_global(nusc, own)
        heights = (points[:, :3] @ at_lidar[:3, :3].T + at_lidar[:3, 3])[:, 2]
        assert heights.min() > -0.02 and (abs(heights) < 0.02).mean() > 0.3
        boxes = nuscenes_boxes.annotated_boxes(nusc, nusc.annotations(sample))
        boxes = boxes.moved(calibration.rigid_inverse(at_lidar))
        stands = np.hypot(*boxes.velocities[:, :2].T) < 0.01
        on_boxes += boxes[stands].contain(points[:, :3]).sum()
    assert on_boxes > 100


def test_boxes_in_images_are_where_the_objects_are(nusc, cases):
    """The pixels of an object lie in its projected box, and fill it where nothing hides it."""
    labels, checked, full = set(), 0, 0
    for (recording, sample, own, records, _), (number, camera) in itertools.product(cases, enumerate(CAMERAS)):
        time, view = seen_by(recording, nusc, records[number], camera)
        annotations = nusc.annotations(sample)
        boxes = nuscenes_boxes.annotated_boxes(nusc, annotations)
        # To the camera's time: in 0.05 s a car comes half a metre far.
        lag = time - recording.seconds(int(nusc.table("sample_data")["timestamp"][own]))
        centers = boxes.centers + lag * np.nan_to_num(boxes.velocities)
        boxes = nuscenes_boxes.Boxes(centers, boxes.sizes, boxes.orientations, boxes.velocities)
        boxes = boxes.moved(calibration.rigid_inverse(calibration.sensor_to_global(nusc, records[number])))
        pixels, depths = nuscenes_boxes.corner_pixels(boxes, calibration.camera_intrinsics(nusc, records[number]))
        truth = boxes_at(recording.scene, time)
        for index in set(view.instance[view.instance >= 0].tolist()):
            away = np.hypot(*(centers[:, :2] - truth[index, :2]).T)
            if away.min() > 0.2 or (depths[away.argmin()] < 0.5).any():
                continue
            rows, columns = np.nonzero(view.instance == index)
            low, high = (function(pixels[away.argmin()], axis=0) for function in (np.min, np.max))
            assert low[0] - 1 < columns.min() + 0.5 and columns.max() + 0.5 < high[0] + 1
            assert low[1] - 1 < rows.min() + 0.5 and rows.max() + 0.5 < high[1] + 1
            near, far = (function(depths[away.argmin()]) for function in (np.min, np.max))
            depth = view.depth[rows, columns]
            assert near - 0.1 < depth.min() and depth.max() < far + 0.1
            labels.add(recording.scene.objects[index].category)
            checked += 1
            if len(rows) == view.whole[index] and (low > 1).all() and (high < np.array(SIZE) - 1).all():
                # A bus fills its box, others reach its sides and its top here and there.
                least = 1.0 if recording.scene.objects[index].category == "vehicle.bus.rigid" else 0.6
                assert columns.max() + 1 - columns.min() > least * (high[0] - low[0]) - 2.5
                assert rows.max() + 1 - rows.min() > least * (high[1] - low[1]) - 2.5
                full += 1
    assert checked > 80 and full > 10 and len(labels) >= 5


def test_images_show_the_scene_at_their_time(nusc, cases):
    for recording, _, _, records, _ in cases[::2]:
        for record, camera in zip(records, CAMERAS, strict=True):
            _, view = seen_by(recording, nusc, record, camera)
            with Image.open(nusc.path(int(record))) as image:
                assert image.size == SIZE and image.format == "JPEG"
                pixels = np.asarray(image).transpose(2, 0, 1) / 255
            assert abs(pixels - view.colour).mean() < 0.03
            # As like as with no other image of a pixel's shift.
            assert abs(pixels[:, 1:] - view.colour[:, :-1]).mean() > abs(pixels - view.colour).mean()


def test_lidar_points_in_images_have_the_rendered_depth(nusc, cases):
    for recording, _, own, records, matrices in cases[1::3]:
        points = lidar.load_points(nusc.path(own))
        same, compared, factor = 0, 0, 4
        for number, camera in enumerate(CAMERAS):
            _, view = seen_by(recording, nusc, records[number], camera, factor)
            pixels, depth = lidar.project(points, matrices[number])
            inside = lidar.in_image(pixels, depth, SIZE)
            columns, rows = (factor * pixels[inside]).astype(int).T
            # The height of a pixel is much ground far away.
            around = [view.depth[(rows + step).clip(0, SIZE[1] * factor - 1), columns] for step in (-1, 0, 1)]
            low, high = np.min(around, 0) * 0.99, np.max(around, 0) * 1.01
            same += ((low < depth[inside]) & (depth[inside] < high)).sum()
            compared += inside.sum()
        # The rest is hidden from the camera, which is elsewhere, or has moved.
        assert compared > 3000 and same > 0.92 * compared


def test_visibility_is_the_share_of_pixels(nusc, cases, tables):
    levels = [visibility_token(*case) for case in ((0, 0), (0, 5), (39, 100), (40, 100), (79, 100), (80, 100), (5, 5))]
    assert "".join(levels) == "1112344"
    tokens = {row["token"]: row["visibility_token"] for row in tables["sample_annotation"]}
    found = []
    for recording, sample, _, records, _ in cases[::4]:
        counts = np.zeros((2, len(recording.scene.objects)), int)
        for record, camera in zip(records, CAMERAS, strict=True):
            # Pictures have 2 × 2 samples a pixel.
            _, view = seen_by(recording, nusc, record, camera, 2)
            counts[0] += [(view.instance == index).sum() for index in range(counts.shape[1])]
            counts[1] += view.whole
        truth = boxes_at(recording.scene, recording.seconds(int(nusc.table("sample")["timestamp"][sample])))
        annotations = nusc.annotations(sample)
        for annotation, center in zip(
            annotations, nusc.table("sample_annotation")["translation"][annotations], strict=True
        ):
            index = np.hypot(*(truth[:, :2] - center[:2]).T).argmin()
            found.append(tokens[nusc.table("sample_annotation").token(annotation)])
            assert found[-1] == visibility_token(*counts[:, index].tolist())
    assert set(found) == set("1234")


def test_attributes_and_classes_are_known_to_the_reader(nusc):
    annotations = np.arange(len(nusc.table("sample_annotation")))
    labels = nusc.annotation_labels(annotations, CLASSES)
    assert (labels >= 0).all() and len(set(labels.tolist())) >= 6
    without = np.isin(labels, [CLASSES.index(name) for name in ("barrier", "traffic_cone")])
    assert ((nusc.annotation_attributes(annotations) == -1) == without).all()
    assert len(nusc.samples("train")) == len(nusc.samples("val")) == SAMPLES


def test_maps_are_under_the_wheels(data, nusc, tables, cases):
    logs = {row["name"]: row["log_token"] for row in tables["scene"]}
    grid = BEVGrid(64, 64, (-32, -32, 32, 32))
    for recording, sample, own, *_ in cases:
        to_global = calibration.sensor_to_global(nusc, own)
        found = {
            row["category"]: GroundMap(data.root / row["filename"])
            for row in tables["map"]
            if logs[recording.scene.name] in row["log_tokens"]
        }
        ground = grid.ground(found["semantic_prior"], to_global)
        lines = grid.ground(found["lane_divider"], to_global)
        # Under the vehicle and 20 m ahead and behind, as roads bend little; where lines are the road is.
        assert ground[12:52, 31:33].max(1).min() > 0 and ground[31:33, 31:33].min() == 1
        assert 0.1 < ground.mean() < 0.7 and 0.01 < (lines > 0).mean() < 0.25
        assert (ground[lines > 0.1] > 0.5).all()
        labels = nusc.annotation_labels(nusc.annotations(sample), ("bus", "truck"))
        boxes = nuscenes_boxes.annotated_boxes(nusc, nusc.annotations(sample)[labels >= 0])
        assert found["semantic_prior"].at(*boxes.centers[:, :2].T).all()


def test_calibration_is_nuscenes_rig(tables):
    channels = {row["token"]: row["channel"] for row in tables["sensor"]}
    looks = {"CAM_FRONT": 0, "CAM_FRONT_LEFT": 55, "CAM_BACK_LEFT": 110, "CAM_BACK_RIGHT": -110, "CAM_FRONT_RIGHT": -55}
    for row in tables["calibrated_sensor"]:
        channel, turn = channels[row["sensor_token"]], rotations.to_matrix(row["rotation"])
        if channel == LIDAR:
            np.testing.assert_allclose(turn, [[0, 1, 0], [-1, 0, 0], [0, 0, 1]], atol=0.05)
            assert row["camera_intrinsic"] == []
            continue
        yaw = np.degrees(np.arctan2(turn[1, 2], turn[0, 2]))
        assert abs((yaw - looks.get(channel, 180) + 180) % 360 - 180) < 3 and turn[2, 1] < -0.99
        view = 2 * np.degrees(np.arctan(SIZE[0] / 2 / row["camera_intrinsic"][0][0]))
        assert abs(view - (110 if channel == "CAM_BACK" else 70)) < 1


def test_the_number_of_processes_changes_nothing(data, small, tmp_path):
    again = make_driving_data(tmp_path / "again", **small, processes=2)
    assert contents(again.root) == contents(data.root)


def test_a_complete_one_is_not_made_again(data, small, monkeypatch):
    monkeypatch.setattr("attnzoo.tools.data.driving.dataset.record", lambda *_: pytest.fail("made again"))
    assert make_driving_data(data.root, **small, processes=1) == data


def test_other_files_are_refused_and_stay(data, small, tmp_path):
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "mine.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"something else than a data set of simulated drives"):
        make_driving_data(tmp_path, **small)
    assert contents(tmp_path) == {"samples/mine.jpg": b"mine"}


def test_one_with_other_parameters_is_replaced_and_a_changed_one_is_not(tmp_path):
    tiny = {"scenes": 1, "held_out": 1, "samples": 1, "image_size": (16, 16), "processes": 1}
    first = make_driving_data(tmp_path / "data", **tiny)
    before = contents(first.root)
    second = make_driving_data(tmp_path / "data", **tiny, seed=1)
    assert contents(second.root).keys() != before.keys()
    image = next((first.root / "samples/CAM_FRONT").iterdir())
    image.write_bytes(b"mine")
    with pytest.raises(UserError, match=rf"{image.name} has been changed"):
        make_driving_data(tmp_path / "data", **tiny)
    assert image.read_bytes() == b"mine" and [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ({"scenes": 0}, ValueError),
        ({"held_out": 5000}, ValueError),
        ({"samples": 41}, ValueError),
        ({"seed": -1}, ValueError),
        ({"image_size": (8, 100)}, ValueError),
        ({"image_size": (160,)}, ValueError),
        ({"image_size": 160}, TypeError),
        ({"processes": 0}, ValueError),
        ({"samples": 2.5}, TypeError),
    ],
    ids=str,
)
def test_bad_arguments(tmp_path, bad, error):
    with pytest.raises(error, match=next(iter(bad))):
        make_driving_data(tmp_path / "data", **bad)
    assert not list(tmp_path.iterdir())
