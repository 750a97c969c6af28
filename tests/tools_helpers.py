"""A data set of eight coloured squares, the smallest detector and segmentor over it, and the command line."""

import json
import os
import subprocess
from pathlib import Path

import interpreters
import numpy as np
from PIL import Image

from attnzoo.tools import cli

COLOURS = {"red": (230, 40, 40), "blue": (40, 60, 230)}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": ""}

DETECTOR = """
custom_imports = dict(imports=["attnzoo.heads"])
default_scope = "mmdet"
classes = ("red", "blue")
model = dict(
    type="RetinaNet",
    data_preprocessor=dict(
        type="DetDataPreprocessor", mean=[127.0] * 3, std=[60.0] * 3, bgr_to_rgb=True, pad_size_divisor=32
    ),
    backbone=dict(type="attnzoo.Backbone", model_name="test_resnet", out_indices=(2, 3)),
    neck=dict(type="FPN", in_channels=[48, 192], out_channels=16, num_outs=2),
    bbox_head=dict(
        type="RetinaHead", num_classes=2, in_channels=16, feat_channels=16, stacked_convs=1,
        anchor_generator=dict(type="AnchorGenerator", octave_base_scale=3, scales_per_octave=1, ratios=[1.0],
                              strides=[8, 16]),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder"),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True),
        loss_bbox=dict(type="L1Loss"),
    ),
    train_cfg=dict(
        assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0.0, ignore_iof_thr=-1),
        sampler=dict(type="PseudoSampler"), allowed_border=-1, pos_weight=-1,
    ),
    test_cfg=dict(nms_pre=100, min_bbox_size=0, score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5),
                  max_per_img=10),
)
load = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True)]
pack = dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"))
data = dict(type="CocoDataset", data_root="{root}", ann_file="train.json", data_prefix=dict(img="images"),
            metainfo=dict(classes=classes, palette=[(230, 40, 40), (40, 60, 230)]))
train_pipeline = [*load, dict(type="RandomFlip", prob=0.5), pack]
test_pipeline = [load[0], dict(type="Resize", scale=(64, 64), keep_ratio=True), load[1], pack]
train_dataloader = dict(batch_size=2, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=True),
                        dataset=dict(**data, pipeline=train_pipeline))
val_dataloader = dict(batch_size=1, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False),
                      dataset=dict(**data, test_mode=True, pipeline=test_pipeline))
val_evaluator = dict(type="CocoMetric", ann_file="{root}/train.json", metric="bbox")
"""

SEGMENTOR = """
custom_imports = dict(imports=["attnzoo.heads"])
default_scope = "mmseg"
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor", mean=[127.0] * 3, std=[60.0] * 3, bgr_to_rgb=True, size=(64, 64), seg_pad_val=255
    ),
    backbone=dict(type="attnzoo.Backbone", model_name="test_resnet", out_indices=(1, 2)),
    decode_head=dict(
        type="FPNHead", in_channels=[32, 48], in_index=[0, 1], feature_strides=[4, 8], channels=16, num_classes=3,
        norm_cfg=dict(type="BN"), align_corners=False, loss_decode=dict(type="CrossEntropyLoss"),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
data = dict(type="BaseSegDataset", data_root="{root}", data_prefix=dict(img_path="images", seg_map_path="maps"),
            metainfo=dict(classes=("ground", "red", "blue"), palette=[(0, 0, 0), (230, 40, 40), (40, 60, 230)]))
load = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations")]
train_dataloader = dict(batch_size=2, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=True),
                        dataset=dict(**data, pipeline=[*load, dict(type="PackSegInputs")]))
test_pipeline = [load[0], dict(type="Resize", scale=(64, 64), keep_ratio=True), load[1], dict(type="PackSegInputs")]
val_dataloader = dict(batch_size=1, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False),
                      dataset=dict(**data, pipeline=test_pipeline))
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
"""

