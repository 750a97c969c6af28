"""What is checked and timed on a GPU: cases of `operators` at sizes that fill it, the most telling first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..cases import Case
from ..operators import cases, deformable_attention, deformable_attention_3d, routing_attention

OWN = ("triton", "twin")


@dataclass(frozen=True)
class Subject:
    """A case at one size.

    Attributes:
        operator: the folder, of `operators.OPERATORS`.
        setting: of the case.
        image: (height, width) in pixels.
        batch: images at a time.
        forms: that are timed; those that are not to be had are passed over.
        inductor: whether the definition and FlexAttention are compiled for it too.
    """

    operator: str
    setting: str
    image: tuple[int, int]
    batch: int
    forms: tuple[str, ...] = (*OWN, "sdpa", "mmcv", "deformops", "natten")
    inductor: bool = False

    def case(self, compiler: Callable[..., Any] | None = None, batch: int | None = None) -> Case:
        """The case, by default without compiled forms; `batch` may be another."""
        found = cases(self.operator, (self.image,), batch or self.batch, compiler or _as_it_is)
        return next(case for case in found if case.setting == self.setting)

    @property
    def title(self) -> str:
        """In a few words."""
        return f"{self.setting}, {self.image[0]}x{self.image[1]}, batch {self.batch}"


def _as_it_is(form: Any) -> Any:
    return form


_VAN = "VAN-B2 stage"
# The definition of a convolution is cuDNN's.
_CONVOLUTION = (*OWN, "definition")

# What the goals are about.
MAIN = (
    Subject("routing_attention", "BiFormer-S stage 1", (512, 512), 16),
    Subject("routing_attention", "BiFormer-S stage 2", (512, 512), 16, inductor=True),
    Subject("routing_attention", "BiFormer-S stage 3", (512, 512), 16),
    Subject("window_attention", "Swin-T stage 1", (224, 224), 64, inductor=True),
    Subject("large_kernel_attention", f"{_VAN} 1, depth-wise 7 x 7, dilation 3", (224, 224), 64, _CONVOLUTION),
    Subject("large_kernel_attention", f"{_VAN} 1", (224, 224), 64, _CONVOLUTION, inductor=True),
    Subject("deformable_attention", "DINO encoder", (800, 1333), 1, inductor=True),
    Subject("neighborhood_attention", "NAT-T stage 1, dilation 1", (224, 224), 64, inductor=True),
    Subject("window_attention", "HAT-S shifted", (256, 256), 1),
    Subject("window_attention", "HAT-S overlapping", (256, 256), 1, inductor=True),
    Subject("deformable_attention_3d", "DFA3D, one camera", (256, 704), 6),
    Subject("large_kernel_attention", f"{_VAN} 1, gated", (224, 224), 64, _CONVOLUTION),
    Subject("large_kernel_attention", f"{_VAN} 1, depth-wise 5 x 5, dilation 1", (224, 224), 64, _CONVOLUTION),
    Subject("large_kernel_attention", f"{_VAN} 4, depth-wise 7 x 7, dilation 3", (224, 224), 64, _CONVOLUTION),
    Subject("neighborhood_attention", "NAT-T stage 1, dilation 8", (224, 224), 64),
)


def ladder() -> Iterator[Subject]:
    """The main cases at other sizes, for the table that "auto" obeys: it knows sizes by powers of four."""
    for subject in MAIN:
        for batch in (1, 4, 16, 64):
            if batch != subject.batch and batch * subject.image[0] * subject.image[1] <= 64 * 512**2:
                yield replace(subject, batch=batch, forms=OWN, inductor=False)
    yield Subject("routing_attention", "BiFormer-S stage 1", (1024, 1024), 1, OWN)
    yield Subject("deformable_attention", "DINO decoder", (800, 1333), 1, OWN)


def rounds(dry: bool) -> Iterator[tuple[Subject, str]]:
    """Subjects and dtypes in the order in which they are timed.

    Args:
        dry: two small ones alone, in the dtypes of Triton's interpreter.
    """
    if dry:
        yield from ((subject, dtype) for subject in small() for dtype in ("float16", "float32"))
        return
    for dtype in ("bfloat16", "float32"):
        yield from ((subject, dtype) for subject in MAIN)
    # mmcv has no kernels of bfloat16.
    yield from ((subject, "float16") for subject in MAIN if subject.operator == "deformable_attention")
    for dtype in ("bfloat16", "float32", "float16"):
        yield from ((subject, dtype) for subject in (*ladder(), *MAIN * (dtype == "float16")))


def small() -> tuple[Subject, ...]:
    """One of each operator, of a size for Triton's interpreter."""
    sides = {
        "routing_attention": 16,
        "window_attention": 28,
        "neighborhood_attention": 32,
        "deformable_attention": 16,
        "deformable_attention_3d": 16,
        "large_kernel_attention": 16,
    }
    # In the process of a phase, where they disturb no others.
    deformable_attention.LEVELS = (8,)
    deformable_attention_3d.QUERIES = 4
    routing_attention.REGIONS = (2, 2)
    first: dict[str, Subject] = {}
    for subject in MAIN:
        side = sides[subject.operator]
        first.setdefault(subject.operator, replace(subject, image=(side, side), batch=1))
    return tuple(first.values())
