"""A case: one operator at one size at which a model calls it, in every form that `attnzoo bench kernels` compares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from .roofline import Work

# Columns of the table; "twin" is what runs where Triton cannot.
FORMS = ("triton", "twin", "definition", "compiled definition", "sdpa", "flex", "natten", "mmcv", "deformops")


@dataclass
class Case:
    """One operator at one size.

    Attributes:
        operator: as `attnzoo.kernels.can_run` knows it.
        setting: the model, and what of it.
        image: (height, width) in pixels.
        shapes: of the tensors, by name; all of them learn.
        operations: of the forward pass, as the operator counts them for `kernels/measured.json`.
        scales: of the tensors' normal numbers, 1 if not named; 0 is for numbers from 0 to 1.
        parts: by name, steps of "triton" that are timed alone too: what, called with the tensors, makes the call that
            is timed, and the bytes it must move at least.
        forms: by column, called with the tensors.
        prepared: by column, forms that need something made of the tensors first, which is not their work: called with
            the tensors, they give what is called with the tensors.
        exact: called with the name of a form, the tensors it was given and more precise copies of them, the result that
            it should have; that of the definition where a form has no choice.
        work: gives the least work of forward and backward pass for a dtype.
    """

    operator: str
    setting: str
    image: tuple[int, int]
    shapes: dict[str, tuple[int, ...]]
    operations: int
    forms: dict[str, Callable[..., torch.Tensor]]
    work: Callable[[Any], tuple[Work, Work]]
    scales: dict[str, float]
    parts: dict[str, tuple[Callable[..., Callable[[], Any]], int]] = field(default_factory=dict)
    prepared: dict[str, Callable[..., Callable[..., torch.Tensor]]] = field(default_factory=dict)
    exact: Callable[..., torch.Tensor] | None = None

    def should_be(self, name: str, given: list[torch.Tensor], precise: list[torch.Tensor]) -> torch.Tensor:
        """What a form's result for the tensors is compared with, from more precise copies of them."""
        return self.forms["definition"](*precise) if self.exact is None else self.exact(name, given, precise)

    def form(self, name: str, tensors: list[torch.Tensor]) -> Callable[..., torch.Tensor]:
        """A form, prepared for these tensors."""
        return self.forms[name] if name in self.forms else self.prepared[name](*tensors)

    def tensors(self, dtype: torch.dtype, device: str, seed: int = 0) -> list[torch.Tensor]:
        """The tensors, drawn alike at every call with a seed; feature maps (B, C, H, W) in channels_last."""
        import torch

        torch.manual_seed(seed)
        made = []
        for name, shape in self.shapes.items():
            scale = self.scales.get(name, 1.0)
            # On a GPU itself: the CPU takes seconds to draw what fills one.
            x = torch.rand(shape, device=device) if scale == 0 else torch.randn(shape, device=device) * scale
            x = x.to(dtype)
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


def block_mask(sees: Callable, batch: int | None, length: int, device: Any, compiler: Callable) -> Any:
    """FlexAttention's mask of queries and keys of one length, the same for all heads.

    Compiled, it is made block by block: of a map of 200 x 334 pixels the whole takes tens of gigabytes.
    """
    import torch
    from torch.nn.attention.flex_attention import create_block_mask

    compiled = compiler is torch.compile
    return create_block_mask(sees, batch, None, length, length, device=str(device), _compile=compiled)
