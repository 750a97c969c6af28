"""Weights of which only the first numbers are drawn.

To draw every weight anew for every test takes a quarter of the time of the tests of backbones.
"""

from collections.abc import Callable

import torch

# A prime, so that the rows of a weight are shifted against each other.
_DRAWN = 8191
METHODS = ("normal_", "uniform_")


def _repeated(draw: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A method that draws the first numbers of a tensor and repeats them."""

    def fill(self: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        count = self.numel()
        if self.is_meta:
            return self  # there is nothing to draw, which PyTorch takes long to find out
        if count < 2 * _DRAWN or not self.is_contiguous():
            return draw(self, *args, **kwargs)
        with torch.no_grad():
            drawn, flat = draw(self.new_empty(_DRAWN), *args, **kwargs), self.view(-1)
            rest = count % _DRAWN
            flat[: count - rest].view(-1, _DRAWN).copy_(drawn)
            flat[count - rest :].copy_(drawn[:rest])
        return self

    return fill


def replace() -> None:
    """Replace the draws of parameters, for good; those of other tensors stay."""
    for name in METHODS:
        setattr(torch.nn.Parameter, name, _repeated(getattr(torch.Tensor, name)))
