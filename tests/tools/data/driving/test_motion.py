import numpy as np
import pytest

from attnzoo.heads.bev.nuscenes import rotations
from attnzoo.tools.data.driving.motion import EGO_MIDDLE, EgoMotion, Motion, overlap, track
from attnzoo.tools.data.driving.road import Road, arc


def make_road(curvature=0.02, **changes):
    given = {"x": 5.0, "y": 7.0, "heading": 0.4, "curvature": curvature, "begin": -50.0, "end": 80.0, "lanes": (2, 1)}
    return Road(**{**given, "parking": (2.4, 0.0), "crossing": None, **changes})


@pytest.mark.parametrize("turn", [0.0, 1e-9, 0.7, -2.0])
def test_arc_is_the_integral_of_the_heading(turn):
    steps = (np.arange(20000) + 0.5) / 20000
    x, y = (12 * np.mean(part(0.3 + turn * steps)) for part in (np.cos, np.sin))
    np.testing.assert_allclose(arc(1.0, 2.0, 0.3, 12.0, turn), (1 + x, 2 + y, 0.3 + turn), atol=1e-7)


@pytest.mark.parametrize("curvature", [0.0, 0.02, -0.015])
def test_offsets_are_to_the_left_and_at_right_angles(curvature):
    road = make_road(curvature)
    way = np.linspace(-40, 60, 11)
    middle, left = (np.stack(road.pose(way, offset)[:2]) for offset in (0.0, 3.0))
    heading = road.pose(way, 0.0)[2]
    np.testing.assert_allclose(left - middle, 3 * np.stack([-np.sin(heading), np.cos(heading)]), atol=1e-12)


def test_lanes_run_ahead_on_the_right():
    assert make_road().middles == [(-1.75, 1), (-5.25, 1), (1.75, -1)]
    assert make_road().kerbs == (-9.4, 3.5)


def test_no_line_is_painted_where_roads_cross():
    road = make_road(0.0, crossing=20.0)
    x, y = road.pose(20.0, 0.0)[:2]
    for name, polygons in road.surfaces().items():
        near = min(np.hypot(*(polygon - [x, y]).T).min() for polygon in polygons)
        assert (near < 8) == (name in ("sidewalk", "drivable", "zebra")), name
    assert min(np.hypot(*(line - [x, y]).T).min() for line in road.dividers()) > 8


@pytest.mark.parametrize("speed", [6.0, 0.0])
def test_the_vehicle_looks_where_it_drives(speed):
    ego = EgoMotion(make_road(), -1.75, speed, 0.5 * speed, 0.8, 1.0, 0.3 if speed else 0.0)
    for time in (0.0, 1.3, 4.0):
        before, (place, rotation), after = (ego.pose(time + step) for step in (-1e-4, 0.0, 1e-4))
        ahead = rotations.to_matrix(rotation)[:, 0]
        if speed:
            way = (after[0] - before[0]) / 2e-4
            driven = way[:2] / np.linalg.norm(way)
            np.testing.assert_allclose(ahead[:2] / np.linalg.norm(ahead[:2]), driven, atol=1e-6)
            # Tilted, but little.
            assert 0 < abs(ahead[2]) < 0.02
        middle = ego.middle(np.array([time]))[0]
        np.testing.assert_allclose(np.hypot(*(middle[:2] - place[:2])), EGO_MIDDLE)


def test_the_vehicle_drives_as_fast_as_it_says():
    ego = EgoMotion(make_road(), 0.0, 6.0, 3.0, 0.8, 1.0, 0.0)
    times = np.linspace(0, 5, 6)
    measured = (ego.way(times + 1e-5) - ego.way(times - 1e-5)) / 2e-5
    np.testing.assert_allclose(measured, 6 + 3 * np.sin(0.8 * times + 1), atol=1e-6)
    assert ego.way(0.0) == 0


def polygon(pose, size):
    x, y, yaw = pose
    corners = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) * np.array(size) / 2
    turn = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
    return corners @ turn + [x, y]


def test_overlap_is_that_of_the_rectangles(rng):
    cv2 = pytest.importorskip("cv2")
    found = []
    for _ in range(300):
        poses = rng.uniform([-3, -3, -4], [3, 3, 4], (2, 3))
        sizes = [tuple(rng.uniform(0.5, 4, 2)) for _ in range(2)]
        first, second = (polygon(*item).astype(np.float32) for item in zip(poses, sizes, strict=True))
        area = cv2.intersectConvexConvex(first, second)[0]
        if 0 < area < 1e-3:
            continue
        found.append(area > 0)
        assert overlap(poses[:1], sizes[0], [(poses[1:], sizes[1])], 0.0) == (area > 0)
    assert 50 < sum(found) < 250


def test_overlap_at_any_time_of_two_that_pass(rng):
    times = np.arange(0, 4, 0.1)
    stands, comes = Motion(0, 0, 0.0), Motion(-20, 0.0, 0.0, 8.0)
    tracks = [track(motion, times) for motion in (stands, comes)]
    assert overlap(tracks[0], (4, 2), [(tracks[1], (4, 2))], 0.0)
    assert not overlap(tracks[0][:10], (4, 2), [(tracks[1][:10], (4, 2))], 0.0)
    beside = track(Motion(-20, 2.5, 0.0, 8.0), times)
    assert not overlap(tracks[0], (4, 2), [(beside, (4, 2))], 0.4)
    assert overlap(tracks[0], (4, 2), [(beside, (4, 2))], 0.6)
    assert not overlap(tracks[0], (4, 2), [], 0.5)
