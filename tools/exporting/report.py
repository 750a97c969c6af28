"""What an export has written, and how it was checked."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from .pictures import size_text


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
            lines.append(f"  {size_text(check.shape):<20}{errors}{check.compared:>10}")
        return "\n".join(lines)
