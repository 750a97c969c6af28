"""Deformable attention in three dimensions: its cases and its compilations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from ....kernels import deformable_attention_3d
from ....kernels.deformable_attention import operator
from ....kernels.deformable_attention_3d import naive
from ..cases import Case, sides, works
from ..compilation import StaticCase
from . import deformable_attention
from .deformable_attention import backward, forward, starts_of

# Of the grid cells seen from above, so many lie in one camera's view.
QUERIES = 2500


def cases(image: tuple[int, int], batch: int, compiler: Callable) -> Iterator[Case]:
    """DFA3D in BEVFormer, one camera: 8 heads of 32 channels, 8 points, 64 shared bins."""
    sizes = [sides(image, stride) for stride in deformable_attention.LEVELS]
    levels = len(sizes)
    starts, positions = starts_of(sizes)

    def public(value, depth, places, weights, backend):
        return deformable_attention_3d(value, depth, sizes, starts, places, weights, backend=backend)

    def definition(value, depth, places, weights):
        return naive.deformable_attention_3d(value, depth, sizes, starts, places, weights)

    yield Case(
        "deformable_attention_3d",
        "DFA3D, one camera",
        image,
        {
            "value": (batch, positions, 8, 32),
            "depth": (batch, positions, 1, 64),
            "places": (batch, QUERIES, 8, levels, 8, 3),
            "weights": (batch, QUERIES, 8, levels, 8),
        },
        operator.operations((batch, positions, 8, 32), (batch, QUERIES, 8, levels, 8, 3)),
        {
            "triton": partial(public, backend="triton"),
            "twin": partial(public, backend="torch"),
            "definition": definition,
            "compiled definition": compiler(definition),
        },
        works(forward, backward, batch, positions, QUERIES, 8, 32, levels, 8, bins=64),
        {"depth": 0, "places": 0, "weights": 0},
    )


def static_cases() -> list[StaticCase]:
    """Every kernel of two dimensions with 64 bins, as DFA3D launches it."""
    return deformable_attention.static_cases(((64, 1), (64, 8)))
