"""Traceable single-stage detectors give what mmdet's `predict` gives."""

import pytest
import torch
from deploy_models import SHAPES, compare_detections, dense, images, lively, predict
from mmdet.structures import DetDataSample

from attnzoo.heads.deploy import deploy

DETECTORS = {
    "retina-van": lambda: dense("retina", "van"),
    "fsaf-van": lambda: dense("fsaf", "van"),
    "atss-van": lambda: dense("atss", "van"),
    "gfl-biformer": lambda: dense("gfl", "biformer"),
    "fcos-van": lambda: dense("fcos", "van"),
    "rtmdet-van": lambda: dense("rtmdet", "van"),
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", DETECTORS)
def test_detector_equals_predict(name, shape):
    model, batch = lively(DETECTORS[name]()), images(*shape)
    with torch.no_grad():
        outputs = deploy(model)(batch)
    compare_detections(model, outputs, batch)


def test_score_threshold_and_class_agnostic_suppression_hold():
    cfg = dense("retina", "van")
    cfg.model.test_cfg.update(score_thr=0.9, nms=dict(type="nms", iou_threshold=0.3, class_agnostic=True))
    model = lively(cfg)
    batch = images(2, 96, 96)
    with torch.no_grad():
        _, scores, labels = deploy(model)(batch)
    for i, sample in enumerate(predict(model, batch, DetDataSample)):
        count = len(sample.pred_instances)
        assert 0 < count < 20
        torch.testing.assert_close(scores[i, :count], sample.pred_instances.scores, rtol=0, atol=1e-6)
        assert (labels[i, count:] == -1).all()
