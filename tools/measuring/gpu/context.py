"""What every phase of a run on a GPU is told."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from .results import Results


@dataclass(frozen=True)
class Context:
    """Of one phase.

    Attributes:
        results: to which it adds.
        end: of `time.monotonic`, by which it must be done; what is left by then is left out.
        dry: whether this is a walk through all phases on a CPU, in Triton's interpreter and at small sizes.
        tests: the folder of the kernels' tests, None where it is not there.
        mmcv: mmcv's `ops/csrc`, None where it is not there.
        build: folder of what is compiled for phases to come.
    """

    results: Results
    end: float
    dry: bool
    tests: Path | None
    mmcv: Path | None
    build: Path

    @property
    def device(self) -> str:
        """Of all tensors."""
        return "cpu" if self.dry else "cuda"

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()
