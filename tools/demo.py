"""Train a small detector and a small segmentor of the zoo from scratch, on real images, in minutes on two cores.

The images are scikit-learn's scans of handwritten digits, set into scikit-learn's photographs. A BiFormer learns to
find the ten digits, a VAN to separate digit from photograph; both are evaluated on scans and parts of the photographs
that training never saw, draw what they see, and are exported to ONNX and compared with ONNX Runtime.

The exit code is 0 if every goal was reached and 1 if one was missed. The checkpoint is that of the last epoch, not the
best on the held-out images, since these also give the score.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .common.errors import UserError

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
