"""Heads and data with other numbers of classes."""

import pytest
import torch
from mmdet.datasets import CocoDataset

from attnzoo.tools.common.errors import UserError
from attnzoo.tools.config.loading import load_config
from attnzoo.tools.running.class_counts import check_class_counts
from attnzoo.tools.running.engine import build_model


class Merging(CocoDataset):
    """Data of the user's own, whose labels only its code knows."""

    def parse_data_info(self, raw_data_info):
        return super().parse_data_info(raw_data_info)


class Named(CocoDataset):
    METAINFO = dict(classes=("red", "blue", "green"))


def told_of_classes(cfg, capsys, modes=("train", "val")):
    """What is refused, or else what is warned of."""
    with torch.device("meta"):
        model = build_model(cfg)
    capsys.readouterr()
    try:
        check_class_counts(cfg, model, modes)
    except UserError as error:
        return f"error: {error}"
    return capsys.readouterr().err


TOO_FEW = "error: detector.py: bbox_head (RetinaHead) has num_classes=1, but train_dataloader.dataset has 2 classes"


HOOK = [dict(type="mmdet.NumClassCheckHook")]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, ""),
        ({"model.bbox_head.num_classes": 1}, TOO_FEW),
        ({"model.bbox_head.num_classes": 3}, "attnzoo: warning: " + TOO_FEW[7:].replace("=1", "=3") + "\n"),
        ({"model.bbox_head.num_classes": 3, "custom_hooks": HOOK}, TOO_FEW.replace("=1", "=3")),
        ({"model.bbox_head.num_classes": 1, "train_dataloader.dataset.type": Merging}, "attnzoo: warning: detector.py"),
        ({"train_dataloader.dataset.type": Named}, ""),  # `metainfo` of the config has two
        ({"train_dataloader.dataset.type": Named, "train_dataloader.dataset.metainfo": None}, "error: detector.py: bb"),
        ({"train_dataloader.dataset.pipeline.0.type": ".x"}, "error: detector.py: train_dataloader.dataset: TypeErr"),
        ({"model.bbox_head.num_classes": 1, "train_dataloader": None}, "attnzoo: warning: detector.py: bbox_h"),
    ],
)  # fmt: skip
def test_classes_of_a_detector(place, capsys, options, said):
    told = told_of_classes(load_config("detector.py", options), capsys)
    assert told.startswith(said) if said else told == ""
    assert told.count("\n") <= 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            dict(num_classes=2),
            "error: segmentor.py: decode_head (FPNHead) has num_classes=2, but train_dataloader.data",
        ),
        (dict(num_classes=9), ""),
        (dict(num_classes=2, out_channels=1), "error: "),
        (dict(num_classes=2, ignore_index=2), ""),
        (dict(num_classes=2, ignore_index=1), "error: "),
    ],
)
def test_classes_of_a_segmentor(place, capsys, options, said):
    cfg = load_config("segmentor.py", {f"model.decode_head.{key}": value for key, value in options.items()})
    told = told_of_classes(cfg, capsys)
    assert told.startswith(said) if said else told == ""
    if said:
        cfg.train_dataloader.dataset.reduce_zero_label = True
        assert told_of_classes(cfg, capsys, ("train",)) == ""


@pytest.mark.parametrize(
    "name",
    ["mmdet::guided_anchoring/ga-rpn_r50_fpn_1x_coco.py", "mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py",
     "mmdet::htc/htc_r50_fpn_1x_coco.py", "mmseg::stdc/stdc1_4xb12-80k_cityscapes-512x1024.py"],
)  # fmt: skip
def test_heads_of_other_labels(tmp_path, capsys, name):
    (tmp_path / "own.py").write_text(f"_base_ = {name!r}\n")
    assert told_of_classes(load_config(tmp_path / "own.py"), capsys, ("train", "val", "test")) == ""
