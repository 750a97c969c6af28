"""Write a trained detector or segmentor as ONNX, and compare ONNX Runtime with PyTorch before the file is kept.

The file takes `images`, float32 (B, 3, H, W) with values 0 to 255, and does the rest itself: normalisation, padding,
network, decoding and non-maximum suppression. Batch, height and width are free.

  detector    boxes (B, N, 4) as x1, y1, x2, y2 in pixels, scores (B, N), labels (B, N); places without a detection
              have score 0 and label -1. Mask R-CNN adds masks (B, N, 28, 28): probabilities over the box.
  segmentor   logits (B, K, H, W) and labels (B, H, W).

Resizing is left to you: give images of the size that the model was trained for. The order of channels (RGB for most
configs) and the names of the classes stand in the file's metadata.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import io
import json
import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .common.errors import UserError
from .common.files import atomic_path, check_outputs
from .config.checks import pipeline_steps, shown
from .config.loading import add_config_options, load_config, one_line, parse_options, require_mm
from .data.images import MAX_SIDE, read_image
from .running.work_dir import read_files

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import Tensor

EPILOG = """\
examples:
  attnzoo export biformer/gfl_biformer_4e_digits detector.pth --out digits.onnx --image photo.jpg
  attnzoo export my_config.py model.pth --out model.onnx --size 512 640 --static

use:
  session = onnxruntime.InferenceSession("digits.onnx")
  boxes, scores, labels = session.run(None, {"images": rgb.transpose(2, 0, 1)[None].astype("float32")})
