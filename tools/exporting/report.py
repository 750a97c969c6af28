"""What an export has written, and how it was checked."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from .pictures import size_text


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison of ONNX Runtime with PyTorch that passed.

    Attributes:
        shape: Of the images, (B, 3, H, W), or of several cameras (B, N, 3, H, W).
        errors: Largest absolute difference by output; labels count those that differ.
        compared: Detections compared, or pixels of a segmentor, or cells of BEV maps.
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
        longest = max(8, *map(len, (*self.inputs, *self.outputs)))
        for title, shapes in (("in ", self.inputs), ("out", self.outputs)):
            lines += [f"  {title}  {name:<{longest}} ({', '.join(map(str, shape))})" for name, shape in shapes.items()]
        widths = {name: max(10, len(name) + 2) for name in self.checks[0].errors}
        lines.append("  largest differences of ONNX Runtime from PyTorch")
        heads = "".join(f"{name:>{width}}" for name, width in widths.items())
        lines.append("  " + f"{'images':<20}{heads}{'compared':>10}")
        for check in self.checks:
            errors = "".join(
                f"{check.errors[name]:>{width}{'.0f' if name == 'labels' else '.1e'}}" for name, width in widths.items()
            )
            lines.append(f"  {size_text(check.shape):<20}{errors}{check.compared:>10}")
        return "\n".join(lines)
