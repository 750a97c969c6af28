"""Evaluate a checkpoint on the test data of a config."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from .common.errors import UserError
from .common.files import check_outputs, naming, write_json
from .config.loading import load_config, parse_options
from .running.work_dir import data_paths, read_files
from .train import add_run_arguments, set_work_dir

if TYPE_CHECKING:
    from mmengine.config import Config

EPILOG = """\
examples:
  attnzoo test biformer/gfl_biformer_4e_digits epoch_4.pth
  attnzoo test my_config.py model.pth --out metrics.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("config", help="a config file, or the short name of a packaged one")
    parser.add_argument("checkpoint", help="a .pth or .safetensors file")
    parser.add_argument("--out", metavar="FILE.json", help="write the metrics there, too")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files that are there: of --out and of the metrics"
    )
    add_run_arguments(parser)


def evaluate(cfg: Config, checkpoint: str, overwrite: bool = False) -> dict[str, float]:
    """Evaluate a checkpoint on `cfg.test_dataloader` by `cfg.test_evaluator`.

    Args:
        cfg: A config with `work_dir`, where the log goes.
        checkpoint: A file that fits the model exactly.
        overwrite: Whether the metrics may replace files with their predictions.

    Returns:
        The metrics by name, e.g. `coco/bbox_mAP_50` (fraction) or `mIoU` (percent), as the metric defines them.

    Raises:
        UserError: if the data, the config or the checkpoint are not what they should be.
    """
    from .data.checks import check_data, check_scale
    from .running.channels import check_classes
    from .running.checkpoint import load_into
    from .running.engine import ProgressHook, build_model, build_runner, starting
    from .running.outputs import check_evaluator

    for field in ("work_dir", "test_dataloader", "test_cfg", "test_evaluator"):
        if cfg.get(field) is None:
            raise UserError(f"{cfg.filename}: {field} is missing, nothing can be tested")
    check_outputs([cfg.work_dir], data_paths(cfg), folders=True)
    check_data(cfg, ("test",))
    check_evaluator(cfg, "test", overwrite, [checkpoint])
    model = build_model(cfg)
    check_scale(cfg, model, ("test",))
    check_classes(cfg, model, ("test",))
    load_into(model, checkpoint)

    cfg.load_from, cfg.resume = None, False
    with naming(cfg.work_dir):
        progress = ProgressHook()
        with starting(cfg, progress):
            runner = build_runner(cfg, progress)
            load_into(getattr(runner.model, "module", runner.model), checkpoint)
            metrics = runner.test()
    return {name: float(value) for name, value in metrics.items()}


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    cfg = load_config(args.config, parse_options(args.cfg_options))
    set_work_dir(cfg, args.work_dir)
    if args.out:
        check_outputs([args.out], [args.checkpoint, *read_files(cfg)], overwrite=args.overwrite)
    # Strategies shard a training; to evaluate, each process holds the model.
    cfg.strategy = None
    from mmengine.dist import is_main_process

    from .running.engine import distributed

    with distributed(cfg, args.launcher):
        metrics = evaluate(cfg, args.checkpoint, args.overwrite)
        if not is_main_process():
            return 0
    width = max(map(len, metrics), default=0)
    for name, value in metrics.items():
        print(f"{name:<{width}}  {value:10.4f}")
    if not metrics:
        print("no metrics: the config asks for none, or nothing was predicted")
    if args.out:
        write_json(args.out, metrics)
    return 0


if __name__ == "__main__":
    from .cli import console

    console(["test", *sys.argv[1:]])
