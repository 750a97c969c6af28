"""Draw and write what a checkpoint sees in images; with a restoration model, upscale them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common.errors import UserError
from .common.files import atomic_path, write_json
from .config.checks import pipeline_steps
from .config.loading import add_config_options, building, load_config, nearest, one_line, parse_options, plain_files
from .data.images import find_images, read_image
from .running.outputs import STAMP, Outputs, png_stamp

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
# Pixels that the side of a JPEG picture can have.
_LONGEST = 65_500
# mmdet's panoptic maps hold class + 1000 * number of the instance.
INSTANCE_OFFSET = 1000


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


class _Loaded:
    """In the place of a pipeline's step that reads the file: the pixels are there, (H, W, 3), BGR."""

    def __init__(self, to_float32: bool) -> None:
        self.to_float32 = to_float32

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        if self.to_float32:
            results["img"] = results["img"].astype("float32")
        results["img_shape"] = results["ori_shape"] = results["img"].shape[:2]
        return results


def _pipeline(cfg: Config) -> list[Any]:
    """The transforms of the test data, without those that load annotations or colour images."""
    found = pipeline_steps(cfg, "test")
    if found is None:
        raise UserError(f"{cfg.filename}: test_dataloader.dataset.pipeline is missing, which prepares the images")
    steps: list[Any] = []
    for step in found:
        kind = step.get("type")
        kind = kind.rpartition(".")[2] if isinstance(kind, str) else getattr(kind, "__name__", "")
        if kind == "LoadImageFromFile" and step.get("color_type", "color") == "color":
            steps.append(_Loaded(step.get("to_float32", False)))
        elif "Annotations" not in kind:
            steps.append(step)
    return steps


def _classes(cfg: Config, checkpoint: str | Path, meta: Any) -> tuple[list[str], list[tuple[int, int, int]]]:
    """Names and colours of the classes: as the checkpoint has them, else as the config's test data has them."""
    from mmengine.registry import DATASETS

    from .predicting.drawing import default_palette
    from .running.checkpoint import check_classes, stored_classes

    names, palette = stored_classes(checkpoint, meta)
    if names is None:
        with (
            plain_files(),
            building(f"{cfg.filename}: test_dataloader.dataset cannot be built, which names the classes"),
        ):
            found = DATASETS.build({**cfg.test_dataloader.dataset, "lazy_init": True}).metainfo
        names, palette = check_classes(cfg.filename, found.get("classes")), found.get("palette")
    try:
        colours = [(int(red), int(green), int(blue)) for red, green, blue in palette or ()]
    except (TypeError, ValueError, OverflowError):  # "random", as mmdet has it, or none
        colours = []
    return names, colours if len(colours) >= len(names) else default_palette(len(names))