"""

OPSETS = range(18, 24)
MIN_SIZE = 32
# Largest differences that are rounding: pixels, probabilities, and logits as a fraction of the largest one.
TOLERANCES = {"boxes": 1e-2, "scores": 1e-4, "masks": 1e-3, "logits": 1e-4}
# Ranks and overlaps can be ties to the last digit, and then fall either way; another picture has no such tie.
ATTEMPTS = 3


def _times(sides: Sequence[int]) -> str:
    return " x ".join(map(str, sides))


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison of ONNX Runtime with PyTorch that passed.

    Attributes:
        shape: Of the images, (B, 3, H, W).
        errors: Largest absolute difference by output; labels count those that differ.
        compared: Detections compared, or pixels of a segmentor.
    """

    shape: tuple[int, ...]
    errors: dict[str, float]
    compared: int


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What was written, and how it was checked.

    Attributes:
        path: The file.
        opset: ONNX operator set.
        inputs: Shape by name; a free side is a string.
        outputs: Shape by name; a free side is a string.
        checks: The comparisons that passed.
        size: Of the file, in bytes.
    """

    path: Path
    opset: int
    inputs: dict[str, tuple[int | str, ...]]
    outputs: dict[str, tuple[int | str, ...]]
    checks: tuple[Check, ...]
    size: int

    def table(self) -> str:
        """The report as text."""
        lines = [f"{self.path}  {self.size / 2**20:.1f} MiB, opset {self.opset}"]
        for title, shapes in (("in ", self.inputs), ("out", self.outputs)):
            lines += [f"  {title}  {name:<8} ({', '.join(map(str, shape))})" for name, shape in shapes.items()]
        names = list(self.checks[0].errors)
        lines.append("  largest differences of ONNX Runtime from PyTorch")
        lines.append("  " + f"{'images':<20}" + "".join(f"{name:>10}" for name in names) + f"{'compared':>10}")
        for check in self.checks:
            errors = "".join(
                f"{check.errors[name]:>10.0f}" if name == "labels" else f"{check.errors[name]:>10.1e}" for name in names
            )
            lines.append(f"  {_times(check.shape):<20}{errors}{check.compared:>10}")
        return "\n".join(lines)


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
        help="height and width that are traced and checked (default: those of the config's test pipeline)",
    )
    parser.add_argument("--opset", type=int, default=20, help="ONNX operator set, 18 to 23 (default: 20)")
    parser.add_argument("--static", action="store_true", help="fix batch 1 and the size, for runtimes that need it")
    parser.add_argument(
        "--image",
        metavar="FILE",
        help="compare on this picture: a trained detector finds little in the random ones that are used otherwise",
    )
    add_config_options(parser)


def _require_onnx() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"this command needs {name}: pip install 'attnzoo[onnx]' ({one_line(error)})") from error


def _test_size(cfg: Config) -> tuple[int, int]:
    """Height and width to which the test pipeline resizes, 512 × 512 where it does not say."""
    mode = "test" if cfg.get("test_dataloader") else "val"
    for step in pipeline_steps(cfg, mode) or ():
        scale = step.get("scale")
        if str(step.get("type")).endswith("Resize") and isinstance(scale, tuple | list) and len(scale) == 2:
            if not all(isinstance(side, int | float) and 0 < side < math.inf for side in scale):
                raise UserError(
                    f"{cfg.filename}: {mode}_dataloader.dataset.pipeline: scale of {step['type']}: two numbers of "
                    f"pixels are needed, got {shown(scale)}"
                )
            return int(min(scale)), int(max(scale)) if step.get("keep_ratio") else int(scale[0])
    return 512, 512


def _other_size(size: tuple[int, int]) -> tuple[int, int]:
    """A smaller size, both sides odd, not square."""
    height, width = (max(side * part // 8, MIN_SIZE) | 1 for side, part in zip(size, (6, 5), strict=True))
    return height, width if width != height else width + 10


def _pictures(shape: tuple[int, ...], image: np.ndarray | None, seed: int) -> Tensor:
    """Images (B, 3, H, W) of whole numbers from 0 to 255: `image` (H, W, 3) mirrored and dimmed, or random blots."""
    import torch
    import torch.nn.functional as F

    generator = torch.Generator().manual_seed(seed)
    batch, _, height, width = shape
    if image is None:
        source = torch.rand(batch, 3, height // 16 + 3, width // 16 + 3, generator=generator) * 255
    else:
        one = torch.from_numpy(image).permute(2, 0, 1).float()
        source = torch.stack([(one.flip(2) if i % 2 else one) * 0.97 ** (i + seed) for i in range(batch)])
    resized = F.interpolate(source, (height, width), mode="bicubic", antialias=image is not None)
    return (resized + torch.rand(resized.shape, generator=generator) * 4).clamp(0, 255).round()


def _read_image(path: str | Path, order: str) -> np.ndarray:
    try:
        pixels = np.asarray(read_image(path))
    except UserError as error:
        raise UserError(f"not a readable image: {error}") from error
    return np.ascontiguousarray(pixels if order == "RGB" else pixels[..., ::-1])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the libraries, whose lines are about their own insides."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        sink = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _compare_detections(expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> tuple[dict[str, float], int]:
    """Pair the detections of each image, whose order may differ where scores tie; see `compare`."""
    errors = {name: 0.0 for name in expected}
    compared = 0
    others = [name for name in expected if name != "labels"]
    for image, labels in enumerate(expected["labels"]):
        free = found["labels"][image] >= 0
        compared += int((labels >= 0).sum())
        for i in np.flatnonzero(labels >= 0):
            score = np.abs(found["scores"][image] - expected["scores"][image, i])
            box = np.abs(found["boxes"][image] - expected["boxes"][image, i]).max(1)
            same = free & (found["labels"][image] == labels[i]) & (score <= TOLERANCES["scores"])
            if not same.any():
                errors["labels"] += 1
                continue
            best = int(np.where(same, box, np.inf).argmin())
            free[best] = False
            for name in others:
                difference = np.abs(found[name][image, best] - expected[name][image, i]).max()
                # Unlike max, this hands a NaN on.
                errors[name] = float(np.maximum(errors[name], difference))
        errors["labels"] += int(free.sum())
    return errors, compared


def _compare_maps(expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> tuple[dict[str, float], int]:
    """Compare logits, and labels where they are no tie; see `compare`."""
    logits = expected["logits"]
    error = float(np.abs(found["logits"] - logits).max())
    if logits.shape[1] > 1:
        first, second = np.moveaxis(np.partition(logits, -2, axis=1)[:, -2:], 1, 0)[::-1]
        clear = first - second > 2 * error
    else:
        clear = found["labels"] == expected["labels"]
    wrong = int((found["labels"] != expected["labels"])[clear].sum())
    return {"logits": error, "labels": float(wrong)}, int(clear.sum())


def compare(expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> tuple[dict[str, float], int, list[str]]:
    """Compare the outputs of two runs on the same images.

    Args:
        expected: Outputs by name, as `attnzoo.heads.deploy` has them.
        found: Outputs by name.

    Returns:
        Largest absolute difference by output (for labels: how many differ), the number of detections or pixels
        compared, and the outputs that differ by more than rounding.
    """
    shapes = [name for name in expected if expected[name].shape != found[name].shape]
    if shapes:
        return {name: float("inf") for name in expected}, 0, shapes
    errors, compared = (_compare_maps if "logits" in expected else _compare_detections)(expected, found)
    allowed = {**TOLERANCES, "labels": 0.0}
    if "logits" in expected:
        allowed["logits"] *= max(1.0, float(np.abs(expected["logits"]).max()))
    return errors, compared, [name for name, error in errors.items() if not error <= allowed[name]]


def _check(wrapper: Any, session: Any, shape: tuple[int, ...], image: np.ndarray | None, dynamic: bool) -> Check:
    """Compare the file with PyTorch on images of one shape.

    Raises:
        UserError: if they differ by more than rounding.
    """
    import torch

    for seed in range(ATTEMPTS):
        images = _pictures(shape, image, seed)
        with torch.no_grad():
            expected = dict(zip(wrapper.outputs, (output.numpy() for output in wrapper(images)), strict=True))
        try:
            found = dict(zip(wrapper.outputs, session.run(None, {"images": images.numpy()}), strict=True))
        except Exception as error:  # ONNX Runtime has an error class of its own for each status
            differs, reason = list(wrapper.outputs), one_line(error, 200)
            break
        errors, compared, differs = compare(expected, found)
        if not differs:
            return Check(shape, errors, compared)
        reason = ", ".join(f"{name} by {errors[name]:.3g}" for name in differs)
    hint = "; a part of the model keeps the traced size: --static fixes batch and size" if dynamic else ""
    raise UserError(f"not exported: at images of {_times(shape)} ONNX Runtime differs from PyTorch ({reason}){hint}")


def _trace(wrapper: Any, images: Tensor, opset: int, dynamic: bool) -> Any:
    import torch

    free = {0: "batch", 2: "height", 3: "width"}
    try:
        with _quiet(), torch.no_grad():
            program: Any = torch.onnx.export(
                wrapper,
                (images,),
                dynamo=True,
                opset_version=opset,
                input_names=["images"],
                output_names=list(wrapper.outputs),
                dynamic_shapes={"images": free} if dynamic else None,
                verbose=False,
            )
    except Exception as error:  # the exporter wraps what it meets in errors of its own
        cause = error.__cause__ or error
        hint = "; --static fixes batch and size, which may help" if dynamic else ""
        raise UserError(f"the model cannot be exported: {one_line(cause)}{hint}") from error
    fixed = [name for i, name in free.items() if isinstance(program.model.graph.inputs[0].shape[i], int)]
    if dynamic and fixed:
        raise UserError(f"not exported: the model fixes {', '.join(fixed)} to the traced size; --static allows that")
    return program


def _preprocessor_order(cfg: Config) -> str:
    """Channel order behind the data preprocessor, for images loaded as mm loads them (BGR)."""
    preprocessor = (cfg.get("model") or {}).get("data_preprocessor") or cfg.get("data_preprocessor") or {}
    return "RGB" if preprocessor.get("bgr_to_rgb") else "BGR"


def export(
    cfg: Config,
    checkpoint: str | Path,
    out: str | Path,
    *,
    size: Sequence[int] | None = None,
    opset: int = 20,
    dynamic: bool = True,
    image: str | Path | None = None,
    overwrite: bool = False,
    on_step: Callable[[str], None] = lambda step: None,
) -> ExportReport:
    """Write the model of a config as one ONNX file that ONNX Runtime has been seen to compute as PyTorch does.

    With free sizes the comparison is made at two sizes, the second odd and not square, and two batch sizes, neither the
    traced one. The file appears under its name when all have passed, and not otherwise.

    Args:
        cfg: A config of mmdet or mmseg.
        checkpoint: A file that fits its model exactly.
        out: The file to write, `.onnx`.
        size: Height and width in pixels that are traced and checked; those of the test pipeline if None.
        opset: ONNX operator set, 18 to 23.
        dynamic: Leave batch, height and width free; else batch 1 and `size`.
        image: A picture to compare on; random blots if None.
        overwrite: Replace `out` if it is there already.
        on_step: Called with a line of text before each step.

    Returns:
        Path, shapes, checks and size of the file.

    Raises:
        UserError: A missing library, an argument out of range, a file in the place of `out`, a checkpoint or image
            that is none, a model without a traceable form (the message names the part and what is allowed), or results
            that differ.
    """
    out = Path(out)
    size = _test_size(cfg) if size is None else (int(size[0]), int(size[1]))
    if out.suffix != ".onnx":
        raise UserError(f"--out {out}: the name must end in .onnx")
    read = [checkpoint, *([] if image is None else [image]), *read_files(cfg)]
    check_outputs([out], read, overwrite=overwrite)
    if opset not in OPSETS:
        raise UserError(f"--opset {opset}: allowed are {OPSETS[0]} to {OPSETS[-1]}")
    if min(size) < MIN_SIZE:
        raise UserError(f"--size {size[0]} {size[1]}: each side must be at least {MIN_SIZE}")
    if max(size) > MAX_SIDE:
        raise UserError(f"--size {size[0]} {size[1]}: each side must be at most {MAX_SIDE}")
    _require_onnx()
    require_mm()
    import onnxruntime

    from ..heads.deploy import UnsupportedModelError, deploy
    from .running.checkpoint import load_into, stored_classes
    from .running.engine import build_model

    order = _preprocessor_order(cfg)
    pixels = None if image is None else _read_image(image, order)
    on_step("building the model")
    with _quiet():
        model = build_model(cfg)
    classes, _ = stored_classes(checkpoint, load_into(model, checkpoint)["meta"])
    try:
        wrapper = deploy(model)
    except UnsupportedModelError as error:
        raise UserError(f"not exported: {error}") from error

    shapes = [(1, 3, *size)] + ([(3, 3, *_other_size(size))] if dynamic else [])
    # Batch 2, because an exporter takes a side of length 1 for a constant.
    traced = (2 if dynamic else 1, 3, *size)
    on_step(f"tracing at {_times(size)}, which takes a minute or more")
    program = _trace(wrapper, _pictures(traced, pixels, 0), opset, dynamic)
    program.model.metadata_props.update(channel_order=order, **({"classes": json.dumps(classes)} if classes else {}))

    with atomic_path(out) as temporary:
        program.save(temporary, external_data=False)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(str(temporary), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has an error class of its own for each status
            raise UserError(f"not exported: ONNX Runtime refuses the model: {one_line(error)}") from error
        checks = []
        for shape in shapes:
            on_step(f"comparing with PyTorch at {_times(shape)}")
            checks.append(_check(wrapper, session, shape, pixels, dynamic))
        inputs, outputs = (
            {node.name: tuple(node.shape) for node in nodes} for nodes in (session.get_inputs(), session.get_outputs())
        )
        del session
    return ExportReport(out, opset, inputs, outputs, tuple(checks), out.stat().st_size)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    _require_onnx()
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
    from .cli import main

    sys.exit(main(["export", *sys.argv[1:]]))
