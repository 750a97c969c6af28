"""One model of the demo trained, evaluated, drawn and exported, in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..common.files import write_json
from ..config.loading import load_config
from ..exporting.export import export
from ..predicting.prediction import predict
from ..running.evaluation import evaluate
from ..running.training import train
from ..running.work_dir import last_checkpoint
from .results import report, timed
from .tasks import QUICK, SCORE, STEP, TASKS


def work(settings: str) -> None:
    """Do everything for one model, in a process of its own.

    Args:
        settings: As JSON: `task` (index in `TASKS`), `out`, `data_root`, `images`, `quick`, `seed` and
            `overwrite`.
    """
    given = json.loads(settings)
    task, out = TASKS[given["task"]], Path(given["out"])
    place = {"data_root": given["data_root"]}
    schedule = {"randomness.seed": given["seed"], **(QUICK if given["quick"] else {})}

    def begin(command: str, arguments: str, options: dict[str, Any]) -> Any:
        """Show the command that does the same, and give the config that it would have."""
        overrides = " ".join(f"{key}={value}" for key, value in options.items())
        print(f"{STEP}attnzoo {command} {task.config} {arguments} --cfg-options {overrides}", flush=True)
        cfg = load_config(task.config, options)
        cfg.work_dir = str(out)
        return cfg

    seconds: dict[str, float] = {}
    images, replacing = given["images"], " --overwrite" if given["overwrite"] else ""
    with timed(seconds, "train"):
        cfg = begin("train", f"--work-dir {out}{replacing}", {**place, **schedule})
        model = train(cfg, overwrite=given["overwrite"]).model
    checkpoint = str(last_checkpoint(out))
    with timed(seconds, "test"):
        metrics = evaluate(begin("test", f"{checkpoint} --work-dir {out}", place), checkpoint)
    with timed(seconds, "predict"):
        cfg = begin("predict", f"{checkpoint} {' '.join(images)} --out-dir {out / 'predictions'}", place)
        predict(cfg, checkpoint, images, out / "predictions", score=SCORE)
    with timed(seconds, "export"):
        cfg = begin("export", f"{checkpoint} --out {out / 'model.onnx'}{replacing} --image {images[0]}", place)
        exported = export(cfg, checkpoint, out / "model.onnx", image=images[0], overwrite=given["overwrite"])
    write_json(out / "report.json", report(task, checkpoint, model, metrics, exported, seconds))
