"""Traceable two-stage detectors give what mmdet's `predict` gives."""

import pytest
import torch
from deploy_models import SHAPES, compare_detections, images, lively, two_stage
from torch.nn import functional as F

from attnzoo.heads.deploy import deploy

DETECTORS = {
    "faster_rcnn-biformer": lambda: two_stage("biformer", masks=False),
    "mask_rcnn-van": lambda: two_stage("van", masks=True),
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", DETECTORS)
def test_detector_equals_predict(name, shape):
    model, batch = lively(DETECTORS[name]()), images(*shape)
    with torch.no_grad():
        boxes, _, _, *masks = outputs = deploy(model)(batch)
    assert len(masks) == name.startswith("mask")
    for i, sample in enumerate(compare_detections(model, outputs, batch)):
        expected = sample.pred_instances
        for mask in masks:
            # mm pastes the masks, so compare where the thresholded probabilities of large boxes land.
            agreement = [
                (paste(mask[i, j], boxes[i, j], shape[1:]) == expected.masks[j]).float().mean()
                for j in range(len(expected))
            ]
            assert min(agreement) > 0.999


def paste(mask, box, size):
    """The mask of an image (H, W) from probabilities over a box, by sampling at the centres of pixels."""
    x1, y1, x2, y2 = box
    x = (torch.arange(size[1]) + 0.5 - x1) / (x2 - x1) * 2 - 1
    y = (torch.arange(size[0]) + 0.5 - y1) / (y2 - y1) * 2 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
    return F.grid_sample(mask[None, None], grid, align_corners=False)[0, 0] >= 0.5


def test_nothing_found():
    cfg = two_stage("van", masks=True)
    cfg.model.test_cfg.rcnn.score_thr = 2.0
    boxes, scores, labels, masks = deploy(lively(cfg))(images(1, 64, 64))
    assert (labels == -1).all() and (scores == 0).all() and (boxes == 0).all()
    assert masks.shape == (1, 20, 28, 28) and masks.isfinite().all()
