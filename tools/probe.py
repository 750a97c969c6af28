"""Compare frozen backbones by what a small classifier learns from their features.

The backbone is in evaluation mode and never trained. Its features of all images are computed once, without
augmentation, and held in memory where they fit. From them a head learns to classify: attentive pooling with learned
queries, and the mean over all places (a linear probe) beside it. What is told is the accuracy on held-out images after
the last epoch, as the mean over the seeds of the head's training.
"""

from __future__ import annotations

import argparse

from .data.labelled_images import digits, image_folder

EPILOG = """\
examples:
  attnzoo probe van_b0 biformer_tiny pvt_v2_b0 --digits
  attnzoo probe van_b0 litv2_small --checkpoint van_b0.pth litv2_s.pth --data flowers
  attnzoo probe resnet50 --pretrained --data flowers --pooling attentive --seeds 0

--data is a folder of images by class, CLASS/*.jpg, of which a share is held out, or one with such folders train/ and
val/ (or test/). --digits are the 1797 scans of scikit-learn, every fifth of a class held out.

writes into the folder of --out:
  MODEL_POOLING_seed_N.safetensors   each head; attnzoo.heads.probing.load_head reads it
  result.json                        the table, settings, versions and hardware
"""

# Of scikit-learn's digits, which have 8 × 8 pixels; models as they are published expect about 224.
_DIGITS_SIZE = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("models", nargs="+", metavar="MODEL", help="models of the zoo (attnzoo list) or of timm")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", metavar="FOLDER", help="images in folders by class")
    source.add_argument("--digits", action="store_true", help="scikit-learn's handwritten digits")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--checkpoint", nargs="+", metavar="FILE", help="weights of each model (random)")
    weights.add_argument("--pretrained", action="store_true", help="timm's own weights, which it may download")
    parser.add_argument(
        "--size", type=int, metavar="PX", help=f"of the images (the model's; {_DIGITS_SIZE} for digits)"
    )
    parser.add_argument(
        "--pooling", nargs="+", choices=("attentive", "mean"), default=["attentive", "mean"], help="of the heads (both)"
    )
    parser.add_argument("--queries", type=int, metavar="N", help="of the attention (32, or what divides the channels)")
    parser.add_argument("--epochs", type=int, default=50, metavar="N", help="of the heads' training (50)")
    parser.add_argument("--lr", type=float, default=1e-3, metavar="X", help="learning rate at its start (0.001)")
    parser.add_argument("--batch", type=int, default=128, metavar="N", help="images at a time (128)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="of the heads (0 1 2)")
    parser.add_argument("--val-share", type=float, default=0.2, metavar="X", help="held out of --data (0.2)")
    parser.add_argument("--memory", type=float, default=4.0, metavar="GIB", help="for features; else recomputed (4)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read images (0)")
    parser.add_argument("--out", metavar="DIR", default="work_dirs/probe", help="where all goes (work_dirs/probe)")
    parser.add_argument("--overwrite", action="store_true", help="replace what an older probing has left in --out")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from .probing.probe import probe
    from .probing.results import table
    from .probing.settings import Settings

    data = digits() if args.digits else image_folder(args.data, args.val_share)
    settings = Settings(
        size=args.size or (_DIGITS_SIZE if args.digits else None),
        poolings=tuple(dict.fromkeys(args.pooling)),
        queries=args.queries,
        epochs=args.epochs,
        lr=args.lr,
        batch=args.batch,
        seeds=tuple(args.seeds),
        memory=args.memory,
        workers=args.workers,
    )
    results = probe(args.models, data, args.out, settings, args.checkpoint, args.pretrained, args.overwrite)
    print(table(results))
    return 0