def _draw(image: np.ndarray, sample: Any, names: list[str], palette: list, score: float) -> tuple[np.ndarray, dict]:
    """Draw what a data sample predicts; return the picture and its entry for the JSON, less the file's name."""
    import numpy as np

    from .predicting.drawing import draw_instances, draw_labels

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
        if not all(np.isfinite(found[key]).all() for key in ("bboxes", "scores")):
            raise UserError("what the model finds is not finite (NaN)")
        found = found[found.scores >= score]
        if len(found) and found.labels.max() >= len(names):
            raise UserError(f"the model finds class {found.labels.max()}, but the names are those of {len(names)}")
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
    cfg: Config,
    checkpoint: str | Path,
    images: Sequence[str | Path],
    out_dir: str | Path,
    score: float = 0.3,
    overwrite: bool = False,
) -> list[Path]:
    """Run a detector or segmentor of any mm library over images; write pictures and `predictions.json`.

    Args:
        cfg: Its config; the pipeline is that of the test data.
        checkpoint: A file that fits the model exactly.
        images: Image files, and folders of them.
        out_dir: Where all goes.
        score: Boxes below it are left out.
        overwrite: Whether files that are in the way in `out_dir` are replaced; without, only earlier outputs are.

    Returns:
        The pictures, in the order of the images.

    Raises:
        UserError: if an image cannot be read, the checkpoint does not fit or an output would replace an input or a file
            that is none of ours; nothing has been written then. Or if the pipeline or the model fails at an image.
    """
    import numpy as np
    import torch
    from mmengine.dataset import Compose
    from mmengine.device import get_device
    from mmengine.model import revert_sync_batchnorm
    from PIL import Image

    from .common.progress import bar
    from .running.checkpoint import load_into
    from .running.engine import build_model

    files = find_images(images)
    outputs = Outputs(out_dir, [*files, checkpoint, *filter(None, [cfg.filename])], overwrite)
    stems = [outputs.stem(file.stem) for file in files]
    outputs.check([*(f"{stem}.jpg" for stem in stems), "predictions.json"])
    if cfg.get("test_dataloader") is None:
        raise UserError(f"{cfg.filename}: test_dataloader is missing, whose pipeline reads the images")
    steps = _pipeline(cfg)
    model = revert_sync_batchnorm(build_model(cfg))
    with building(f"{cfg.filename}: test_dataloader.dataset.pipeline cannot be built"):
        pipeline = Compose(steps)
    names, palette = _classes(cfg, checkpoint, load_into(model, checkpoint)["meta"])
    model = model.to(get_device()).eval()

    pictures: list[Path] = []
    entries: list[dict[str, Any]] = []
    for file, stem in bar(list(zip(files, stems, strict=True)), title="predict"):
        pixels: np.ndarray = np.asarray(read_image(file))
        size = f"{pixels.shape[1]} x {pixels.shape[0]} pixels"
        if max(pixels.shape) > _LONGEST:
            raise UserError(f"{file}: {size}: pictures are written as JPEG, which has at most {_LONGEST} a side")
        try:
            data = pipeline(
                {"img": np.ascontiguousarray(pixels[..., ::-1]), "img_path": str(file), "img_id": len(pictures)}
            )
            with torch.inference_mode():
                sample = model.test_step({"inputs": [data["inputs"]], "data_samples": [data["data_samples"]]})[0]
            picture, entry = _draw(pixels, sample, names, palette, score)
        except UserError as error:
            raise UserError(f"{file}: {error}") from error
        except Exception as error:  # pipelines and models of any library, each with its limits of size
            raise UserError(f"{file}: {size}: cannot be predicted: {one_line(error)}") from error
        if "pred_sem_seg" in sample:
            if not pictures:
                outputs.check(f"{stem}_labels.png" for stem in stems)
            entry["map"] = f"{stem}_labels.png"
            _write_map(outputs.folder / entry["map"], sample.pred_sem_seg.cpu().numpy().data.squeeze(0), len(names))
        pictures.append(outputs.folder / f"{stem}.jpg")
        with atomic_path(pictures[-1]) as temporary:
            Image.fromarray(picture).save(temporary, quality=92, comment=STAMP)
        entries.append({"file": str(file), "picture": pictures[-1].name, **entry})
    write_json(outputs.folder / "predictions.json", {"classes": names, "images": entries})
    return pictures


def _write_map(path: Path, labels: np.ndarray, classes: int) -> None:
    """Write labels (H, W) as a PNG of 8 bits, or of 16 where that many are needed."""
    from PIL import Image

    deep = max(classes - 1, int(labels.max())) > 255
    with atomic_path(path) as temporary:
        Image.fromarray(labels.astype("uint16" if deep else "uint8")).save(temporary, pnginfo=png_stamp())


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from .predicting.upscale import restoration_models, upscale

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
        if (cfg.get("model") or {}).get("type") != "attnzoo.Restorer":
            if args.tile is not None:
                raise UserError(no_tiles)
            score = 0.3 if args.score is None else args.score
            if not 0 <= score <= 1:
                raise UserError(f"--score must be between 0 and 1, got {score}")
            pictures = predict(cfg, args.checkpoint, args.images, args.out_dir, score, args.overwrite)
            print(f"{len(pictures)} pictures and predictions.json in {args.out_dir!r}")
            return 0
        if args.score is not None:
            raise UserError(f"--score is not for {args.config}, which upscales")
        from .running.engine import build_model

        restorer: Any = build_model(cfg)
        model, tile = restorer.model, args.tile or restorer.tile
    config = None if args.config in names else cfg.filename
    pictures = upscale(model, args.checkpoint, args.images, args.out_dir, tile, args.overwrite, config)
    print(f"{len(pictures)} pictures in {args.out_dir!r}")
    return 0


if __name__ == "__main__":
    from .cli import main

    sys.exit(main(["predict", *sys.argv[1:]]))