SCHEDULE = """
test_dataloader, test_evaluator = val_dataloader, val_evaluator
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=2e-3))
param_scheduler = [dict(type="CosineAnnealingLR", T_max={epochs}, by_epoch=True)]
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs={epochs}, val_interval={epochs})
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(logger=dict(type="LoggerHook", interval=1),
                     checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=1))
randomness = dict(seed=0)
"""


def make_data(root: Path, count: int = 8, size: int = 64) -> Path:
    """Write `count` images with two squares each, a COCO file and segmentation maps; return `root`."""
    generator = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    (root / "maps").mkdir()
    images, annotations = [], []
    for index in range(count):
        pixels = generator.integers(90, 150, (size, size, 3), dtype=np.uint8)
        labels = np.zeros((size, size), np.uint8)
        for category, (colour, left) in enumerate(zip(COLOURS.values(), (2, size // 2), strict=True), start=1):
            side = int(generator.integers(20, 28))
            top = int(generator.integers(0, size - side))
            pixels[top : top + side, left : left + side] = colour
            labels[top : top + side, left : left + side] = category
            box = [left, top, side, side]
            polygon = [left, top, left + side, top, left + side, top + side, left, top + side]
            annotations.append(
                dict(id=len(annotations) + 1, image_id=index, category_id=category, bbox=box, area=side * side,
                     iscrowd=0, segmentation=[polygon])
            )  # fmt: skip
        Image.fromarray(pixels).save(root / "images" / f"{index}.jpg", quality=95)
        Image.fromarray(labels).save(root / "maps" / f"{index}.png")
        images.append(dict(id=index, file_name=f"{index}.jpg", width=size, height=size))
    categories = [dict(id=index, name=name) for index, name in enumerate(COLOURS, start=1)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (root / "train.json").write_text(json.dumps(content))
    return root


def write_config(path: Path, text: str, root: Path, epochs: int = 2, extra: str = "") -> Path:
    """Write `DETECTOR` or `SEGMENTOR` with the schedule, for the data in `root`."""
    path.write_text((text + SCHEDULE).replace("{root}", str(root)).replace("{epochs}", str(epochs)) + extra)
    return path


def attnzoo(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Run `attnzoo` in a process of its own, which has the libraries at hand."""
    code = f"from attnzoo.tools.cli import console; console({[str(argument) for argument in arguments]!r})"
    return interpreters.run(code, cwd, ENVIRONMENT, interpreters.TRAINING)


def listing(folder: Path) -> dict[str, int]:
    """Every file below `folder` with its size, to be compared before and after."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` with its bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class MakesFolder:
    """Pickled, it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def refused(capsys, *arguments, folder):
    """Run a command that must be refused; return its message."""
    before = contents(folder)
    assert cli.main([str(argument) for argument in arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("attnzoo: error: ")
    assert message.count("\n") == 1
    assert "Traceback" not in message
    assert contents(folder) == before
    assert [path.name for path in folder.iterdir() if path.name.startswith("work_dirs")] == []
    return message


def run_training(config, work_dir, *options) -> int:
    """Run `attnzoo train` in this process; give its exit code."""
    return cli.main(["train", str(config), "--work-dir", str(work_dir), *map(str, options)])


def error_line(capsys) -> str:
    """The one line that a command has printed to say what is wrong."""
    text = capsys.readouterr().err
    lines = [line for line in text.splitlines() if line.startswith("attnzoo: ")]
    assert len(lines) == 1 and "Traceback" not in text, text
    return lines[0]


def paint(path, hue: tuple[int, int, int], count: int, seed: int) -> None:
    """Noisy pictures of one colour and of odd sizes."""
    path.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        size = (*rng.integers(33, 70, 2), 3)
        pixels = (np.array(hue) + rng.integers(-60, 60, size)).clip(0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(path / f"{i:02d}.{'png' if i % 2 else 'jpg'}")


HUES = {"blue": (60, 60, 200), "green": (60, 180, 60), "red": (200, 60, 60)}
