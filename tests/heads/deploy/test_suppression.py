"""Suppression within images and groups of a batch."""

import pytest
import torch

from attnzoo.heads.deploy.suppression import Suppression


def test_suppression_keeps_images_and_groups_apart():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10]]]).expand(2, -1, -1)
    scores = torch.tensor([[0.9, 0.8, 0.7], [0.5, 0.6, 0.4]])
    groups = torch.tensor([[0, 0, 1], [0, 0, 1]])
    suppress = Suppression(dict(type="nms", iou_threshold=0.5), limit=3)
    values, index = suppress(boxes, scores, groups, torch.ones(2, 3, dtype=torch.bool))
    torch.testing.assert_close(values, torch.tensor([[0.9, 0.7, -1], [0.6, 0.4, -1]]))
    assert index[:, :2].tolist() == [[0, 2], [1, 2]]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize("candidate", [False, True])
def test_a_box_without_bounds_is_none_and_harms_no_other_image(value, candidate):
    boxes = torch.tensor([[[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10]]]).repeat(2, 1, 1)
    boxes[0, 2, 2] = value
    scores, groups = torch.tensor([[0.9, 0.8, 0.7]] * 2), torch.zeros(2, 3, dtype=torch.int64)
    valid = torch.ones(2, 3, dtype=torch.bool)
    valid[0, 2] = candidate and value != 1e30
    suppress = Suppression(dict(type="nms", iou_threshold=0.5), limit=3)
    values, _ = suppress(boxes, scores, groups, valid)
    torch.testing.assert_close(values, torch.tensor([[0.9, -1, -1], [0.9, -1, -1]]))
