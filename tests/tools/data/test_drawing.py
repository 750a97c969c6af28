"""Boxes, masks and label maps drawn into images."""

import numpy as np
import pytest

from attnzoo.tools.data.drawing import default_palette, draw_instances, draw_labels


@pytest.mark.parametrize("size", [(1, 1), (7, 33), (300, 20)])
def test_drawing_fits_into_any_picture(size):
    image = np.full((*size, 3), 50, np.uint8)
    boxes = np.array([[-5.0, -5, 400, 400], [0.2, 0.2, 0.1, 0.1]])
    drawn = draw_instances(image, boxes, np.array([0, 1]), ["long name", "b"], default_palette(2), np.array([0.5, 1]))
    assert drawn.shape == image.shape
    outside = np.full(size, 255, np.uint8)
    assert np.array_equal(draw_labels(image, outside, ["a"], default_palette(1)), image)
