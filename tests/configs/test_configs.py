"""Every packaged config of a detector or segmentor loads and builds; reduced, it trains a step and predicts."""

import pytest
import torch
from config_models import NAMES, architecture, config, head, small_model
from mm_steps import CLASSES, check_training_step, detection_data, predict, segmentation_data
from mmengine.registry import DATASETS, init_default_scope
from tools_helpers import make_data

from attnzoo.heads import Backbone
from attnzoo.tools.running.engine import build_model

# What the class token gathers in the last block is not part of the map.
IDLE = ("blocks.1.attn.ca_bias",)
TRAIN_SIZES = [(128, 128), (96, 128)]
PREDICT_SIZES = [(128, 160), (117, 91)]


def one_of_each() -> list[str]:
    """Configs, the quicker heads and smaller backbones first, in which every head and every architecture stands."""
    seen: set[str] = set()
    chosen = []
    quick = ("semfpn", "segformer", "upernet", "retinanet")
    for name in sorted(NAMES, key=lambda name: (head(name) not in quick, "-large" in name, "-base" in name, name)):
        parts = {head(name), architecture(name)}
        if not parts <= seen:
            seen |= parts
            chosen.append(name)
    return chosen


# By what is built: schedules of one model share it.
_built: dict[str, torch.nn.Module] = {}


@pytest.mark.parametrize("name", NAMES)
def test_builds_at_full_size(name):
    cfg = config(name)
    if repr(cfg.model) not in _built:
        with torch.device("meta"):
            _built[repr(cfg.model)] = build_model(cfg)
    model = _built[repr(cfg.model)]
    assert isinstance(model.backbone, Backbone)
    if "out_indices" not in cfg.model.backbone:
        assert model.backbone.strides == (4, 8, 16, 32)
    assert cfg.auto_scale_lr.base_batch_size == 8 * cfg.train_dataloader.batch_size
    assert cfg.auto_scale_lr.enable is False


def check_step_and_prediction(name: str) -> None:
    cfg = config(name)
    model = small_model(cfg)
    if name.endswith("_coco"):
        with_mask = "mask" in head(name)
        check_training_step(model, detection_data(TRAIN_SIZES, with_mask), IDLE)
        for size, result in zip(PREDICT_SIZES, predict(model, detection_data(PREDICT_SIZES, with_mask)), strict=True):
            found = result.pred_instances
            assert len(found) > 0
            assert found.scores.isfinite().all()
            assert ((found.labels >= 0) & (found.labels < CLASSES)).all()
            assert ((found.bboxes >= 0) & (found.bboxes <= torch.tensor([size[1], size[0]] * 2))).all()
            if with_mask:
                assert found.masks.shape == (len(found), *size)
    else:
        check_training_step(model, segmentation_data(TRAIN_SIZES), IDLE)
        for size in PREDICT_SIZES:
            (result,) = predict(model, segmentation_data([size]))
            assert result.seg_logits.data.shape == (CLASSES, *size)
            assert result.seg_logits.data.isfinite().all()
            assert torch.equal(result.pred_sem_seg.data[0], result.seg_logits.data.argmax(0))


@pytest.mark.parametrize("name", [name for name in NAMES if "-albu_" in name])
def test_augmented_samples_hold_together(name, tmp_path):
    cfg = config(name)
    root = make_data(tmp_path / "data", count=1)
    dataset = cfg.train_dataloader.dataset
    dataset.data_root = str(root)
    if name.endswith("_coco"):
        dataset.update(ann_file="train.json", data_prefix=dict(img="images"), metainfo=dict(classes=("red", "blue")))
    else:
        dataset.data_prefix = dict(img_path="images", seg_map_path="maps")
    init_default_scope(cfg.default_scope)
    sample = DATASETS.build(dataset)[0]
    size = sample["inputs"].shape[1:]
    if name.endswith("_coco"):
        truth = sample["data_samples"].gt_instances
        assert truth.masks.masks.shape == (2, *size)
        # A box is the frame of its mask, wherever both have come to.
        for (left, top, right, bottom), mask in zip(truth.bboxes.tensor.tolist(), truth.masks.masks, strict=True):
            rows, columns = mask.nonzero()
            frame = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert frame == pytest.approx((left, top, right, bottom), abs=2)
    else:
        assert sample["data_samples"].gt_sem_seg.data.shape == (1, *size)


@pytest.mark.parametrize("name", one_of_each())
def test_trains_and_predicts(name):
    check_step_and_prediction(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(NAMES) - set(one_of_each())))
def test_trains_and_predicts_too(name):
    check_step_and_prediction(name)
