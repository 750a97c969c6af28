"""The bins into which depth is divided, and the shorter code that a depth head may predict for them."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arguments import check_ints, check_keys, check_number


class DepthBins:
    """Bins of equal length from the nearest to the farthest depth, in groups if asked for.

    With groups a code has one number for several neighbouring bins: of groups (2, 4, 8) the first n codes cover 2 bins
    each, the next n 4 each, the last n 8 each, where n is such that all bins are covered.

    Source: DFA3D (https://arxiv.org/abs/2307.12972).

    Args:
        near: Where the first bin begins, in metres.
        far: Where the last one ends.
        step: Length of a bin.
        groups: How many bins a code of each group covers; None for one code a bin.

    Attributes:
        range: `(near, far)`.
        count: Bins D.
        widths: How many bins each number of a code covers.

    Raises:
        TypeError: A number of another type.
        ValueError: A number out of its range, no whole number of bins, or groups that do not cover them.
    """

    def __init__(
        self, near: float = 2.0, far: float = 58.0, step: float = 0.5, groups: Sequence[int] | None = None
    ) -> None:
        check_number("near", near, 0)
        check_number("far", far, near, above=True)
        check_number("step", step, 0, above=True)
        count = round((far - near) / step)
        if count < 1 or abs(near + count * step - far) > 1e-6 * step:
            raise ValueError(f"near={near}, far={far}, step={step}: must make a whole number of bins")
        self.range = (float(near), float(far))
        self.step = float(step)
        self.count = count
        self.widths: tuple[int, ...] = (1,) * count
        if groups is not None:
            sizes = check_ints("groups", groups, 1)
            if not sizes or count % sum(sizes):
                raise ValueError(f"groups={groups!r}: their sum must divide the {count} bins")
            self.widths = tuple(size for size in sizes for _ in range(count // sum(sizes)))
        # Of each bin the number in the code that covers it.
        self._codes = [i for i, width in enumerate(self.widths) for _ in range(width)]

    def spread(self, code: Tensor) -> Tensor:
        """(..., codes) -> (..., D): each number for all bins that it covers, so that the sum over bins is not 1."""
        if len(self.widths) == self.count:
            return code
        # In runs of one width, which need no index that a GPU would wait for.
        runs = [(width, len(list(run))) for width, run in itertools.groupby(self.widths)]
        parts = code.split([length for _, length in runs], -1)
        return torch.cat([x.repeat_interleave(width, -1) for (width, _), x in zip(runs, parts, strict=True)], -1)

    def number(self, depth: Tensor) -> Tensor:
        """The bin of each depth in metres, an int; below 0 or at least D if it lies outside."""
        return ((depth - self.range[0]) / self.step).floor().clamp(-1, self.count).long()

    def encode(self, depth: Tensor) -> tuple[Tensor, Tensor]:
        """What a code should be for depths in metres.

        Args:
            depth: (...,) float; what lies outside of the bins is unknown.

        Returns:
            Code (..., codes) of the depth's dtype with a 1 for the depth's bin, all 0 if unknown; and which depths are
            known, (...,) bool.
        """
        number = self.number(depth)
        known = (number >= 0) & (number < self.count)
        codes = torch.tensor(self._codes, device=depth.device)[number.clamp(0, self.count - 1)]
        wanted = F.one_hot(codes, len(self.widths)).to(depth.dtype)
        return wanted * known[..., None], known

    def around(self, depth: Tensor, reach: int = 2) -> Tensor:
        """A distribution from depths in metres that are known: 1 in the depth's bin and `reach` bins on each side.

        It is not normalised, as published; (...,) -> (..., D), all 0 where the depth is unknown.
        """
        number = self.number(depth)[..., None]
        known = (number >= 0) & (number < self.count)
        bins = torch.arange(self.count, device=depth.device)
        return (((bins - number).abs() <= reach) & known).to(depth.dtype)


def depth_bins(arguments: Any) -> DepthBins:
    """Bins from the dict of their arguments that a config has.

    Raises:
        TypeError: It is none, or a number is of another type.
        ValueError: An unknown key, or what `DepthBins` says.
    """
    return DepthBins(**check_keys("bins", arguments, ("near", "far", "step", "groups")))
