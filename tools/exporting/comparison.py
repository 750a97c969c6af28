"""ONNX Runtime compared with PyTorch on the same images."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..common.errors import UserError
from ..common.messages import one_line
from .pictures import pictures, size_text
from .report import Check

# Largest differences that are rounding: pixels, probabilities, and logits as a fraction of the largest one.
TOLERANCES = {"boxes": 1e-2, "scores": 1e-4, "masks": 1e-3, "logits": 1e-4}
# Ranks and overlaps can be ties to the last digit, and then fall either way; another picture has no such tie.
ATTEMPTS = 3


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


def check(wrapper: Any, session: Any, shape: tuple[int, ...], image: np.ndarray | None, dynamic: bool) -> Check:
    """Compare the file with PyTorch on images of one shape.

    Raises:
        UserError: if they differ by more than rounding.
    """
    import torch

    for seed in range(ATTEMPTS):
        images = pictures(shape, image, seed)
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
    raise UserError(f"not exported: at images of {size_text(shape)} ONNX Runtime differs from PyTorch ({reason}){hint}")
