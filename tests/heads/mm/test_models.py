"""Heads of mmdet and mmseg on attnzoo backbones, from the configs that the libraries carry.

Each model is written as a user writes it: a config file over a packaged base, with the backbone replaced and the input
channels of neck or head set from it. Then it trains a step and predicts.
"""

from pathlib import Path

import mmseg
import pytest
import torch
from mm_steps import CLASSES, check_training_step, detection_data, predict, segmentation_data
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.config import Config
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS as MMSEG_MODELS
from torch import Tensor

from attnzoo.heads import Backbone, LightHamHead

BACKBONES = {
    "van_b0": dict(model_name="van_b0"),
    "biformer_tiny": dict(model_name="biformer_tiny", stage_norms="layernorm2d"),
}
SIZES = [(128, 160), (117, 91)]

FPN = "neck=dict(in_channels={channels})"
MASK_RCNN = """
    neck=dict(in_channels={channels}, out_channels=64), rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64), mask_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=64, num_classes=3),
        mask_head=dict(in_channels=64, conv_out_channels=64, num_classes=3),
    ),
    train_cfg=dict(rpn_proposal=dict(max_per_img=50), rcnn=dict(sampler=dict(num=32))),
    test_cfg=dict(rpn=dict(max_per_img=50), rcnn=dict(score_thr=0.0, max_per_img=10)),
"""
MASK2FORMER = """
    data_preprocessor=dict(batch_augments=None),
    panoptic_head=dict(
        in_channels={channels}, num_things_classes=3, num_queries=8,
        pixel_decoder=dict(encoder=dict(num_layers=1)), transformer_decoder=dict(num_layers=1),
        loss_cls=dict(class_weight=[1.0] * 3 + [0.1]),
    ),
    panoptic_fusion_head=dict(num_things_classes=3),
    train_cfg=dict(num_points=256),
    test_cfg=dict(max_per_image=8),
"""
# Scores of untrained heads are below the usual thresholds, and no box would be left to look at.
DETECTORS = {
    "mask-rcnn": ("_base_/models/mask-rcnn_r50_fpn.py", (0, 1, 2, 3), MASK_RCNN),
    "retinanet": ("_base_/models/retinanet_r50_fpn.py", (0, 1, 2, 3),
                  f"{FPN}, bbox_head=dict(num_classes=3), test_cfg=dict(score_thr=0.0, nms_pre=100, max_per_img=10)"),
    "rtmdet": ("rtmdet/rtmdet_tiny_8xb32-300e_coco.py", (1, 2, 3),
               f"{FPN}, bbox_head=dict(num_classes=3), test_cfg=dict(score_thr=0.0, nms_pre=100, max_per_img=10), "
               "data_preprocessor=dict(pad_size_divisor=32, batch_augments=None)"),
    "mask2former": ("mask2former/mask2former_r50_8xb2-lsj-50e_coco.py", (0, 1, 2, 3), MASK2FORMER),
}  # fmt: skip
PAD = "data_preprocessor=dict(size=(128, 128), test_cfg=dict(size_divisor=32))"
SEGMENTORS = {
    "upernet": ("_base_/models/upernet_r50.py", (0, 1, 2, 3),
                f"{PAD}, decode_head=dict(in_channels={{channels}}, channels=64, num_classes=3), "
                "auxiliary_head=dict(in_channels={channels[2]}, channels=64, num_classes=3)"),
    "semantic-fpn": ("_base_/models/fpn_r50.py", (0, 1, 2, 3), f"{PAD}, {FPN}, decode_head=dict(num_classes=3)"),
    "light-ham": ("segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py", (1, 2, 3),
                  f"{PAD}, decode_head=dict(type='attnzoo.LightHamHead', in_channels={{channels}}, in_index=[0, 1, 2], "
                  "num_classes=3)"),
}  # fmt: skip


def build(folder: Path, library: str, head: str, backbone: str) -> BaseModel:
    base, out_indices, overrides = (DETECTORS if library == "mmdet" else SEGMENTORS)[head]
    # mmengine resolves `mmdet::` by itself; for mmseg it looks for a distribution of another name.
    path = f"mmdet::{base}" if library == "mmdet" else f"{mmseg.__path__[0]}/.mim/configs/{base}"
    arguments = dict(BACKBONES[backbone], type="attnzoo.Backbone", out_indices=out_indices)
    channels = list(Backbone(**{k: v for k, v in arguments.items() if k != "type"}).channels)
    pretrained = "" if library == "mmdet" else "pretrained=None,"
    (folder / "config.py").write_text(
        f"_base_ = {path!r}\n"
        "custom_imports = dict(imports=['attnzoo.heads'])\n"
        f"model = dict({pretrained} backbone=dict(_delete_=True, **{arguments!r}), "
        f"{overrides.format(channels=channels)})\n"
    )
    config = Config.fromfile(folder / "config.py")
    init_default_scope(library)
    model = (MMDET_MODELS if library == "mmdet" else MMSEG_MODELS).build(config.model)
    return revert_sync_batchnorm(model)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("head", DETECTORS)
def test_detector(head, backbone, tmp_path):
    model = build(tmp_path, "mmdet", head, backbone)
    with_mask = head in ("mask-rcnn", "mask2former")
    check_training_step(model, detection_data([(128, 128), (96, 128)], with_mask))
    for size, result in zip(SIZES, predict(model, detection_data(SIZES, with_mask)), strict=True):
        found = result.pred_instances
        assert len(found) > 0
        assert found.scores.isfinite().all()
        assert ((found.labels >= 0) & (found.labels < CLASSES)).all()
        limits = torch.tensor([size[1], size[0]] * 2)
        assert ((found.bboxes >= 0) & (found.bboxes <= limits)).all()
        if with_mask:
            assert found.masks.shape == (len(found), *size)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("head", SEGMENTORS)
def test_segmentor(head, backbone, tmp_path):
    model = build(tmp_path, "mmseg", head, backbone)
    assert isinstance(model.decode_head, LightHamHead) == (head == "light-ham")
    check_training_step(model, segmentation_data([(128, 128), (96, 128)]))
    for size in SIZES:
        (result,), (again,) = (predict(model, segmentation_data([size])) for _ in range(2))
        logits: Tensor = result.seg_logits.data
        assert logits.shape == (CLASSES, *size)
        assert logits.isfinite().all()
        assert torch.equal(result.pred_sem_seg.data[0], logits.argmax(0))
        assert torch.equal(logits, again.seg_logits.data)
