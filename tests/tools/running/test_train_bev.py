"""A detector in bird's-eye view from a data set in nuScenes' layout to scores, by the commands."""

import json
import math

import numpy as np
import pytest
import torch

from attnzoo.heads.bev.nuscenes.classes import EVALUATION_CLASSES
from attnzoo.heads.bev.nuscenes.submission import read_submission
from attnzoo.heads.bev.nuscenes.tables import NuScenes
from attnzoo.tools import cli
from attnzoo.tools.common.errors import UserError
from attnzoo.tools.config.loading import load_config
from attnzoo.tools.data.driving.dataset import make_driving_data
from attnzoo.tools.running.checkpoint import load_checkpoint
from attnzoo.tools.running.training import train

CONFIG = """
default_scope = "mmengine"
custom_imports = dict(imports=["attnzoo.heads"], allow_failed_imports=False)
point_range = [-32.0, -32.0, -4.0, 32.0, 32.0, 4.0]
map_classes = ["vehicle", "drivable_area"]
steps = [
    dict(type="attnzoo.LoadMultiViewImages"),
    dict(type="attnzoo.LoadLidarDepth"),
    dict(type="attnzoo.DrawBEVMap", classes=map_classes, rows=6, columns=8, point_range=point_range),
    dict(type="attnzoo.BoxRangeFilter", point_range=point_range),
    dict(type="attnzoo.PackBEVInputs"),
]
data = dict(data_root="{root}", version="v1.0-trainval")
dataset = dict(type="attnzoo.NuScenesDataset", maps=True, pipeline=steps, **data)
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(split="train", history=1, **dataset),
)
val_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type="attnzoo.SceneSampler"),
    dataset=dict(split="val", test_mode=True, **dataset),
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type="attnzoo.NuScenesMetric", split="val", out_dir="{out}", **data),
    dict(type="attnzoo.BEVMapMetric", classes=map_classes),
]
test_evaluator = val_evaluator
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=2, val_interval=1)
optim_wrapper = dict(
    type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3), clip_grad=dict(max_norm=35.0)
)
default_hooks = dict(logger=dict(type="LoggerHook", interval=1), checkpoint=dict(type="CheckpointHook", interval=1))
randomness = dict(seed=0)
dims = 16
model = dict(
    type="attnzoo.BEVDetector",
    data_preprocessor=dict(type="attnzoo.BEVDataPreprocessor", bgr_to_rgb=True, grid_mask=dict(prob=0.5)),
    backbone=dict(
        type="attnzoo.Backbone", model_name="van_b0", out_indices=(2, 3), embed_dims=(8, 8, 16, 16), depths=(1, 1, 1, 1)
    ),
    neck=dict(type="mmdet.FPN", in_channels=[16, 16], out_channels=dims, num_outs=2),
    depth_head=dict(
        type="attnzoo.BEVDepthHead", in_channels=dims, mid_channels=8, bins=dict(near=2.0, far=34.0, step=2.0), level=0,
        stride=16, dilations=(1, 2),
    ),
    bev_encoder=dict(
        type="attnzoo.BEVEncoder", embed_dims=dims, rows=6, columns=8, point_range=point_range, num_layers=1,
        num_levels=2, num_heads=2, num_points=4, feedforward_channels=16, lifting="dfa3d", depth_range=(2.0, 34.0),
    ),
    detection_head=dict(
        type="attnzoo.BEVDetectionHead", embed_dims=dims, num_query=30, num_layers=2, num_heads=2,
        feedforward_channels=16, point_range=point_range,
    ),
    segmentation_head=dict(
        type="attnzoo.BEVSegmentationHead", num_classes=2, in_channels=dims, channels=8, num_convs=1
    ),
)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Three samples to train and three held out, and the config of a tiny model over them."""
    folder = tmp_path_factory.mktemp("bev")
    settings = dict(seed=3, scenes=1, held_out=1, samples=3, image_size=(128, 72))
    make_driving_data(folder / "drives", **settings, processes=1)
    text = CONFIG.replace("{root}", str(folder / "drives")).replace("{out}", str(folder / "submission"))
    (folder / "tiny.py").write_text(text)
    return folder


@pytest.fixture(scope="module")
def trained(place):
    torch.set_num_threads(1)
    assert cli.main(["train", str(place / "tiny.py"), "--work-dir", str(place / "run")]) == 0
    return place / "run" / "epoch_2.pth"


def test_every_part_learns(trained):
    log = [json.loads(line) for line in next(trained.parent.glob("*/vis_data/scalars.json")).read_text().splitlines()]
    steps = [entry for entry in log if "loss" in entry]
    assert len(steps) == 4 and all(math.isfinite(entry["loss"]) for entry in steps)
    assert {"loss_depth", "loss_cls", "loss_bbox", "d0.loss_bbox", "loss_bev_bce", "loss_bev_dice"} <= set(steps[0])
    before, after = (load_checkpoint(trained.parent / f"epoch_{epoch}.pth")["state_dict"] for epoch in (1, 2))
    for part in ("backbone", "neck", "depth_head", "bev_encoder", "detection_head", "segmentation_head"):
        assert any(not torch.equal(before[key], value) for key, value in after.items() if key.startswith(part)), part


def test_scores_of_the_command_and_the_official_file(trained, place, tmp_path):
    out = tmp_path / "metrics.json"
    arguments = ["test", str(place / "tiny.py"), str(trained), "--work-dir", str(tmp_path / "w"), "--out", str(out)]
    assert cli.main(arguments) == 0
    metrics = json.loads(out.read_text())
    assert {"NDS", "mAP", "mATE", "mAVE", "car_AP", "vehicle_IoU", "drivable_area_IoU", "mIoU"} <= set(metrics)
    assert all(0 <= metrics[name] <= 1 for name in ("NDS", "mAP", "drivable_area_IoU"))
    nusc = NuScenes(place / "drives", "v1.0-trainval")
    found = read_submission(place / "submission" / "results_nusc.json")
    assert sorted(found.tokens) == sorted(nusc.table("sample").token(row) for row in nusc.samples("val"))
    # The classes that the drives have not are 0.
    assert np.isclose(metrics["mAP"], np.mean([metrics[f"{name}_AP"] for name in EVALUATION_CLASSES]))


def test_pictures_are_refused(trained, place, tmp_path, capsys):
    images = str(place / "drives" / "samples" / "CAM_FRONT")
    assert cli.main(["predict", str(place / "tiny.py"), str(trained), images, "--out-dir", str(tmp_path / "seen")]) == 2
    assert "what several cameras see is not drawn here yet: attnzoo test scores it" in capsys.readouterr().err


def test_a_missing_picture_is_told_before_the_first_step(place, tmp_path):
    cfg = load_config(str(place / "tiny.py"))
    cfg.work_dir = str(tmp_path / "w")
    picture = next((place / "drives" / "samples" / "CAM_BACK").iterdir())
    moved = picture.rename(picture.with_suffix(".away"))
    try:
        with pytest.raises(
            UserError, match=rf"(train|val)_dataloader\.dataset: .*{picture.name}: there is no such image"
        ):
            train(cfg)
    finally:
        moved.rename(picture)
