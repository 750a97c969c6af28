"""Boxes against what nuScenes' devkit computes on the golden tables."""

import dataclasses

import golden_files
import numpy as np
import pytest

from attnzoo.heads.bev.nuscenes.boxes import (
    Boxes,
    annotated_boxes,
    annotation_velocities,
    boxes_at,
    boxes_of_rows,
    corner_pixels,
    ground_frame,
    visible,
)
from attnzoo.heads.bev.nuscenes.calibration import (
    camera_intrinsics,
    ego_to_global,
    rigid_inverse,
    sensor_to_ego,
    sensor_to_global,
)
from attnzoo.heads.bev.nuscenes.rotations import from_yaw, to_matrix, yaw_of
from attnzoo.heads.bev.nuscenes.tables import NuScenes

GOLDEN = golden_files.load("nuscenes_geometry")["outputs"]
IMAGE = tuple(golden_files.load("nuscenes_geometry")["kwargs"]["image"])


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def same_rotation(found, wanted):
    close(to_matrix(found), to_matrix(wanted))


def in_frames(nusc, annotation: int) -> tuple[Boxes, int]:
    """An annotation as one box in the global frame, and its sample."""
    sample = int(nusc.rows("sample_annotation", "sample_token")[annotation])
    return annotated_boxes(nusc, np.array([annotation])), sample


def test_velocities(nusc):
    table = nusc.table("sample_annotation")
    rows = np.array([table.row(token) for token in GOLDEN["box_velocity"]])
    assert len(rows) == len(table)
    close(annotation_velocities(nusc, rows), list(GOLDEN["box_velocity"].values()))


@pytest.mark.parametrize("token", GOLDEN["boxes"])
def test_frames_of_a_box(nusc, token):
    golden = GOLDEN["boxes"][token]
    box, sample = in_frames(nusc, nusc.table("sample_annotation").row(token))
    close(box.corners()[0].T, golden["corners_global"])
    close(yaw_of(box.orientations)[0], golden["yaw_global"])
    lidar = int(nusc.key_frames(sample, "LIDAR_TOP"))
    matrices = {"ego": ego_to_global(nusc, lidar), "lidar": sensor_to_global(nusc, lidar)}
    for frame, matrix in matrices.items():
        moved, wanted = box.moved(rigid_inverse(matrix)), golden[frame]
        close(moved.centers[0], wanted["center"])
        close(moved.velocities[0], wanted["velocity"])
        same_rotation(moved.orientations[0], wanted["orientation"])
        close(yaw_of(moved.orientations)[0], wanted["yaw"])
    for channel, wanted in golden["cameras"].items():
        camera = int(nusc.key_frames(sample, channel))
        moved, intrinsic = box.moved(rigid_inverse(sensor_to_global(nusc, camera))), camera_intrinsics(nusc, camera)
        close(moved.centers[0], wanted["center"])
        pixels, depth = corner_pixels(moved, intrinsic)
        close(depth[0], wanted["depth_of_corners"])
        np.testing.assert_allclose(pixels[0].T, wanted["corners_pixels"], rtol=1e-6, atol=1e-4)
        seen = [mask.tolist() for mask in visible(moved, intrinsic, IMAGE)]
        assert seen == [[wanted["visible_any"]], [wanted["visible_all"]]]


def test_visible_annotations(nusc):
    for token, cameras in GOLDEN["visible_annotations"].items():
        sample = nusc.table("sample").row(token)
        annotations = nusc.annotations(sample)
        boxes = annotated_boxes(nusc, annotations)
        for channel, wanted in cameras.items():
            camera = int(nusc.key_frames(sample, channel))
            moved = boxes.moved(rigid_inverse(sensor_to_global(nusc, camera)))
            for mask, name in zip(visible(moved, camera_intrinsics(nusc, camera), IMAGE), ("any", "all"), strict=True):
                found = [nusc.table("sample_annotation").token(row) for row in annotations[mask]]
                assert found == wanted[name]


def test_boxes_at_sweeps(nusc):
    for token, wanted in GOLDEN["interpolated_boxes"].items():
        annotations, boxes = boxes_at(nusc, nusc.table("sample_data").row(token))
        assert [nusc.table("sample_annotation").token(row) for row in annotations] == list(wanted)
        close(boxes.centers, [box["center"] for box in wanted.values()])
        same_rotation(boxes.orientations, [box["orientation"] for box in wanted.values()])


def test_boxes_at_key_frames_are_the_samples_own(nusc):
    """Though a camera's time is not the sample's."""
    sample = int(nusc.samples(["scene-0101"])[2])
    for channel in ("LIDAR_TOP", "CAM_BACK"):
        annotations, boxes = boxes_at(nusc, int(nusc.key_frames(sample, channel)))
        assert annotations.tolist() == nusc.annotations(sample).tolist()
        np.testing.assert_array_equal(boxes.centers, nusc.table("sample_annotation")["translation"][annotations])


def test_ground_frame(nusc):
    for token, wanted in GOLDEN["flat_vehicle_frame"].items():
        sample = nusc.table("sample").row(token)
        pose = nusc.rows("sample_data", "ego_pose_token")[nusc.key_frames(sample, "LIDAR_TOP")]
        table = nusc.table("ego_pose")
        rows = np.array([nusc.table("sample_annotation").row(annotation) for annotation in wanted])
        matrix = ground_frame(table["translation"][pose], table["rotation"][pose])
        boxes = annotated_boxes(nusc, rows).moved(matrix)
        close(boxes.centers, [box["center"] for box in wanted.values()])
        same_rotation(boxes.orientations, [box["orientation"] for box in wanted.values()])


