"""One detector trained and evaluated, in a process of its own."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from ..common.files import remove_files, write_json
from ..config.loading import load_config
from ..running.evaluation import evaluate
from ..running.training import train
from ..running.work_dir import last_checkpoint, run_files
from .settings import CONFIG, METRIC, NONE, STAGES


def work(given: str) -> None:
    """Train and evaluate one detector, in a process of its own.

    Args:
        given: As JSON: `module`, `seed`, `folder`, `data_root` and `options`.
    """
    task = json.loads(given)
    torch.set_num_threads(1)
    folder = Path(task["folder"])

    def config() -> Any:
        cfg = load_config(CONFIG, {"data_root": task["data_root"], "randomness.seed": task["seed"], **task["options"]})
        cfg.work_dir = str(folder)
        cfg.train_cfg.val_interval = cfg.train_cfg.max_epochs + 1
        cfg.default_hooks.checkpoint = dict(type="CheckpointHook", interval=1, max_keep_ckpts=1)
        if task["module"] != NONE:
            cfg.model.backbone.attention = dict(type=task["module"], stages=STAGES, identity=False)
        return cfg

    cfg = config()
    cfg.resume = True
    resumed = last_checkpoint(folder) is not None
    start = time.process_time()
    model: Any = train(cfg).model
    seconds = time.process_time() - start
    backbone = model.backbone
    attention = sum(p.numel() for name, p in backbone.model.named_parameters() if name in backbone.attention_keys)
    metrics = evaluate(config(), str(last_checkpoint(folder)))
    remove_files(folder, [path for path in run_files(folder) if path.suffix == ".pth"])
    result = {
        # mmdet's metric gives nothing at all where nothing at all was detected.
        "metric": metrics.get(METRIC, 0.0),
        "metrics": metrics,
        "parameters": sum(p.numel() for p in model.parameters()),
        "attention_parameters": attention,
        # Of a run that was interrupted only the rest is known.
        "cpu_seconds_of_training": None if resumed else seconds,
    }
    write_json(folder / "result.json", result)
