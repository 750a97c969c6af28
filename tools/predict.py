"""Draw and write what a checkpoint sees in images; with a restoration model, upscale them."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import add_config_options, load_config, nearest, one_line, parse_options
from .errors import UserError
from .files import atomic_path, write_json

if TYPE_CHECKING:
    import numpy as np
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
  fractions   the share of the pixels of each class, where there is a segmentation; its map is <name>_labels.png

a restoration model (attnzoo list 'hat*', or a config of one) writes <name>_x<scale>.png for each image; by its own
name it needs no mm library, and takes published files and checkpoints of attnzoo train alike:
  grey stays grey, transparency is kept, 16 bits a channel are refused
  --tile N    upscale in tiles of N x N pixels, which bounds the memory (N a multiple of 16; each tile is upscaled with
              32 pixels around it); without it memory grows with the image: hat_small_x4 takes about 0.6 GB at 256 x 256
"""
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# mmdet's panoptic maps hold class + 1000 * number of the instance.
INSTANCE_OFFSET = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("config", help="a config file, the short name of one, or a restoration model")
    parser.add_argument("checkpoint", help="a .pth or .safetensors file")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="images, or folders of images")
    parser.add_argument("--out-dir", default="predictions", metavar="DIR", help="where all goes (predictions)")
    parser.add_argument("--score", type=float, help="boxes below it are not drawn nor written (0.3)")
    parser.add_argument("--tile", type=int, metavar="N", help="of a restoration model: upscale in tiles of N pixels")
    add_config_options(parser)


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """The image files among `paths` and in the folders among them, each of which can be read to its end.

    Raises:
        UserError: naming the first that is missing or no image, or if there is none at all.
    """
    from PIL import Image

    images: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            images += sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        elif path.is_file():
            images.append(path)
        else:
            raise UserError(f"no image {str(path)!r}")
    if not images:
        raise UserError(f"no images in {', '.join(map(str, paths))} (looked for {', '.join(SUFFIXES)})")
    for path in images:
        try:
            with Image.open(path) as image:
                image.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"{path}: not an image that can be read ({one_line(error, 160)})") from error
    return images


def _pipeline(cfg: Config) -> list[Any]:
    """The transforms of the test data, less those that load annotations."""
    dataset = cfg.test_dataloader.dataset
    while "pipeline" not in dataset:
        dataset = dataset.dataset if "dataset" in dataset else dataset.datasets[0]
    return [step for step in dataset.pipeline if "Annotations" not in str(step.get("type"))]


def _classes(cfg: Config, meta: dict[str, Any]) -> tuple[list[str], list[tuple[int, ...]]]:
    """Names and colours of the classes: as the checkpoint has them, else as the config's test data has them."""
    from mmengine.registry import DATASETS

    from .visualise import default_palette

    found = {key.lower(): value for key, value in (meta.get("dataset_meta") or {}).items()}
    if "classes" not in found:
        found = DATASETS.build({**cfg.test_dataloader.dataset, "lazy_init": True}).metainfo
    names, palette = list(found["classes"]), found.get("palette")
    if not isinstance(palette, (list, tuple)) or len(palette) < len(names):
        palette = default_palette(len(names))
    return names, [tuple(int(value) for value in colour) for colour in palette]


