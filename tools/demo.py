"""Train a small detector and a small segmentor of the zoo from scratch, on real images, in minutes on two cores.

The images are scikit-learn's scans of handwritten digits, set into scikit-learn's photographs. A BiFormer learns to
find the ten digits, a VAN to separate digit from photograph; both are evaluated on scans and parts of the photographs
that training never saw, draw what they see, and are exported to ONNX and compared with ONNX Runtime.

The exit code is 0 if every goal was reached and 1 if one was missed. The checkpoint is that of the last epoch, not the
best on the held-out images, since these also give the score.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .common.errors import UserError
from .common.files import write_json

EPILOG = """\
examples:
  attnzoo demo
  attnzoo demo --quick              every step on a handful of images, in about a minute; no goal can be reached
  attnzoo demo --data-only          only build the data set

writes into the folder of --out:
  data/             the data set, COCO's format
  detector/         logs, checkpoint, metrics, predictions, model.onnx
  segmentor/        the same
  detections.png    truth and prediction of held-out images
  segmentation.png
  results.json      the table of the end, with versions and hardware
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "--out", metavar="DIR", help="where all goes (work_dirs/demo, with --quick work_dirs/demo_quick)"
    )
    parser.add_argument("--quick", action="store_true", help="a few images and iterations, to see that every step runs")
    parser.add_argument("--data-only", action="store_true", help="build the data set and stop")
    parser.add_argument(
        "--overwrite", action="store_true", help="remove the models of an older demo, which is refused otherwise"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the data set and of training (0)")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from .demonstration.demo import build_data, check_libraries, claimed, demo

    if args.seed < 0:
        raise UserError(f"--seed must not be negative, got {args.seed}")
    out = Path(args.out or ("work_dirs/demo_quick" if args.quick else "work_dirs/demo"))
    if args.data_only:
        check_libraries()
        with claimed(out):
            print(build_data(out, args.quick, args.seed).root)
        return 0
    results = demo(out, args.quick, args.seed, args.overwrite)
    return 0 if results["reached"] or args.quick else 1


def work(settings: str) -> None:
    """Do everything for one model, in a process of its own.

    Args:
        settings: As JSON: `task` (index in `TASKS`), `out`, `data_root`, `images`, `quick`, `seed` and
            `overwrite`.
    """
    from .config.loading import load_config
    from .demonstration.results import report, timed
    from .demonstration.tasks import QUICK, SCORE, STEP, TASKS
    from .exporting.export import export
    from .predicting.prediction import predict
    from .running.evaluation import evaluate
    from .running.training import train
    from .running.work_dir import last_checkpoint

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
