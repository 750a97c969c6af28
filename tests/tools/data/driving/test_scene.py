import itertools

import numpy as np
import pytest

from attnzoo.tools.data.driving.motion import EGO_SIZE
from attnzoo.tools.data.driving.scene import boxes_at, make_scene
from attnzoo.tools.data.driving.shapes import BACK, CATEGORIES, FRONT, make_shape


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(np.random.default_rng(seed), "scene-0001", 8) for seed in range(4)]


def inside(points, box, size):
    """Which points (N, 2) a rectangle with x, y, yaw, and length and width holds."""
    x, y = (points - box[:2]).T
    cos, sin = np.cos(box[2]), np.sin(box[2])
    return (abs(cos * x + sin * y) < size[0] / 2) & (abs(cos * y - sin * x) < size[1] / 2)


def rim(box, size):
    """Points on the rim of a rectangle."""
    way = np.linspace(-0.5, 0.5, 12)
    sides = [np.stack(np.broadcast_arrays(*side), -1) for end in (-0.5, 0.5) for side in ((way, end), (end, way))]
    x, y = (np.concatenate(sides) * size).T
    cos, sin = np.cos(box[2]), np.sin(box[2])
    return np.stack([box[0] + cos * x - sin * y, box[1] + sin * x + cos * y], -1)


def test_nothing_overlaps_at_any_time(scenes):
    for scene in scenes[:3]:
        sizes = [EGO_SIZE, *((item.shape.size[1], item.shape.size[0]) for item in scene.objects)]
        for time in np.linspace(-0.5, 4.0, 10):
            boxes = [*scene.ego.middle(np.array([time])), *boxes_at(scene, time)]
            rims = [rim(box, size) for box, size in zip(boxes, sizes, strict=True)]
            for one, other in itertools.permutations(range(len(boxes)), 2):
                if np.hypot(*(boxes[one][:2] - boxes[other][:2])) < 13:
                    assert not inside(rims[one], boxes[other], sizes[other]).any(), (time, one, other)


def test_every_class_comes_often(scenes):
    counts = {category: sum(item.category == category for s in scenes for item in s.objects) for category in CATEGORIES}
    assert min(counts.values()) >= 4, counts
    assert all(20 < len(scene.objects) < 60 for scene in scenes)
    speeds = {item.category: [] for scene in scenes for item in scene.objects}
    for scene in scenes:
        for item in scene.objects:
            speeds[item.category].append(item.motion.speed)
            moves = item.attribute in ("vehicle.moving", "cycle.with_rider", "pedestrian.moving")
            assert moves == (item.motion.speed > 0), item
            assert (item.attribute is None) == item.category.startswith("movable_object")
    assert {len({speed > 0 for speed in found}) for name, found in speeds.items() if "movable" not in name} == {2, 1}


def test_scenes_differ_and_the_same_draws_give_the_same(scenes):
    assert len({scene.road.heading for scene in scenes}) == len(scenes)
    assert {bool(scene.road.curvature) for scene in scenes} == {True, False}
    again = make_scene(np.random.default_rng(0), "scene-0001", 8)
    assert again.road == scenes[0].road and again.ego == scenes[0].ego
    np.testing.assert_array_equal(boxes_at(again, 1.0), boxes_at(scenes[0], 1.0))


def test_all_ground_around_the_path_is_there(scenes):
    for scene in scenes:
        places = np.array([scene.ego.pose(time)[0][:2] for time in np.linspace(-0.5, 4, 10)])
        assert (places > 50).all() and (places < np.array(scene.extent) - 50).all()


def test_objects_turn_with_the_road(scenes):
    for scene in scenes:
        for item in scene.objects:
            if item.attribute in ("vehicle.moving", "cycle.with_rider"):
                places = np.stack(item.motion.pose(np.linspace(0, 3, 7))[:2])
                # Of a bend all places on a lane are as far from its centre.
                if scene.road.curvature:
                    radius = 1 / scene.road.curvature
                    x, y, heading = scene.road.pose(0.0, 0.0)
                    away = np.hypot(places[0] - x + radius * np.sin(heading), places[1] - y - radius * np.cos(heading))
                    np.testing.assert_allclose(away, away[0], rtol=1e-9)
                else:
                    assert item.motion.turn_rate == 0


@pytest.mark.parametrize("category", CATEGORIES)
def test_parts_fill_the_box_and_textures_vary(category):
    shape, other = (make_shape(np.random.default_rng(seed), category) for seed in (0, 1))
    half = np.array([shape.size[1], shape.size[0], shape.size[2]]) / 2 - 0.01
    np.testing.assert_allclose(shape.parts[:, 0].min(0), -half, atol=1e-6)
    np.testing.assert_allclose(shape.parts[:, 1].max(0), half, atol=1e-6)
    assert (shape.parts[:, 0] < shape.parts[:, 1]).all()
    assert [texture.shape for texture in shape.textures] == [(len(shape.parts), 6, s, s, 3) for s in (32, 16, 8, 4, 2)]
    for texture in shape.textures:
        assert texture.dtype == np.float32 and texture.min() >= 0 and texture.max() <= 1
        np.testing.assert_allclose(texture.mean((2, 3)), shape.textures[0].mean((2, 3)), atol=1e-5)
    # No face is of one colour, and no two instances have the same look.
    assert shape.textures[0].std((2, 3)).max(-1).min() > 0.005
    assert abs(shape.textures[-1] - other.textures[-1]).max() > 0.02
    assert shape.size != other.size


@pytest.mark.parametrize("category", [name for name in CATEGORIES if name.startswith("vehicle") and "bic" not in name])
def test_the_front_of_a_vehicle_has_white_lights_and_the_back_red_ones(category):
    faces = make_shape(np.random.default_rng(0), category).textures[0]

    def bright(face):
        return (faces[:, face].min(-1) > 0.75).any((1, 2)).any()

    def red(face):
        colour = faces[:, face]
        return ((colour[..., 0] > 0.55) & (colour[..., 1:].max(-1) < 0.2)).any()

    assert bright(FRONT) and red(BACK)
