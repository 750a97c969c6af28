"""PKCAM: Previous Knowledge Channel Attention Module, https://arxiv.org/abs/2211.07521,
https://github.com/eslambakr/EMCA (no licence).

This is the repository's form with ECA as inner attention, one module a stage, and the last maps of all earlier stages
as previous knowledge. Descriptors of fewer channels are repeated; where the channels are no multiple of theirs, which
the published code does not take, the last repetition is cut.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ._plugin import Plugin, check_positive

__all__ = ["PKCAM", "Remembering", "Row"]


class PKCAM(Plugin):
    """`x * (1 + scale)`, the channels' scale taken from this map's means and from those of earlier layers.

    Without earlier layers it is the first of its row, and the scale is ECA's.

    Args:
        channels: of the map.
        previous: earlier layers whose descriptors `forward` is given.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: for `channels` below 1 or a negative `previous`.
    """

    def __init__(self, channels: int, previous: int = 0, device=None, dtype=None):
        super().__init__()
        check_positive(channels=channels)
        if previous < 0:
            raise ValueError(f"previous={previous}: it cannot be negative")
        dd = {"device": device, "dtype": dtype}
        kernel_size = int((math.log2(channels) + 1) / 2)
        kernel_size += 1 - kernel_size % 2
        self.previous = previous
        self.local = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False, **dd)
        self.merge: nn.Module | None = None
        self.context: nn.Module | None = None
        self.fuse: nn.Module | None = None
        if previous > 0:
            self.merge = nn.Conv1d(1, 1, previous + 1, stride=previous + 1, bias=False, **dd)
            self.context = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False, **dd)
            self.fuse = nn.Conv1d(1, 1, 2, stride=2, bias=False, **dd)

    def forward(self, x: torch.Tensor, previous: list[torch.Tensor] | None = None) -> torch.Tensor:
        """Scales the channels.

        Args:
            x: (B, C, H, W).
            previous: the means over H and W of the earlier layers, each (B, C'); None where there are none.

        Returns:
            (B, C, H, W).

        Raises:
            ValueError: if there are not as many as the module was made for.
        """
        given = 0 if previous is None else len(previous)
        if given != self.previous:
            raise ValueError(f"previous: {given} descriptors, but the module was made for {self.previous}")
        own = x.mean((2, 3))
        channels = own.shape[1]
        scale = self.local(own.unsqueeze(1)).sigmoid()
        if previous is not None and self.merge is not None and self.context is not None and self.fuse is not None:
            rows = [row.repeat(1, -(-channels // row.shape[1]))[:, :channels] for row in previous]
            merged = F.relu(self.merge(torch.stack([*rows, own], 2).flatten(1).unsqueeze(1)))
            both = torch.stack((scale, self.context(merged).sigmoid()), 3)
            scale = self.fuse(both.flatten(2)).sigmoid()
        return x * (1 + scale.transpose(1, 2).unsqueeze(3))


class Row(dict[int, torch.Tensor]):
    """Descriptors of the layers of one model, by position; a copy of the model starts with an empty one."""

    def __deepcopy__(self, memo: dict) -> "Row":
        return memo.setdefault(id(self), Row())

    def __reduce__(self) -> tuple:
        return Row, ()


class Remembering(nn.Module):
    """A PKCAM in a row of layers: it reads what those before it left in the same pass, and leaves its own descriptor.

    The row is held outside of PyTorch's module tree: `torch.nn.DataParallel` and TorchScript are not served.

    Args:
        module: made for as many earlier layers as `position` says.
        position: in the row.
        row: shared by the modules of one model.
    """

    def __init__(self, module: PKCAM, position: int, row: Row):
        super().__init__()
        self.module = module
        self.position = position
        self.row = row

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same."""
        previous = [self.row[i] for i in range(self.position)]
        self.row[self.position] = x.mean((2, 3))
        return self.module(x, previous or None)
