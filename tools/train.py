"""Train the model of a config with mmengine's Runner."""

from __future__ import annotations

import argparse

from .common.command import run_main
from .common.errors import UserError
from .config.loading import load_config, parse_options
from .running.arguments import add_run_arguments, set_work_dir
from .running.work_dir import last_checkpoint, run_folders

EPILOG = """\
examples:
  attnzoo train biformer/gfl_biformer_4e_digits
  attnzoo train my_config.py --cfg-options train_cfg.max_epochs=24 optim_wrapper.optimizer.lr=1e-4
  attnzoo train my_config.py --work-dir work/a --resume          go on from its last checkpoint
  attnzoo train my_config.py --work-dir work/a --overwrite       start again, and remove what it has left there
  torchrun --nproc-per-node 2 -m attnzoo.tools.train my_config.py --launcher pytorch
  torchrun --nproc-per-node 2 -m attnzoo.tools.train my_config.py --launcher pytorch --cfg-options \\
    strategy.type=FSDPStrategy strategy.blocks=True            parameters, gradients and optimizer in shards
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("config", help="a config file, or the short name of a packaged one (attnzoo list --configs)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CKPT",
        help="go on from a checkpoint; alone, or as auto, from the last one in the work directory, if any",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="remove the checkpoints and logs of an older training in the work directory, which is refused otherwise",
    )
    parser.add_argument("--seed", type=int, help="seed of everything drawn at random")
    parser.add_argument("--amp", action="store_true", help="mixed precision (needs a GPU)")
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import torch

    cfg = load_config(args.config, parse_options(args.cfg_options))
    set_work_dir(cfg, args.work_dir)
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == "auto" else args.resume
    if args.seed is not None:
        cfg.randomness = {**cfg.get("randomness", {}), "seed": args.seed}
    if args.amp:
        if not torch.cuda.is_available():
            raise UserError("--amp needs a CUDA device")
        cfg.optim_wrapper.type = "AmpOptimWrapper"
        cfg.optim_wrapper.setdefault("loss_scale", "dynamic")
    from .running.distribution import distributed
    from .running.training import train

    with distributed(cfg, args.launcher):
        runner = train(cfg, args.overwrite)
        if runner.rank == 0:
            print(f"trained {runner.epoch} epochs, {runner.iter} iterations: {last_checkpoint(*run_folders(cfg))}")
    return 0


if __name__ == "__main__":
    run_main("train", globals())
