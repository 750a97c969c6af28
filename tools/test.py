"""Evaluate a checkpoint on the test data of a config."""

from __future__ import annotations

import argparse

from .common.command import run_main
from .common.files import write_json
from .common.outputs import check_outputs
from .config.inputs import read_files
from .config.loading import load_config, parse_options
from .running.arguments import add_run_arguments, set_work_dir

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


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    cfg = load_config(args.config, parse_options(args.cfg_options))
    set_work_dir(cfg, args.work_dir)
    if args.out:
        check_outputs([args.out], [args.checkpoint, *read_files(cfg)], overwrite=args.overwrite)
    # Strategies shard a training; to evaluate, each process holds the model.
    cfg.strategy = None
    from mmengine.dist import is_main_process

    from .running.distribution import distributed
    from .running.evaluation import evaluate

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
    run_main("test", globals())
