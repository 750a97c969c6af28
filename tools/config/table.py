"""The table of the packaged configs, for `configs/README.md`."""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any

from .loading import CONFIG_ROOT, list_configs, load_config

# Figures of `configs/results.json` and how they are told.
FIGURES = {
    "box_ap": "{} box AP",
    "mask_ap": "{} mask AP",
    "miou": "{} mIoU",
    "miou_ms": "{} mIoU at several scales",
    "nds": "{} NDS",
    "map": "{} mAP",
    "psnr_set5": "{} dB on Set5",
    "psnr_urban100": "{} dB on Urban100",
}

_INTRODUCTION = """\
# configs

<!-- Written by `attnzoo list --configs --table`; a test checks that it is current. -->

A name is `family/head_backbone_schedule_data`, as in mmdetection: `1x`, `3x` and `100e` are 12, 36 and 100 epochs,
`40k` to `800k` iterations; `-ms` trains at several image sizes. A family is that of the backbone; models in bird's-eye
view stand together in `bevformer`, where `r50` and `r101-dcn` are mmdetection's ResNets and `-dfa3d` spreads images
over depth. Each config says in its first line whose recipe it is. Figures are the authors' claims for their weights,
linked to their source, never measured here; "not published" means that neither the paper's repository nor the records
behind this table (`configs/results.json`) have one.

Data are expected where the mm libraries expect them: COCO in `data/coco`, ADE20K in `data/ade/ADEChallengeData2016`,
nuScenes in `data/nuscenes` (`--cfg-options data_root=…` moves it). Weights to start from are given by
`--cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=weights.pth`.

The learning rate belongs to the images of one update, eight GPUs together. On one GPU `auto_scale_lr.enable=True`
scales it to the images that there are; then schedules in epochs see as many images, those in iterations an eighth,
unless `train_dataloader.batch_size` is raised to the number in the table, where memory allows. `--amp` trains in mixed
precision, as most of the published runs did. mmdetection's and mmsegmentation's own `tools/train.py` take the files as
they are.
"""


def published(result: dict[str, Any] | None) -> str:
    """A cell with the figures of an entry of `configs/results.json`."""
    if result is None:
        return "not published"
    figures = ", ".join(text.format(result[key]) for key, text in FIGURES.items() if key in result)
    return f"[{figures}]({result['source']})"


def table() -> str:
    """All configs in Markdown: published figures, images an update, and the commands for one GPU and for eight."""
    results = json.loads((CONFIG_ROOT / "results.json").read_text(encoding="utf-8"))
    lines = [_INTRODUCTION]
    for family, names in groupby(list_configs(), key=lambda name: name.split("/")[0]):
        lines += [
            f"## {family}",
            "",
            "| config | published | images | one GPU | eight GPUs |",
            "| --- | --- | --- | --- | --- |",
        ]
        for name in names:
            cfg = load_config(name)
            scaled = "auto_scale_lr" in cfg
            images = cfg.auto_scale_lr.base_batch_size if scaled else 8 * cfg.train_dataloader.batch_size
            option = " --cfg-options auto_scale_lr.enable=True" if scaled else ""
            cells = [
                f"[{name.split('/')[1]}]({name}.py)",
                published(results.get(name)),
                str(images),
                f"`attnzoo train {name}{option}`",
                f"`torchrun --nproc-per-node 8 -m attnzoo.tools.train {name} --launcher pytorch`",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)
