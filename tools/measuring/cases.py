"""A case: one operator at one size at which a model calls it, in every form that `attnzoo bench kernels` compares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from .roofline import Work

# Columns of the table; "twin" is what runs where Triton cannot.
FORMS = ("triton", "twin", "definition", "compiled definition", "sdpa", "flex", "natten", "mmcv")


@dataclass
class Case:
    """One operator at one size.

    Attributes:
        operator: of `operators.OPERATORS`.
        setting: the model, and what of it.
        image: (height, width) in pixels.
        shapes: of the tensors, by name; all of them learn.
        scales: of the tensors' normal numbers, 1 if not named; 0 is for numbers from 0 to 1.
        parts: by name, steps of "triton" that are timed alone too: what, called with the tensors, makes the call that
            is timed, and the bytes it must move at least.
        forms: by column, called with the tensors.
        work: gives the least work of forward and backward pass for a dtype.
    """

    operator: str
    setting: str
    image: tuple[int, int]
    shapes: dict[str, tuple[int, ...]]
    forms: dict[str, Callable[..., torch.Tensor]]
    work: Callable[[Any], tuple[Work, Work]]
    scales: dict[str, float]
    parts: dict[str, tuple[Callable[..., Callable[[], Any]], int]] = field(default_factory=dict)

    def tensors(self, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
        """The tensors, drawn alike at every call; feature maps (B, C, H, W) in channels_last."""
        import torch

        torch.manual_seed(0)
        made = []
        for name, shape in self.shapes.items():
            scale = self.scales.get(name, 1.0)
            x = (torch.rand(shape) if scale == 0 else torch.randn(shape) * scale).to(device, dtype)
            if name in ("x", "gate"):
                x = x.contiguous(memory_format=torch.channels_last)
            made.append(x.requires_grad_())
        return made


def works(forward: Any, backward: Any, *count: Any, **more: Any) -> Callable[[Any], tuple[Work, Work]]:
    """The least work of both passes by dtype, which follows the other counts."""
    return lambda dtype: (forward(*count, dtype, **more), backward(*count, dtype, **more))


def sides(image: tuple[int, int], stride: int) -> tuple[int, int]:
    """Of a model's map at this stride."""
    return -(-image[0] // stride), -(-image[1] // stride)


def multiple(side: int, of: int) -> int:
    """The side, padded to a multiple."""
    return -(-side // of) * of


def flex(compiler: Callable) -> Callable[..., torch.Tensor]:
    """FlexAttention, compiled."""
    from torch.nn.attention.flex_attention import flex_attention

    return compiler(flex_attention)
