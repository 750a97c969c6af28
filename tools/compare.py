"""Train the same small detector without and with each plug-in attention, several seeds each, and print the table.

The images are those of `attnzoo demo`. Every run starts from random weights, has one thread and the same schedule, and
is evaluated once, on the held-out images, after its last iteration. The modules stand bare, as in their papers, behind
the three stages that the detector reads. Runs that are finished are kept: called again, the command does the missing
ones.

So short a training of so small a detector says how the modules behave in it, not how they rank on COCO.
"""

from __future__ import annotations

import argparse
import os

from .config.loading import add_config_options, parse_options

EPILOG = """\
examples:
  attnzoo compare
  attnzoo compare --modules ela cbam triplet --seeds 0 1 2 3 4
  attnzoo compare --modules ela --seeds 0 --cfg-options train_cfg.max_epochs=4

writes into the folder of --out:
  data/                    the data set, as the demo's
  runs/MODULE/seed_N/      log and result.json of each run
  comparison.json          the table, every run, versions and hardware
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--out", metavar="DIR", default="work_dirs/compare", help="where all goes (work_dirs/compare)")
    parser.add_argument("--modules", nargs="+", metavar="NAME", help="the modules to compare (all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="of training (0 1 2)")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at once, one thread each (as many as cores)")
    parser.add_argument(
        "--overwrite", action="store_true", help="remove runs of other settings, which are refused otherwise"
    )
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from .comparing.comparison import compare
    from .comparing.results import table

    results = compare(
        args.out,
        args.modules,
        args.seeds,
        args.jobs or os.cpu_count() or 1,
        parse_options(args.cfg_options),
        args.overwrite,
    )
    print(table(results))
    return 0
