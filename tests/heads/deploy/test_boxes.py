"""Choice and clipping of boxes."""

import torch

from attnzoo.heads.deploy.boxes import clip, top


def test_top_of_a_short_row_fills_with_minus_one():
    values, index = top(torch.tensor([[0.1, 0.9, 0.5]]), 5)
    torch.testing.assert_close(values, torch.tensor([[0.9, 0.5, 0.1, -1, -1]]))
    assert index[0, :3].tolist() == [1, 2, 0] and index.max() < 3


def test_clip_keeps_the_order_of_corners():
    boxes = torch.tensor([[-3.0, 4.0, 50.0, 90.0], [1.0, -2.0, 7.0, 8.0]])
    assert clip(boxes, 60, 40).tolist() == [[0, 4, 40, 60], [1, 0, 7, 8]]
