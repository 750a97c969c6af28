import numpy as np
from PIL import Image

from attnzoo.heads.bev.nuscenes.maps import GroundMap
from attnzoo.tools.data.driving.maps import draw_map


def test_rows_run_downwards_and_a_pixel_is_a_tenth_of_a_metre(tmp_path):
    square = np.array([[2.0, 1.0], [5.0, 1.0], [5.0, 3.0], [2.0, 3.0]])
    picture = draw_map((8.0, 6.0), polygons=[square])
    assert picture.shape == (60, 80) and picture.dtype == np.uint8 and set(np.unique(picture)) == {0, 255}
    Image.fromarray(picture).save(tmp_path / "map.png")
    x, y = np.meshgrid(np.arange(0.05, 8, 0.1), np.arange(0.05, 6, 0.1))
    found = GroundMap(tmp_path / "map.png").at(x, y)
    expected = (x > 2) & (x < 5) & (y > 1) & (y < 3)
    assert (found == expected).mean() > 0.98 and found[expected].mean() > 0.97


def test_lines_are_three_pixels_wide():
    picture = draw_map((8.0, 6.0), lines=[np.array([[1.0, 3.0], [7.0, 3.0]])])
    rows, columns = np.nonzero(picture)
    assert set(rows) == {29, 30, 31} and (columns.min(), columns.max()) == (10, 70)
