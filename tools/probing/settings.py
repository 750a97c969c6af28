"""How the heads of a probing are trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..common.errors import UserError
from ..data.images import MAX_SIDE

# What PyTorch's generators take.
MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Settings:
    """How heads are trained; the command's help says what each is."""

    size: int | None = None
    poolings: tuple[str, ...] = ("attentive", "mean")
    queries: int | None = None
    epochs: int = 50
    lr: float = 1e-3
    batch: int = 128
    seeds: tuple[int, ...] = (0, 1, 2)
    memory: float = 4.0
    workers: int = 0

    def __post_init__(self) -> None:
        positive = {"size": self.size, "queries": self.queries, "epochs": self.epochs, "lr": self.lr}
        for name, value in {**positive, "memory": self.memory}.items():
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"--{name} must be positive{' and finite' if value == math.inf else ''}, got {value}")
        if self.size is not None and self.size > MAX_SIDE:
            raise UserError(f"--size must be at most {MAX_SIDE}, got {self.size}")
        if self.batch < 2:
            raise UserError(f"--batch must be 2 or more, since the heads norm over it, got {self.batch}")
        if max(self.seeds) > MAX_SEED:
            raise UserError(f"--seeds must be at most {MAX_SEED}, got {max(self.seeds)}")
        if self.workers < 0 or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise UserError("--workers and --seeds must not be negative, and no seed given twice")