def test_contained_points(nusc):
    golden = GOLDEN["points_in_box"]
    box, _ = in_frames(nusc, nusc.table("sample_annotation").row(golden["annotation"]))
    assert box.contain(golden["points"])[0].tolist() == golden["inside"]
    larger = dataclasses.replace(box, sizes=1.5 * box.sizes)
    assert larger.contain(golden["points"])[0].tolist() == golden["inside_factor_1_5"]


def test_rows_and_back(nusc):
    """In the LiDAR's frame only roll and pitch are lost."""
    sample = nusc.samples(["scene-0101"])[1]
    lidar = int(nusc.key_frames(sample, "LIDAR_TOP"))
    boxes = annotated_boxes(nusc, nusc.annotations(sample)).moved(rigid_inverse(sensor_to_global(nusc, lidar)))
    rows = boxes.rows()
    assert rows.shape == (len(boxes), 9) and (np.abs(rows[:, 6]) <= np.pi).all()
    back = boxes_of_rows(rows)
    close(back.centers, boxes.centers)
    close(back.sizes, boxes.sizes)
    close(np.exp(1j * yaw_of(back.orientations)), np.exp(1j * yaw_of(boxes.orientations)))
    close(back.velocities[:, :2], boxes.velocities[:, :2])
    assert np.isnan(back.velocities[:, 0]).any() and (back.velocities[:, 2] == 0).all()


def test_rows_by_hand():
    """A box that looks along y, forward, has the yaw -pi of mmdet3d before 1.0; one that looks right -pi / 2."""
    boxes = Boxes(
        np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]),
        np.array([[2.0, 4.0, 1.5], [1.0, 1.0, 1.0]]),
        from_yaw(np.array([np.pi / 2 - 1e-9, 0.0])),
        np.array([[0.5, -0.5, 0.1], [np.nan, np.nan, np.nan]]),
    )
    nan = np.nan
    wanted = [[1, 2, 3, 2, 4, 1.5, -np.pi, 0.5, -0.5], [0, 0, 0, 1, 1, 1, -np.pi / 2, nan, nan]]
    np.testing.assert_allclose(boxes.rows(), wanted, atol=1e-8)
    # A length of 4 along y, a width of 2 along x.
    corners = boxes_of_rows(boxes.rows()).corners()[0]
    np.testing.assert_allclose(corners.max(0) - corners.min(0), [2, 4, 1.5], atol=1e-8)


@pytest.mark.parametrize(("step", "known"), [(1_450_000, True), (1_550_000, False)])
def test_velocities_of_long_steps(folder, change, step, known):
    """1.5 s to one neighbour, 3 s between both."""

    def times(rows):
        by_token = {row["token"]: row for row in rows}
        for first in [row for row in rows if not row["prev"]]:
            time, row = first["timestamp"], first
            while row:
                row["timestamp"] = time
                time, row = time + step, by_token.get(row["next"])

    change("sample", times)
    nusc = NuScenes(folder.parent, "v")
    previous, following = (nusc.rows("sample_annotation", name) for name in ("prev", "next"))
    found = np.isfinite(annotation_velocities(nusc, np.arange(len(previous)))).all(1)
    # Neighbours in time: some chains skip a sample.
    samples = nusc.rows("sample_annotation", "sample_token")
    near = {True: 0, False: 0}
    for row, (before, behind) in enumerate(zip(previous, following, strict=True)):
        steps = [
            abs(
                int(nusc.table("sample")["timestamp"][samples[other]] - nusc.table("sample")["timestamp"][samples[row]])
            )
            for other in (before, behind)
            if other >= 0
        ]
        if steps and max(steps) == step:
            near[len(steps) == 2] += 1
            assert found[row] == known
    assert near[True] and near[False]


def test_visible_by_hand():
    """A camera that looks along z: a corner (x, y, z) is at (50 + 10 x / z, 50 + 10 y / z)."""
    intrinsic = np.array([[10.0, 0, 50], [0, 10, 50], [0, 0, 1]])
    # Beside each other in depth: whole, with corners from 0.6 m on, with corners from 0.05 m on, beyond the right side.
    centers = np.array([[0, 0, 5], [0, 0, 1.1], [0, 0, 0.55], [19.8, 0, 5]], np.float64)
    boxes = Boxes(centers, np.ones((4, 3)), from_yaw(np.zeros(4)), np.zeros((4, 3)))
    seen, whole = visible(boxes, intrinsic, (90, 100))
    assert (seen.tolist(), whole.tolist()) == ([True, True, False, True], [True, False, False, False])
    assert not visible(boxes, intrinsic, (40, 100))[0].any()


def test_faces_belong_to_a_box():
    box = Boxes(np.zeros((1, 3)), np.array([[2.0, 4.0, 1.0]]), from_yaw(np.zeros(1)), np.zeros((1, 3)))
    faces = np.array([[2, 0, 0], [-2, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 0.5], [0, 0, -0.5], [2, 1, 0.5]])
    assert box.contain(faces).all() and not box.contain(faces * 1.001).any()


def test_no_boxes(nusc):
    empty = annotated_boxes(nusc, np.zeros(0, np.int64))
    assert len(empty.moved(np.eye(4))) == 0 and empty.rows().shape == (0, 9) and empty.corners().shape == (0, 8, 3)
    assert [len(mask) for mask in visible(empty, np.eye(3), (10, 10))] == [0, 0]
    assert len(boxes_of_rows(np.zeros((0, 9)))) == 0 and empty.contain(np.zeros((5, 3))).shape == (0, 5)
    with pytest.raises(ValueError, match=r"must have the shape \(N, 9\), got \(3, 7\)"):
        boxes_of_rows(np.zeros((3, 7)))
    assert sensor_to_ego(nusc, 0).shape == (4, 4)
