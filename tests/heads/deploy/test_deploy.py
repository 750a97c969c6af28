"""Which models have a traceable form, and what is said of the others."""

import pytest
import torch
from deploy_models import dense, lively, segmentor
from mmdet.models.data_preprocessors import DetDataPreprocessor
from torch import nn

import attnzoo.heads.deploy
from attnzoo.heads.deploy import FORMS, UnsupportedModelError, deploy
from attnzoo.heads.deploy.base import TraceableModel
from attnzoo.heads.deploy.replacements import AveragePool


def test_deploy_leaves_the_model_as_it_is():
    model = lively(segmentor("uper", "van")).train()
    deploy(model)
    assert model.training and all(parameter.requires_grad for parameter in model.decode_head.parameters())
    assert not any(isinstance(module, AveragePool) for module in model.modules())


def _soft_nms():
    cfg = dense("gfl", "van")
    cfg.model.test_cfg.nms = dict(type="soft_nms", iou_threshold=0.5)
    return cfg


def _slide():
    cfg = segmentor("fpn", "van")
    cfg.model.test_cfg = dict(mode="slide", crop_size=(32, 32), stride=(16, 16))
    return cfg


def _other_head():
    cfg = dense("gfl", "van")
    cfg.model.bbox_head = dict(type="YOLOXHead", num_classes=3, in_channels=16, feat_channels=16, stacked_convs=1)
    return cfg


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_soft_nms, "soft_nms.*allowed: type='nms'"),
        (_slide, "'slide'.*allowed: 'whole'"),
        (_other_head, "YOLOXHead.*allowed: GFLHead"),
        (lambda: segmentor("fpn", "van", test_cfg=dict(size=(64, 64))), "allowed: test_cfg.size_divisor"),
    ],
    ids=["soft_nms", "slide", "head", "fixed_pad"],
)
def test_what_has_no_traceable_form_is_named(make, message):
    with pytest.raises(UnsupportedModelError, match=message):
        deploy(lively(make()))


def test_a_model_of_no_supported_kind_is_named_and_what_is_supported():
    message = r"^model Linear has no traceable form; allowed: single-stage detectors, .*, EncoderDecoder segmentors$"
    with pytest.raises(UnsupportedModelError, match=message):
        deploy(nn.Linear(1, 1))


def test_another_kind_is_one_entry(monkeypatch):
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.data_preprocessor = DetDataPreprocessor(mean=[1, 1, 1], std=[2, 2, 2])
            self.pool = nn.AdaptiveAvgPool2d(2)

    class TraceableClassifier(TraceableModel):
        serves = Classifier
        description = "classifiers"
        outputs = ("means",)

        def forward(self, images):
            return self.model.pool(self.preprocess(images))

    monkeypatch.setattr(attnzoo.heads.deploy, "FORMS", (*FORMS, TraceableClassifier))
    traceable = deploy(Classifier())
    assert type(traceable) is TraceableClassifier and type(traceable.model.pool) is AveragePool
    assert not traceable.training
    torch.testing.assert_close(traceable(torch.full((1, 3, 5, 7), 5.0)), torch.full((1, 3, 2, 2), 2.0))
    with pytest.raises(UnsupportedModelError, match=r"EncoderDecoder segmentors, classifiers$"):
        deploy(nn.Linear(1, 1))
