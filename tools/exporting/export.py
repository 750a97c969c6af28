"""Models of the mm libraries written as ONNX."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import UserError
from ..common.files import atomic_path
from ..common.messages import one_line
from ..common.outputs import check_outputs
from ..config.inputs import read_files
from ..config.loading import require_mm
from ..data.images import MAX_SIDE
from .comparison import check
from .driving import names_of
from .pictures import MIN_SIZE, other_size, pipeline_size, read_picture, size_text
from .report import ExportReport
from .trials import images_shape, trial

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import Tensor

OPSETS = range(18, 24)
# An exporter takes a side of length 1 for a constant, and PyTorch 2.9 a batch of 2 where half a row makes a stride.
_TRACED_BATCH = 5


def require_onnx() -> None:
    """Check that the ONNX libraries are there.

    Raises:
        UserError: naming the first that is not.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"this command needs {name}: pip install 'attnzoo[onnx]' ({one_line(error)})") from error


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


def _trace(wrapper: Any, given: dict[str, Tensor], opset: int, dynamic: bool) -> Any:
    import torch

    try:
        with _quiet(), torch.no_grad():
            program: Any = torch.onnx.export(
                wrapper,
                tuple(given[name] for name in wrapper.inputs),
                dynamo=True,
                opset_version=opset,
                input_names=list(wrapper.inputs),
                output_names=list(wrapper.outputs),
                dynamic_shapes=dict(wrapper.inputs) if dynamic else None,
                verbose=False,
            )
    except Exception as error:  # the exporter wraps what it meets in errors of its own
        cause = error.__cause__ or error
        hint = "; --static fixes batch and size, which may help" if dynamic else ""
        raise UserError(f"the model cannot be exported: {one_line(cause)}{hint}") from error
    fixed = {
        name: None
        for node in program.model.graph.inputs
        for i, name in wrapper.inputs[node.name].items()
        if isinstance(node.shape[i], int)
    }
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
    traced one. A model of several cameras is compared on two frames of a stream each time, whose calibrations differ.
    The file appears under its name when all have passed, and not otherwise.

    Args:
        cfg: A config of mmdet or mmseg, or of a `BEVDetector`.
        checkpoint: A file that fits its model exactly.
        out: The file to write, `.onnx`.
        size: Height and width in pixels that are traced and checked; those of the test pipeline if None, with several
            cameras those of its pictures.
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
    size = pipeline_size(cfg) if size is None else (int(size[0]), int(size[1]))
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
    require_onnx()
    require_mm()
    import onnxruntime

    from ...heads.deploy import UnsupportedModelError, deploy
    from ..running.checkpoint import load_into, stored_classes
    from ..running.engine import build_model

    order = _preprocessor_order(cfg)
    pixels = None if image is None else read_picture(image, order)
    on_step("building the model")
    with _quiet():
        model = build_model(cfg)
    classes, _ = stored_classes(checkpoint, load_into(model, checkpoint)["meta"])
    try:
        wrapper = deploy(model)
    except UnsupportedModelError as error:
        raise UserError(f"not exported: {error}") from error

    told = {**names_of(cfg, wrapper), **wrapper.metadata(), **({"classes": classes} if classes else {})}
    trials = [(1, size)] + ([(3, other_size(size))] if dynamic else [])
    on_step(f"tracing at {size_text(size)}, which takes a minute or more")
    traced = trial(wrapper, _TRACED_BATCH if dynamic else 1, size, pixels, 0)[-1]
    program = _trace(wrapper, traced, opset, dynamic)
    program.model.metadata_props.update(
        channel_order=order, **{name: json.dumps(value) for name, value in told.items()}
    )

    with atomic_path(out) as temporary:
        program.save(temporary, external_data=False)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(str(temporary), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has an error class of its own for each status
            raise UserError(f"not exported: ONNX Runtime refuses the model: {one_line(error)}") from error
        checks = []
        for batch, sides in trials:
            on_step(f"comparing with PyTorch at {size_text(images_shape(wrapper, batch, sides))}")
            checks.append(check(wrapper, session, batch, sides, pixels, dynamic))
        inputs, outputs = (
            {node.name: tuple(node.shape) for node in nodes} for nodes in (session.get_inputs(), session.get_outputs())
        )
        del session
    return ExportReport(out, opset, inputs, outputs, tuple(checks), out.stat().st_size)