def _draw(image: np.ndarray, sample: Any, names: list[str], palette: list, score: float) -> tuple[np.ndarray, dict]:
    """Draw what a data sample predicts; return the picture and its entry for the JSON, less the file's name."""
    import numpy as np

    from .visualise import draw_instances, draw_labels

    entry: dict[str, Any] = {"width": image.shape[1], "height": image.shape[0]}
    labels = None
    if "pred_sem_seg" in sample:
        labels = sample.pred_sem_seg.cpu().numpy().data.squeeze(0)
    elif "pred_panoptic_seg" in sample:
        labels = sample.pred_panoptic_seg.cpu().numpy().sem_seg.squeeze(0) % INSTANCE_OFFSET
    if labels is not None:
        image = draw_labels(image, labels, names, palette)
        counts = np.bincount(labels[labels < len(names)].ravel().astype(np.int64), minlength=len(names))
        entry["fractions"] = {name: int(count) / labels.size for name, count in zip(names, counts, strict=True)}
    if "pred_instances" in sample:
        found = sample.pred_instances.cpu().numpy()
        found = found[found.scores >= score]
        masks = found.masks.astype(bool) if "masks" in found else None
        image = draw_instances(image, found.bboxes, found.labels, names, palette, found.scores, masks)
        entry["instances"] = [
            {"box": [round(float(value), 2) for value in box], "score": round(float(confidence), 4),
             "label": int(label), "name": names[label]}
            for box, confidence, label in zip(found.bboxes, found.scores, found.labels, strict=True)
        ]  # fmt: skip
        for instance, mask in zip(entry["instances"], masks if masks is not None else (), strict=False):
            instance["mask"] = _run_lengths(mask)
    return image, entry


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed run lengths of a mask (H, W)."""
    import numpy as np
    from pycocotools.mask import encode

    code = encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}


def predict(
    cfg: Config, checkpoint: str | Path, images: Sequence[str | Path], out_dir: str | Path, score: float = 0.3
) -> list[Path]:
    """Run a detector or segmentor of any mm library over images; write pictures and `predictions.json`.

    Args:
        cfg: Its config; the pipeline is that of the test data.
        checkpoint: A file that fits the model exactly.
        images: Image files, and folders of them.
        out_dir: Where all goes.
        score: Boxes below it are left out.

    Returns:
        The pictures, in the order of the images.

    Raises:
        UserError: if an image cannot be read or the checkpoint does not fit; nothing has been written then.
    """
    import mmcv
    import torch
    from mmengine.dataset import Compose
    from mmengine.device import get_device
    from mmengine.model import revert_sync_batchnorm
    from PIL import Image

    from .checkpoint import load_into
    from .engine import build_model
    from .progress import bar

    files = find_images(images)
    if cfg.get("test_dataloader") is None:
        raise UserError(f"{cfg.filename}: test_dataloader is missing, whose pipeline reads the images")
    model = revert_sync_batchnorm(build_model(cfg))
    names, palette = _classes(cfg, load_into(model, checkpoint)["meta"])
    model = model.to(get_device()).eval()
    pipeline = Compose(_pipeline(cfg))

    out_dir = Path(out_dir)
    pictures: list[Path] = []
    entries: list[dict[str, Any]] = []
    taken: set[str] = set()
    for file in bar(files, title="predict"):
        name = next(name for name in candidates(file.stem) if name not in taken)
        taken.add(name)
        data = pipeline({"img_path": str(file), "img_id": len(pictures)})
        with torch.inference_mode():
            sample = model.test_step({"inputs": [data["inputs"]], "data_samples": [data["data_samples"]]})[0]
        picture, entry = _draw(mmcv.imread(str(file), channel_order="rgb"), sample, names, palette, score)
        if "pred_sem_seg" in sample:
            entry["map"] = f"{name}_labels.png"
            with atomic_path(out_dir / entry["map"]) as temporary:
                Image.fromarray(sample.pred_sem_seg.cpu().numpy().data.squeeze(0).astype("uint8")).save(temporary)
        pictures.append(out_dir / f"{name}.jpg")
        with atomic_path(pictures[-1]) as temporary:
            Image.fromarray(picture).save(temporary, quality=92)
        entries.append({"file": str(file), "picture": pictures[-1].name, **entry})
    write_json(out_dir / "predictions.json", {"classes": names, "images": entries})
    return pictures


def candidates(stem: str) -> Iterator[str]:
    """Names for the picture of an image, as images in several folders may share theirs."""
    yield stem
    yield from (f"{stem}-{number}" for number in itertools.count(2))


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from .upscale import restoration_models, upscale

    names = restoration_models()
    if args.config in names:
        import timm

        if args.score is not None or args.cfg_options:
            raise UserError(f"--score and --cfg-options are not for {args.config}, which upscales")
        model, tile = timm.create_model(args.config), args.tile
    else:
        no_tiles = f"--tile is for restoration models (attnzoo list 'hat*'), not for {args.config!r}"
        try:
            cfg = load_config(args.config, parse_options(args.cfg_options))
        except UserError as error:
            raise error if args.tile is None else UserError(no_tiles + nearest(args.config, names)) from error
        if cfg.get("model", {}).get("type") != "attnzoo.Restorer":
            if args.tile is not None:
                raise UserError(no_tiles)
            score = 0.3 if args.score is None else args.score
            pictures = predict(cfg, args.checkpoint, args.images, args.out_dir, score)
            print(f"{len(pictures)} pictures and predictions.json in {args.out_dir}")
            return 0
        if args.score is not None:
            raise UserError(f"--score is not for {args.config}, which upscales")
        from .engine import build_model

        restorer: Any = build_model(cfg)
        model, tile = restorer.model, args.tile or restorer.tile
    pictures = upscale(model, args.checkpoint, args.images, args.out_dir, tile)
    print(f"{len(pictures)} pictures in {args.out_dir}")
    return 0


if __name__ == "__main__":
    from .cli import main

    sys.exit(main(["predict", *sys.argv[1:]]))
