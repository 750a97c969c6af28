"""Write a trained model as ONNX, and compare ONNX Runtime with PyTorch before the file is kept.

Detectors, segmentors, and detectors in bird's-eye view (BEV), which see several cameras, have such a form.

The file takes `images`, float32 (B, 3, H, W) with values 0 to 255, and does the rest itself: normalisation, padding,
network, decoding and non-maximum suppression. Batch, height and width are free.

  detector    boxes (B, N, 4) as x1, y1, x2, y2 in pixels, scores (B, N), labels (B, N); places without a detection
              have score 0 and label -1. Mask R-CNN adds masks (B, N, 28, 28): probabilities over the box.
  segmentor   logits (B, K, H, W) and labels (B, H, W).

A BEV detector takes one frame of several cameras, `images` (B, N, 3, H, W), with `lidar2img` (B, N, 4, 4), `can_bus`
(B, 18), `history` (B, Q, C) and `has_history` (B,), and gives boxes (B, N, 9) as x, y, z, w, l, h, yaw, vx, vy in the
LiDAR frame, scores, labels, `bev_map` (B, classes, rows, columns) and `next_history` (B, Q, C), as far as it has the
heads. A stream gives `next_history` back as `history` with the next frame; where a scene begins, has_history is False.

Resizing is left to you: give images of the size that the model was trained for. The order of channels (RGB for most
configs) and the names of the classes stand in the file's metadata; of a BEV detector also the order of the cameras, the
classes of the map, its range, and what each input and output means.
"""

from __future__ import annotations

import argparse
import sys

from .common.command import run_main
from .config.loading import add_config_options, load_config, parse_options

EPILOG = """\
examples:
  attnzoo export biformer/gfl_biformer_4e_digits detector.pth --out digits.onnx --image photo.jpg
  attnzoo export my_config.py model.pth --out model.onnx --size 512 640 --static
  attnzoo export my_bev_config.py model.pth --out bev.onnx --size 450 800

use:
  session = onnxruntime.InferenceSession("digits.onnx")
  boxes, scores, labels = session.run(None, {"images": rgb.transpose(2, 0, 1)[None].astype("float32")})
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("config", help="a config file, or the short name of a packaged one")
    parser.add_argument("checkpoint", help="a .pth or .safetensors file")
    parser.add_argument("--out", metavar="FILE.onnx", required=True, help="the file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --out if it is there already")
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="height and width that are traced and checked (default: those of the config's test pipeline, or of the "
        "cameras' pictures behind it)",
    )
    parser.add_argument("--opset", type=int, default=20, help="ONNX operator set, 18 to 23 (default: 20)")
    parser.add_argument("--static", action="store_true", help="fix batch 1 and the size, for runtimes that need it")
    parser.add_argument(
        "--image",
        metavar="FILE",
        help="compare on this picture: a trained detector finds little in the random ones that are used otherwise",
    )
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from .exporting.export import export, require_onnx

    require_onnx()
    cfg = load_config(args.config, parse_options(args.cfg_options))
    report = export(
        cfg,
        args.checkpoint,
        args.out,
        size=args.size,
        opset=args.opset,
        dynamic=not args.static,
        image=args.image,
        overwrite=args.overwrite,
        on_step=lambda step: print(f"export: {step}", file=sys.stderr, flush=True),
    )
    print(report.table())
    if "boxes" in report.outputs and not any(check.compared for check in report.checks):
        print("no detections in the pictures compared, so boxes were not: give a picture with objects by --image")
    return 0


if __name__ == "__main__":
    run_main("export", globals())
