"""3-D boxes in the views of cameras and from above."""

import numpy as np
import pytest

from attnzoo.tools.data.driving_views import PALETTE, Boxes3D, draw_bev, draw_drive, draw_view

NAMES = list(PALETTE)
COLOURS = list(PALETTE.values())
# Looks along y, as a camera in the place of the LiDAR: 100 × 60 pixels, 90 degrees wide.
AHEAD = np.array([[50.0, 50, 0, 0], [0, 30, -50, 0], [0, 1, 0, 0], [0, 0, 0, 1]])


def box(x, y, yaw, z=0.0, velocity=(0.0, 0.0)):
    """A car whose heading is `yaw`, anticlockwise from x."""
    return [x, y, z, 2.0, 4.0, 1.5, -yaw - np.pi / 2, *velocity]


def boxes(*rows, labels=None, scores=None, layers=()):
    found = np.array(rows, float).reshape(-1, 9)
    labels = np.zeros(len(found), int) if labels is None else np.array(labels)
    return Boxes3D(found, labels, scores, list(layers))


def changed(picture, colour=None):
    """The places (x, y) of pixels that are not grey, or near a colour."""
    far = np.abs(picture.astype(int) - (128 if colour is None else colour)).sum(-1)
    rows, columns = np.nonzero(far > 12 if colour is None else far < 12)
    return np.stack([columns, rows], -1)


def test_edges_are_where_the_corners_project():
    image = np.full((60, 100, 3), 128, np.uint8)
    picture = draw_view(image, AHEAD, boxes(box(1.0, 10.0, np.pi / 2)), NAMES, COLOURS)
    # Enlarged to 420 pixels; the back, at 8 m, is the largest.
    scale = 420 / 100
    assert picture.shape == (252, 420, 3)
    # From where names stand to the lowest edge.
    marked = changed(picture)
    left, right, low = (50 + 50 * 0 / 8) * scale, (50 + 50 * 2 / 8) * scale, (30 + 50 * 0.75 / 8) * scale
    assert abs(marked[:, 0].min() - left) < 2 and abs(marked[:, 0].max() - right) < 2
    assert abs(marked[:, 1].max() - low) < 2


@pytest.mark.parametrize("yaw", [np.pi / 2, -np.pi / 2])
def test_the_front_is_filled(yaw):
    image = np.full((60, 100, 3), 128, np.uint8)
    picture = draw_view(image, AHEAD, boxes(box(4.0, 10.0, yaw)), NAMES, COLOURS)
    # Between the edges of the face at 8 m and those of that at 12 m, on the right and below.
    scale, inner = 420 / 100, (4.5, 0.55)
    here, there = (
        tuple(round(scale * value) for value in (50 + 50 * inner[0] / y, 30 + 50 * inner[1] / y)) for y in (8, 12)
    )
    ahead = yaw > 0
    assert (picture[here[1], here[0]] == 128).all() == ahead
    assert not ahead or (picture[there[1], there[0]] != 128).any()


def test_what_is_behind_is_not_drawn_and_what_reaches_there_is_cut():
    image = np.full((60, 100, 3), 128, np.uint8)
    assert not len(changed(draw_view(image, AHEAD, boxes(box(0, -10, 0.0)), NAMES, COLOURS)))
    assert not len(changed(draw_view(image, AHEAD, boxes(), NAMES, COLOURS)))
    beside = changed(draw_view(image, AHEAD, boxes(box(2.0, 1.0, np.pi / 2)), NAMES, COLOURS))
    # From 3 m ahead to the border.
    assert len(beside) and beside[:, 0].min() >= 420 / 100 * (50 + 50 / 3) - 2


def test_a_box_is_named_with_its_score_where_there_is_room():
    image = np.full((60, 100, 3), 128, np.uint8)
    near, far = box(0, 6, np.pi / 2), box(0, 50, np.pi / 2)
    named = changed(draw_view(image, AHEAD, boxes(near), NAMES, COLOURS), COLOURS[0])
    scored = changed(draw_view(image, AHEAD, boxes(near, scores=np.array([0.5])), NAMES, COLOURS), COLOURS[0])
    small = changed(draw_view(image, AHEAD, boxes(far), NAMES, COLOURS))
    assert named[:, 1].min() < 100 and len(scored) > len(named) > len(small)


def test_from_above_x_is_right_and_y_is_up():
    picture = draw_bev(boxes(box(6.0, 5.0, np.pi / 2)), (-10, -10, 10, 10), (200, 200), COLOURS)
    marked = changed(picture, COLOURS[0])
    # The box is 2 m wide and 4 m long, 10 pixels a metre; edges are drawn in its full colour, the front one thick.
    assert abs(marked[:, 0].mean() - 160) < 3 and abs(marked[:, 0].max() - 170) < 2
    assert abs(marked[:, 1].min() - 30) < 3 and abs(marked[:, 1].max() - 70) < 3
    assert (marked[:, 1] < 50).sum() > 1.2 * (marked[:, 1] > 50).sum()
    turned = changed(draw_bev(boxes(box(6.0, 5.0, 0.0)), (-10, -10, 10, 10), (200, 200), COLOURS), COLOURS[0])
    assert (turned[:, 0] > 160).sum() > 1.2 * (turned[:, 0] < 160).sum()


def test_from_above_a_line_shows_the_velocity():
    bare = draw_bev(boxes(box(0.0, -5.0, 0.0)), (-10, -10, 10, 10), (200, 200), COLOURS)
    moving = draw_bev(boxes(box(0.0, -5.0, 0.0, velocity=(5, 2))), (-10, -10, 10, 10), (200, 200), COLOURS)
    unknown = draw_bev(boxes(box(0.0, -5.0, 0.0, velocity=(np.nan, np.nan))), (-10, -10, 10, 10), (200, 200), COLOURS)
    rows, columns = np.nonzero((bare != moving).any(-1))
    assert abs(columns.max() - 150) < 2 and abs(rows.min() - 130) < 2 and (bare == unknown).all()


def test_masks_are_laid_below():
    mask = np.zeros((4, 8), bool)
    mask[0, 7] = True  # y minimum, x maximum: below on the right
    picture = draw_bev(boxes(layers=[(mask, (10, 200, 30))]), (-8, -4, 8, 4), (160, 80), COLOURS)
    marked = changed(picture, (10, 200, 30))
    assert marked.min(0).tolist() == [140, 60] and len(marked) == 20 * 20


@pytest.mark.parametrize("cameras", [("CAM_BACK", "CAM_FRONT"), ("a",), ("a", "a", "b", "c")], ids=len)
def test_one_picture_for_any_cameras(cameras):
    images = [np.full((60, 100, 3), 10 * i, np.uint8) for i in range(len(cameras))]
    found = {"truth": boxes(box(0, 9, 0.0)), "prediction": boxes(box(0, 8, 0.1), scores=np.array([0.7]))}
    matrices = np.stack([AHEAD] * len(cameras))
    picture = draw_drive(images, cameras, matrices, found, (-20, -20, 20, 20), NAMES, COLOURS)
    alone = draw_drive(images, cameras, matrices, {"truth": boxes()}, (-20, -20, 20, 20), NAMES, COLOURS)
    assert (
        picture.dtype == np.uint8
        and picture.shape[1] == alone.shape[1]
        and picture.shape[0] > 1.8 * alone.shape[0] - 60
    )
