"""ONNX Runtime compared with PyTorch on the same inputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..common.errors import UserError
from ..common.messages import one_line
from .pictures import size_text
from .report import Check
from .trials import images_shape, trial

# Largest differences that are rounding: pixels or metres, probabilities, and features as a fraction of the largest one.
TOLERANCES = {"boxes": 1e-2, "scores": 1e-4, "masks": 1e-3, "logits": 1e-4, "bev_map": 1e-4, "next_history": 1e-4}
_FEATURES = ("logits", "next_history")
_DETECTIONS = ("boxes", "scores", "labels", "masks")
# Numbers of a box in bird's-eye view, and which of them is the angle.
_BOX_3D, _YAW = 9, 6
# Ranks and overlaps can be ties to the last digit, and then fall either way; another picture has no such tie.
ATTEMPTS = 3


def _differences(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Largest difference (N,) of boxes (N, 4 or 9) from one, angles by the shorter way round."""
    difference = np.abs(found - expected)
    if found.shape[1] == _BOX_3D:
        difference[:, _YAW] = np.minimum(difference[:, _YAW], np.abs(2 * np.pi - difference[:, _YAW]))
    return difference.max(1)


def _compare_detections(expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> tuple[dict[str, float], int]:
    """Pair the detections of each image, whose order may differ where scores tie; see `compare`."""
    errors = {name: 0.0 for name in expected}
    compared = 0
    others = [name for name in expected if name not in ("boxes", "labels")]
    for image, labels in enumerate(expected["labels"]):
        free = found["labels"][image] >= 0
        compared += int((labels >= 0).sum())
        for i in np.flatnonzero(labels >= 0):
            score = np.abs(found["scores"][image] - expected["scores"][image, i])
            box = _differences(found["boxes"][image], expected["boxes"][image, i])
            same = free & (found["labels"][image] == labels[i]) & (score <= TOLERANCES["scores"])
            if not same.any():
                errors["labels"] += 1
                continue
            best = int(np.where(same, box, np.inf).argmin())
            free[best] = False
            # Unlike max, this hands a NaN on.
            errors["boxes"] = float(np.maximum(errors["boxes"], box[best]))
            for name in others:
                difference = np.abs(found[name][image, best] - expected[name][image, i]).max()
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
    """Compare the outputs of two runs on the same inputs.

    Args:
        expected: Outputs by name, as `attnzoo.heads.deploy` has them.
        found: Outputs by name.

    Returns:
        Largest absolute difference by output (for labels: how many differ), the number of detections, or else of pixels
        or cells, compared, and the outputs that differ by more than rounding.
    """
    shapes = [name for name in expected if expected[name].shape != found[name].shape]
    if shapes:
        return {name: float("inf") for name in expected}, 0, shapes
    errors: dict[str, float] = {}
    if "logits" in expected:
        errors, compared = _compare_maps(expected, found)
    elif "boxes" in expected:
        parts = ({name: run[name] for name in _DETECTIONS if name in run} for run in (expected, found))
        errors, compared = _compare_detections(*parts)
    else:
        compared = expected["bev_map"].size
    # Of what is left every number has its place.
    errors |= {name: float(np.abs(found[name] - expected[name]).max()) for name in expected if name not in errors}
    allowed = {**TOLERANCES, "labels": 0.0}
    for name in _FEATURES:
        if name in expected:
            allowed[name] *= max(1.0, float(np.abs(expected[name]).max()))
    return errors, compared, [name for name, error in errors.items() if not error <= allowed[name]]


class _RunError(Exception):
    """ONNX Runtime stopped at the inputs; the message says why."""


def _run(wrapper: Any, session: Any, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of ONNX Runtime by name."""
    try:
        return dict(zip(wrapper.outputs, session.run(None, given), strict=True))
    except Exception as error:  # ONNX Runtime has an error class of its own for each status
        raise _RunError(one_line(error, 200)) from error


def _compare_stream(
    wrapper: Any, session: Any, frames: list[dict[str, Any]]
) -> tuple[dict[str, float], int, list[str]]:
    """Compare call by call, each run with the state that it carries itself; results as of `compare`."""
    import torch

    largest: dict[str, float] = {}
    total = 0
    differ: dict[str, None] = {}
    expected: dict[str, np.ndarray] = {}
    found: dict[str, np.ndarray] = {}
    for number, frame in enumerate(frames):
        carried = wrapper.carried if number else {}
        own = frame | {name: torch.from_numpy(expected[source]) for name, source in carried.items()}
        theirs = {name: x.numpy() for name, x in frame.items()}
        theirs |= {name: found[source] for name, source in carried.items()}
        with torch.no_grad():
            expected = dict(zip(wrapper.outputs, (output.numpy() for output in wrapper(**own)), strict=True))
        found = _run(wrapper, session, theirs)
        errors, compared, wrong = compare(expected, found)
        largest = {name: float(np.maximum(largest.get(name, 0.0), error)) for name, error in errors.items()}
        total += compared
        differ |= dict.fromkeys(wrong)
    return largest, total, list(differ)


def check(
    wrapper: Any, session: Any, batch: int, size: tuple[int, int], image: np.ndarray | None, dynamic: bool
) -> Check:
    """Compare the file with PyTorch on images of one shape, in a stream where a state is carried.

    Raises:
        UserError: if they differ by more than rounding.
    """
    shape = images_shape(wrapper, batch, size)
    for attempt in range(ATTEMPTS):
        # Of no other batch: calibrations differ too.
        frames = trial(wrapper, batch, size, image, attempt + ATTEMPTS * batch)
        try:
            errors, compared, differs = _compare_stream(wrapper, session, frames)
        except _RunError as error:
            reason = str(error)
            break
        if not differs:
            return Check(shape, errors, compared)
        reason = ", ".join(f"{name} by {errors[name]:.3g}" for name in differs)
    hint = "; a part of the model keeps the traced size: --static fixes batch and size" if dynamic else ""
    raise UserError(f"not exported: at images of {size_text(shape)} ONNX Runtime differs from PyTorch ({reason}){hint}")
