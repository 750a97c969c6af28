"""Traceable segmentors give what mmseg's `predict` gives."""

import pytest
import torch
from deploy_models import SHAPES, images, lively, predict, segmentor
from mmseg.structures import SegDataSample

from attnzoo.heads.deploy import deploy

SEGMENTORS = {
    "fpn-van": lambda: segmentor("fpn", "van"),
    "fpn-biformer": lambda: segmentor("fpn", "biformer"),
    "uper-van": lambda: segmentor("uper", "van"),
    "ham-mscan": lambda: segmentor("ham", "mscan"),
    "ham-mscan-padded": lambda: segmentor("ham", "mscan", test_cfg=dict(size_divisor=32)),
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", SEGMENTORS)
def test_segmentor_equals_predict(name, shape):
    model = lively(SEGMENTORS[name]())
    batch = images(*shape)
    with torch.no_grad():
        logits, labels = deploy(model)(batch)
    assert len(labels.unique()) > 1
    for i, sample in enumerate(predict(model, batch, SegDataSample)):
        torch.testing.assert_close(logits[i], sample.seg_logits.data, rtol=0, atol=1e-5)
        assert torch.equal(labels[i], sample.pred_sem_seg.data[0])


def test_one_output_channel_is_thresholded():
    cfg = segmentor("fpn", "van", classes=2)
    cfg.model.decode_head.update(
        out_channels=1, threshold=0.4, loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=True)
    )
    # Of a seed whose probabilities lie on both sides of the threshold.
    model = lively(cfg, seed=3)
    batch = images(1, 64, 96)
    with torch.no_grad():
        probability, labels = deploy(model)(batch)
    expected = predict(model, batch, SegDataSample)[0]
    torch.testing.assert_close(probability[0], expected.seg_logits.data, rtol=0, atol=1e-6)
    assert torch.equal(labels[0], expected.pred_sem_seg.data[0].long())
    assert labels.unique().tolist() == [0, 1]
