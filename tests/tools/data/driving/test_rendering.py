"""The ray caster against the same rays cast one by one, in float64."""

from dataclasses import replace

import numpy as np
import pytest

from attnzoo.heads.bev.nuscenes import rotations
from attnzoo.heads.bev.nuscenes.classes import CAMERAS, LIDAR
from attnzoo.tools.data.driving.ground import paint_ground
from attnzoo.tools.data.driving.lidar import BEAMS, sweep
from attnzoo.tools.data.driving.rendering import cast, render
from attnzoo.tools.data.driving.scene import boxes_at, make_scene
from attnzoo.tools.data.driving.sensors import make_rig, sensor_pose

SIZE = (96, 54)


@pytest.fixture(scope="module")
def drive():
    """A scene, its ground and rig."""
    rng = np.random.default_rng(3)
    scene = make_scene(rng, "scene-0001", 3)
    return scene, paint_ground(rng, scene), make_rig(rng, SIZE)


def first_hits(scene, boxes, place, rays):
    """How many times their lengths rays (N, 3) go, and what they meet: an object, -1 the ground, -2 nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ground = -place[2] / rays[:, 2]
        on_ground = (ground > 0) & (ground < 180)
        best, met = np.where(on_ground, ground, np.inf), np.where(on_ground, -1, -2)
        for index, (item, (x, y, yaw)) in enumerate(zip(scene.objects, boxes, strict=True)):
            turn = rotations.to_matrix(rotations.from_yaw(yaw))
            origin = (place - [x, y, item.shape.middle]) @ turn
            for part in item.shape.parts.astype(np.float64):
                ends = (part[:, None] - origin) / (rays @ turn)
                enter, leave = ends.min(0).max(-1), ends.max(0).min(-1)
                hit = (enter < leave) & (enter > 0.05) & (enter < best)
                best[hit], met[hit] = enter[hit], index
    return best, met


def rays_of(axes, intrinsic, columns, rows):
    own = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))]).astype(np.float64)
    return (axes @ np.linalg.inv(intrinsic) @ own).T


def check(scene, view, place, axes, intrinsic, rng, count=400):
    """Compare some pixels; rays that graze an edge may be one off."""
    boxes = boxes_at(scene, 0.7)
    rows, columns = rng.integers(0, view.depth.shape, (count, 2)).T
    # Half of them on objects.
    on = np.argwhere(view.instance >= 0)
    if len(on):
        rows[::2], columns[::2] = on[rng.integers(0, len(on), len(rows[::2]))].T
    depth, met = first_hits(scene, boxes, place, rays_of(axes, intrinsic, columns, rows))
    same = view.instance[rows, columns] == met.clip(-1)
    wrong = ~(same & np.isclose(view.depth[rows, columns], depth, rtol=1e-3))
    assert wrong.sum() <= count / 40


@pytest.mark.parametrize("camera", CAMERAS[::2])
def test_depth_and_instance(drive, rng, camera):
    scene, ground, rig = drive
    place, axes = sensor_pose(rig[camera], *scene.ego.pose(0.7))
    view = cast(scene, ground, boxes_at(scene, 0.7), place, axes, rig[camera].intrinsic, SIZE)
    assert view.depth.shape == SIZE[::-1] and (view.instance >= 0).any()
    check(scene, view, place, axes, rig[camera].intrinsic, rng)


@pytest.mark.parametrize("turned", [0.0, 0.9, np.pi / 2])
def test_what_reaches_behind_the_camera(drive, rng, turned):
    scene, ground, rig = drive
    boxes = boxes_at(scene, 0.7)
    bus = next(i for i, item in enumerate(scene.objects) if item.category == "vehicle.bus.rigid")
    # 0.4 m beside its middle.
    x, y, yaw = boxes[bus]
    away = scene.objects[bus].shape.size[0] / 2 + 0.4
    pose = np.array([x - away * np.sin(yaw), y + away * np.cos(yaw), 0]), rotations.from_yaw(yaw - turned)
    front = replace(rig["CAM_FRONT"], translation=np.array([0, 0, 1.5]))
    place, axes = sensor_pose(front, *pose)
    view = cast(scene, ground, boxes, place, axes, front.intrinsic, SIZE)
    assert (view.instance == bus).sum() > 100
    check(scene, view, place, axes, front.intrinsic, rng)


@pytest.mark.parametrize("yaw", [0.0, 2.0, -1.2])
def test_red_lights_are_seen_from_behind_alone(drive, yaw):
    scene, ground, _ = drive
    car = next(
        item
        for item in scene.objects
        if item.category == "vehicle.car" and min(item.shape.textures[-1].mean((0, 1, 2, 3))) > 0.4
    )
    alone = replace(scene, objects=(car,), sun=np.array([0.0, 0, 1]), brightness=1.0)
    middle, way = np.array(scene.extent) / 2, np.array([np.cos(yaw), np.sin(yaw)])
    intrinsic = np.array([[60.0, 0, 48], [0, 60, 27], [0, 0, 1]])
    found = []
    for side in (1, -1):
        look = -side * way
        axes = np.array([[look[1], 0, look[0]], [-look[0], 0, look[1]], [0, -1, 0]])
        view = cast(
            alone, ground, np.array([[*middle, yaw]]), np.append(middle + 6 * side * way, 1.0), axes, intrinsic, SIZE
        )
        red, green, blue = view.colour[:, view.instance == 0]
        found.append(((red > 0.35) & (green + blue < 0.3)).sum())
    assert found[0] == 0 and found[1] >= 10


def test_a_picture_counts_what_is_seen_and_what_is_hidden(drive):
    scene, ground, rig = drive
    boxes = boxes_at(scene, 0.7)
    hidden = 0
    for camera in CAMERAS:
        place, axes = sensor_pose(rig[camera], *scene.ego.pose(0.7))
        image, seen, whole = render(scene, ground, boxes, place, axes, rig[camera].intrinsic, SIZE)
        assert image.shape == (SIZE[1], SIZE[0], 3) and image.dtype == np.uint8 and image.std() > 10
        assert (seen <= whole).all()
        hidden += (seen < whole).sum()
        # Alone, an object has all of its pixels.
        for index in np.flatnonzero(whole)[:3]:
            alone = replace(scene, objects=(scene.objects[index],))
            found = render(alone, ground, boxes[[index]], place, axes, rig[camera].intrinsic, SIZE)
            assert found[1] == found[2] == whole[index]
    assert hidden


def test_the_sun_throws_shadows(drive):
    scene, ground, _ = drive
    car = next(i for i, item in enumerate(scene.objects) if item.category == "vehicle.car")
    alone = replace(scene, objects=(scene.objects[car],))
    middle = np.array(scene.extent) / 2
    box = np.array([[*middle, 0.0]])
    # From 30 m above.
    place, axes = np.append(middle, 30.0), np.array([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]])
    intrinsic = np.array([[90.0, 0, 48], [0, 90, 27], [0, 0, 1]])
    pictures = {}
    for side in (1, -1):
        lit = replace(alone, sun=np.array([0, side * np.sqrt(0.5), np.sqrt(0.5)]))
        pictures[side] = cast(lit, ground, box, place, axes, intrinsic, SIZE)
    bare = cast(replace(alone, objects=()), ground, box[:0], place, axes, intrinsic, SIZE)
    for side, view in pictures.items():
        darker = (view.colour.sum(0) < 0.8 * bare.colour.sum(0)) & (view.instance < 0)
        rows = np.argwhere(darker)[:, 0]
        # Rows run towards -y, and the shadow falls away from the sun.
        assert len(rows) > 20 and ((rows - 27) * side).mean() > 0
        assert np.isclose(view.depth[view.instance >= 0].min(), 30 - alone.objects[0].shape.size[2], atol=0.05)


def test_a_grey_ground_far_away_is_no_noise(drive):
    """The same picture from a step further on: what is far away hardly changes."""
    scene, ground, rig = drive
    bare = replace(scene, objects=())
    pictures = []
    for step in (0.0, 0.1):
        place, axes = sensor_pose(rig["CAM_FRONT"], *scene.ego.pose(0.7))
        view = render(bare, ground, np.zeros((0, 3)), place + axes[:, 2] * step, axes, rig["CAM_FRONT"].intrinsic, SIZE)
        pictures.append(view[0].astype(float))
    horizon = round(rig["CAM_FRONT"].intrinsic[1, 2])
    assert abs(pictures[0] - pictures[1])[horizon + 1 : horizon + 8].mean() < 6


def test_lidar_points_lie_on_what_rays_meet(drive, rng):
    scene, ground, rig = drive
    boxes = boxes_at(scene, 0.7)
    place, axes = sensor_pose(rig[LIDAR], *scene.ego.pose(0.7))
    points, instance = sweep(scene, ground, boxes, place, axes, 180)
    assert points.dtype == np.float32 and points.shape == (len(instance), 5)
    assert set(points[:, 4]) <= set(range(BEAMS)) and points[:, 3].min() >= 0 and points[:, 3].max() <= 255
    assert len(points) > 20 * 180 / 2 and len(set(instance)) > 5
    distance, met = first_hits(scene, boxes, place, points[:, :3].astype(np.float64) @ axes.T)
    wrong = ~np.isclose(distance, 1, rtol=1e-3) | (met != instance)
    assert wrong.sum() <= len(points) / 500
    # Beams from below upwards, the same number of directions all around.
    angle = np.degrees(np.arctan2(points[:, 2], np.hypot(points[:, 0], points[:, 1])))
    np.testing.assert_allclose(angle, -30.67 + 41.34 / 31 * points[:, 4], atol=0.02)
    turned = np.degrees(np.arctan2(points[:, 1], points[:, 0])) % 360
    np.testing.assert_allclose(turned % 2, 1, atol=1e-3)


def test_no_ray_to_an_object_is_lost(drive):
    """With all objects tested against all rays there are no more points on them."""
    scene, ground, rig = drive
    boxes = boxes_at(scene, 0.7)
    place, axes = sensor_pose(rig[LIDAR], *scene.ego.pose(0.7))
    _, instance = sweep(scene, ground, boxes, place, axes, 90)
    height = np.radians(np.linspace(-30.67, 10.67, BEAMS))[:, None]
    angle = -np.pi / 2 + 2 * np.pi * (np.arange(90) + 0.5) / 90
    own = np.stack(np.broadcast_arrays(np.cos(height) * np.cos(angle), np.cos(height) * np.sin(angle), np.sin(height)))
    rays = np.moveaxis(own, 0, -1).reshape(-1, 3) @ axes.T
    distance, met = first_hits(scene, boxes, place, rays)
    assert abs(((met >= 0) & (distance < 70)).sum() - (instance >= 0).sum()) <= 3
