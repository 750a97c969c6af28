"""What is measured of each operator, a file an operator: its cases, the least work of a case, and its compilations."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..cases import Case
    from ..compilation import StaticCase

# In the order of the tables; the folders of `kernels`.
OPERATORS = (
    "routing_attention",
    "window_attention",
    "neighborhood_attention",
    "deformable_attention",
    "deformable_attention_3d",
    "large_kernel_attention",
)


def cases(
    operator: str, images: tuple[tuple[int, int], ...], batch: int, compiler: Callable[..., Any]
) -> Iterator[Case]:
    """The operator's cases.

    Args:
        operator: of `OPERATORS`.
        images: sizes in pixels.
        batch: images at a time.
        compiler: `torch.compile`, or what stands for it.
    """
    for image in images:
        yield from _file(operator).cases(image, batch, compiler)


def static_cases(operator: str) -> list[StaticCase]:
    """The operator's kernels with all that fixes their machine code; needs Triton."""
    return _file(operator).static_cases()


def _file(operator: str) -> Any:
    return importlib.import_module(f".{operator}", __package__)
