"""Detectors and segmentors of the mm libraries run over images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS
from PIL import Image

from ..common.errors import UserError
from ..common.files import atomic_path, write_json
from ..common.messages import one_line
from ..common.progress import bar
from ..config.building import building
from ..config.fields import pipeline_steps
from ..config.plain_files import plain_files
from ..data.drawing import default_palette
from ..data.images import find_images, read_image
from ..running.checkpoint import listed_classes, load_into, stored_classes
from ..running.engine import build_model
from .outputs import STAMP, Outputs
from .samples import drawn, write_map

# Pixels that the side of a JPEG picture can have.
_LONGEST = 65_500


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
    names, palette = stored_classes(checkpoint, meta)
    if names is None:
        with (
            plain_files(),
            building(f"{cfg.filename}: test_dataloader.dataset cannot be built, which names the classes"),
        ):
            found = DATASETS.build({**cfg.test_dataloader.dataset, "lazy_init": True}).metainfo
        names, palette = listed_classes(cfg.filename, found.get("classes")), found.get("palette")
    try:
        colours = [(int(red), int(green), int(blue)) for red, green, blue in palette or ()]
    except (TypeError, ValueError, OverflowError):  # "random", as mmdet has it, or none
        colours = []
    return names, colours if len(colours) >= len(names) else default_palette(len(names))


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
            picture, entry = drawn(pixels, sample, names, palette, score)
        except UserError as error:
            raise UserError(f"{file}: {error}") from error
        except Exception as error:  # pipelines and models of any library, each with its limits of size
            raise UserError(f"{file}: {size}: cannot be predicted: {one_line(error)}") from error
        if "pred_sem_seg" in sample:
            if not pictures:
                outputs.check(f"{stem}_labels.png" for stem in stems)
            entry["map"] = f"{stem}_labels.png"
            write_map(outputs.folder / entry["map"], sample.pred_sem_seg.cpu().numpy().data.squeeze(0), len(names))
        pictures.append(outputs.folder / f"{stem}.jpg")
        with atomic_path(pictures[-1]) as temporary:
            Image.fromarray(picture).save(temporary, quality=92, comment=STAMP)
        entries.append({"file": str(file), "picture": pictures[-1].name, **entry})
    write_json(outputs.folder / "predictions.json", {"classes": names, "images": entries})
    return pictures
