import cv2
import numpy as np
import pytest

from attnzoo.heads.bev.nuscenes.boxes import boxes_of_rows
from attnzoo.heads.bev.nuscenes.maps import BEVGrid, GroundMap


def ground(tmp_path, mask):
    path = str(tmp_path / "map.png")
    cv2.imwrite(path, mask.astype(np.uint8) * 255)
    return GroundMap(path)


def frame(x, y, yaw):
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    matrix[:2, 3] = x, y
    return matrix


def test_a_point_is_at_a_tenth_of_its_pixel_from_the_lower_left_corner(tmp_path):
    mask = np.zeros((60, 83), bool)
    mask[60 - 25, 80] = mask[60 - 1, 3] = True
    found = ground(tmp_path, mask)
    assert found.shape == (60, 83)
    x = np.array([[8.0, 8.04, 8.06, 0.3], [8.0, -1.0, 0.3, 20.0]])
    y = np.array([[2.5, 2.46, 2.5, 0.1], [2.6, 2.5, 9.0, 2.5]])
    assert found.at(x, y).tolist() == [[True, True, False, True], [False] * 4]


def test_a_view_is_cut_in_its_own_frame(tmp_path):
    mask = np.zeros((200, 300), bool)
    mask[200 - 120 : 200 - 99, 140:181] = True  # x from 14 to 18, y from 10 to 12
    found = ground(tmp_path, mask)
    # From (10, 10), looking along the global y: the square is on the right, from 4 to 8 m, and from 0 to 2 m ahead.
    view = BEVGrid(10, 20, (-10, -5, 10, 5)).ground(found, frame(10, 10, 0.0))
    assert view.shape == (10, 20) and view.dtype == np.float32
    expected = np.zeros((10, 20))
    expected[5:7, 14:18] = 1
    np.testing.assert_allclose(view, expected, atol=0.21)
    # Turned to the left, it looks along the global -x: the square is behind, and on the right.
    view = BEVGrid(20, 20, (-10, -10, 10, 10)).ground(found, frame(10, 10, np.pi / 2))
    expected = np.zeros((20, 20))
    expected[2:6, 10:12] = 1
    np.testing.assert_allclose(view, expected, atol=0.21)


def test_a_cell_holds_the_share_that_is_set_and_beyond_the_map_is_nothing(tmp_path):
    mask = np.ones((40, 40), bool)
    mask[:, 20:] = False
    found = ground(tmp_path, mask)
    view = BEVGrid(1, 2, (-4.0, 0.0, 4.0, 4.0)).ground(found, np.eye(4))
    np.testing.assert_allclose(view, [[0, 0.5]], atol=0.05)
    view = BEVGrid(50, 50, (0.0, 0.0, 0.5, 0.5)).ground(found, np.eye(4))
    assert view.shape == (50, 50) and view.mean() > 0.8


@pytest.mark.parametrize("yaw", [0.0, 0.4, -2.0, 3.0])
def test_boxes_cover_what_lies_between_their_corners(yaw):
    rows = np.array([[3.0, -2.0, 0.5, 2.0, 5.0, 1.5, yaw, 0.0, 0.0]])
    view = BEVGrid(40, 40, (-10, -10, 10, 10)).boxes(rows)
    assert view.sum() * 0.25 == pytest.approx(10, abs=0.3)
    centres = np.stack(np.broadcast_arrays(*np.ix_(*2 * [np.arange(-10, 10, 0.5) + 0.25])), -1)[..., ::-1]
    centres = np.concatenate([centres, np.full((40, 40, 1), 0.5)], -1).reshape(-1, 3)
    for margin, share in ((0.75, 0), (-0.75, 1)):
        # Cells that lie within the smaller box, and those beyond the larger one.
        grown = rows + np.array([0, 0, 0, margin, margin, 0, 0, 0, 0])
        inside = boxes_of_rows(grown).contain(centres).reshape(40, 40)
        assert (view[inside == bool(share)] == share).all()


def test_no_boxes():
    assert not BEVGrid(4, 5, (-1, -1, 1, 1)).boxes(np.zeros((0, 9))).any()


def test_no_picture(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png: there is no such map"):
        GroundMap(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no")
    with pytest.raises(ValueError, match=r"text\.png: not a picture that can be read"):
        GroundMap(tmp_path / "text.png")
