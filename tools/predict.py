"""Draw and write what a checkpoint sees in images; with a restoration model, upscale them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .common.command import run_main
from .common.errors import UserError
from .common.messages import nearest
from .config.loading import add_config_options, load_config, parse_options

if TYPE_CHECKING:
    from mmengine.config import Config

EPILOG = """\
examples:
  attnzoo predict biformer/gfl_biformer_4e_digits epoch_4.pth photo.jpg
  attnzoo predict my_config.py model.pth photos/ more/*.png --out-dir seen --score 0.5
  attnzoo predict hat_small_x4 HAT-S_SRx4.pth photo.png --out-dir large
  attnzoo predict hat/hat-small_x4_250k_df2k iter_250000.pth photo.png --out-dir large
  attnzoo predict hat_real_x4 Real_HAT_GAN_SRx4.pth photos/ --out-dir large --tile 256

writes a picture for each image and predictions.json into the folder of --out-dir:
  instances   box (x1, y1, x2, y2, pixels), score, label, name; mask as COCO run lengths, where there are masks
  fractions   the share of the pixels of each class, where there is a segmentation; its map is <name>_labels.png, a
              label a pixel: 8 bits, or 16 where there are more than 256 classes

images are JPEG, PNG, BMP, WebP, TIFF or PPM; of several frames the first is taken, of 16 bits a channel the upper 8.
an input is never written over, and of what is in --out-dir only pictures that this command wrote before

a restoration model (attnzoo list 'hat*', or a config of one) writes <name>_x<scale>.png for each image; by its own
name it needs no mm library, and takes published files and checkpoints of attnzoo train alike:
  grey stays grey, transparency is kept; 16 bits a channel and several frames are refused
  --tile N    upscale in tiles of N x N pixels, which bounds the memory (N a multiple of 16; each tile is upscaled with
              32 pixels around it); without it memory grows with the image: hat_small_x4 takes about 0.6 GB at 256 x 256
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("config", help="a config file, the short name of one, or a restoration model")
    parser.add_argument("checkpoint", help="a .pth or .safetensors file")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="images, or folders of images")
    parser.add_argument("--out-dir", default="predictions", metavar="DIR", help="where all goes (predictions)")
    parser.add_argument("--overwrite", action="store_true", help="replace other files in --out-dir, too")
    parser.add_argument("--score", type=float, help="boxes below it are not drawn nor written (0.3)")
    parser.add_argument("--tile", type=int, metavar="N", help="of a restoration model: upscale in tiles of N pixels")
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from .predicting.upscale import restoration_models

    names = restoration_models()
    if args.config in names:
        import timm

        if args.score is not None or args.cfg_options:
            raise UserError(f"--score and --cfg-options are not for {args.config}, which upscales")
        return _upscale(args, timm.create_model(args.config), args.tile)
    no_tiles = f"--tile is for restoration models (attnzoo list 'hat*'), not for {args.config!r}"
    try:
        cfg = load_config(args.config, parse_options(args.cfg_options))
    except UserError as error:
        raise error if args.tile is None else UserError(no_tiles + nearest(args.config, names)) from error
    kind = (cfg.get("model") or {}).get("type")
    if kind == "attnzoo.BEVDetector":
        raise UserError(
            f"{args.config}: what several cameras see is not drawn here yet: attnzoo test scores it, and with "
            "test_evaluator.out_dir=FOLDER it writes the boxes"
        )
    if kind != "attnzoo.Restorer":
        if args.tile is not None:
            raise UserError(no_tiles)
        return _predict(args, cfg)
    if args.score is not None:
        raise UserError(f"--score is not for {args.config}, which upscales")
    from .running.engine import build_model

    restorer: Any = build_model(cfg)
    return _upscale(args, restorer.model, args.tile or restorer.tile, cfg.filename)


def _predict(args: argparse.Namespace, cfg: Config) -> int:
    from .predicting.prediction import predict

    score = 0.3 if args.score is None else args.score
    if not 0 <= score <= 1:
        raise UserError(f"--score must be between 0 and 1, got {score}")
    pictures = predict(cfg, args.checkpoint, args.images, args.out_dir, score, args.overwrite)
    print(f"{len(pictures)} pictures and predictions.json in {args.out_dir!r}")
    return 0


def _upscale(args: argparse.Namespace, model: Any, tile: int | None, config: str | None = None) -> int:
    from .predicting.upscale import upscale

    pictures = upscale(model, args.checkpoint, args.images, args.out_dir, tile, args.overwrite, config)
    print(f"{len(pictures)} pictures in {args.out_dir!r}")
    return 0


if __name__ == "__main__":
    run_main("predict", globals())
