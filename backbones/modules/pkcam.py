"""PKCAM: Previous Knowledge Channel Attention Module, https://arxiv.org/abs/2211.07521,
https://github.com/eslambakr/EMCA (no licence).

This is the repository's form with ECA as inner attention, one module a stage, and the last maps of all earlier stages
as previous knowledge. Descriptors of fewer channels are repeated; where the channels are no multiple of theirs, which
the published code does not take, the last repetition is cut.
"""

import math
import threading
import weakref
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ...kernels._derivatives import is_transformed
from ..contract.arguments import check_integers
from .plugin import Plugin

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
        check_integers(channels=channels)
        check_integers(least=0, previous=previous)
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


class _Descriptor(NamedTuple):
    """What one PKCAM leaves for those behind it."""

    means: torch.Tensor
    # Whether it was made in the forward pass of an autograd function, as by reentrant checkpointing: it has no graph.
    inside: bool


class Row:
    """What the PKCAMs of one model know of each other: how many they are, and what the pass under way has left so far.

    Each thread has passes of its own. Nothing outlives a pass but what its recomputation needs, and that belongs to its
    autograd graph and goes with it. A copy of the model starts with an empty one.

    Args:
        length: of the row.
    """

    def __init__(self, length: int):
        self.length = length
        # What a thread sets here the others do not see; `torch.compile` can trace it, unlike a context variable.
        self.of_thread = threading.local()
        # References to entries: unlike a WeakSet it can be copied while other threads change it.
        self.entries: set[weakref.ref[_Entry]] = set()

    @property
    def passing(self) -> list[_Descriptor]:
        """Descriptors that this thread's pass has left so far."""
        return getattr(self.of_thread, "passing", [])

    @passing.setter
    def passing(self, descriptors: list[_Descriptor]) -> None:
        self.of_thread.passing = descriptors

    def within(self, step: tuple[int, int]) -> list[_Descriptor]:
        """The same of a pass that one step of a backward pass makes, as in a hook; it ends with the backward pass.

        Args:
            step: as `_backward_step` names it.
        """
        passes = self.of_thread.__dict__.setdefault("passes", {})
        if step not in passes:
            passes[step] = []
            # What is recomputed of a layer alone is the beginning of a pass that nobody ends.
            torch.autograd.Variable._execution_engine.queue_callback(lambda: passes.pop(step, None))
        return passes[step]

    def __deepcopy__(self, memo: dict) -> "Row":
        return memo.setdefault(id(self), Row(self.length))

    def __reduce__(self) -> tuple:
        return Row, (self.length,)


class _Entry:
    """What one PKCAM was given in one pass.

    Args:
        position: in the row.
        own: its own descriptor, without a graph.
        previous: those of the earlier ones. They lie before the entry in the graph, so that it holds no circle.
    """

    def __init__(self, position: int, own: torch.Tensor, previous: list[_Descriptor]):
        self.position = position
        self.own = own
        self.previous = previous


class _Keep(torch.autograd.Function):
    """The identity; its node in the graph holds the entry for as long as there is a graph to recompute."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, entry: _Entry) -> torch.Tensor:
        ctx.entry = entry
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0], None


class Remembering(nn.Module):
    """A PKCAM in a row of layers: it reads what those before it left in the same pass, and leaves its own descriptor.

    Gradient checkpointing runs a layer again in the backward pass, when other passes may have come between: it then
    finds what it was given by its own descriptor, which is the same again. Checkpointing of a part of the row with
    `use_reentrant=True` builds no graph of its descriptors in the forward pass: where they are to be differentiated,
    the backward pass refuses it. A backward pass may also run the whole row, as hooks and the checkpointing of a whole
    model do: that is a pass of its own. The row is held outside of PyTorch's module tree: `torch.nn.DataParallel` and
    TorchScript are not served.

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
        """(B, C, H, W) -> the same.

        Raises:
            RuntimeError: if the layers before it have not run in this pass, or it is run again in a backward pass and
                its own pass is not found, or had no graph of what others read of it.
        """
        own = x.mean((2, 3))
        step = None if torch.compiler.is_compiling() else _backward_step()
        if step is None:
            previous = self._passed(own)
        else:
            self._check_graph(own)
            passed = self.row.within(step)
            if self.position == 0:
                passed.clear()
            if len(passed) != self.position:
                return self.module(x, self._again(own.detach()))
            previous = list(passed)
            passed.append(_Descriptor(own, _is_inside_function()))
        out = self.module(x, _means(previous))
        # Under a transform of `torch.func` nothing is recomputed.
        if out.requires_grad and self.position > 0 and not torch.compiler.is_compiling() and not is_transformed():
            out = _Keep.apply(out, self._entry(own.detach(), previous))
        return out

    def _passed(self, own: torch.Tensor) -> list[_Descriptor]:
        """What those before it left in the forward pass under way, where it leaves its own for those behind."""
        if self.position == 0:
            self.row.passing = []
        previous = self.row.passing
        if len(previous) != self.position:
            raise RuntimeError(f"PKCAM {self.position} of a row needs those before it in the same pass, in their order")
        left = _Descriptor(own, _is_inside_function())
        self.row.passing = [*previous, left] if self.position + 1 < self.row.length else []
        return previous

    def _entry(self, own: torch.Tensor, previous: list[_Descriptor]) -> _Entry:
        entry = _Entry(self.position, own, previous)
        self.row.entries.add(weakref.ref(entry, self.row.entries.discard))
        return entry

    def _check_graph(self, own: torch.Tensor) -> None:
        """Refuses a recomputation that others read, beyond what is recomputed, without a graph."""
        if not own.requires_grad:
            return
        for entry in self._entries():
            if entry.position > self.position:
                read = entry.previous[self.position]
                if read.inside and _difference(read.means, own.detach()) < math.inf:
                    raise _no_graph()

    def _again(self, own: torch.Tensor) -> list[torch.Tensor] | None:
        """What was given in the pass that is recomputed: the one whose descriptor is nearest."""
        found, least = None, math.inf
        for entry in self._entries():
            if entry.position == self.position:
                far = _difference(entry.own, own)
                if far < least:
                    found, least = entry, far
        if found is None:
            raise _no_graph()
        return _means(found.previous)

    def _entries(self) -> list[_Entry]:
        """Those of the row that a graph still holds."""
        return [entry for reference in list(self.row.entries) if (entry := reference()) is not None]


def _means(descriptors: list[_Descriptor]) -> list[torch.Tensor] | None:
    """As `PKCAM` takes them."""
    return [descriptor.means for descriptor in descriptors] or None


def _no_graph() -> RuntimeError:
    return RuntimeError(
        "PKCAM is run again in a backward pass, and the forward pass left no graph: "
        "checkpointing needs use_reentrant=False"
    )


def _is_inside_function() -> bool:
    """Whether the forward pass of an autograd function runs: unlike `no_grad`, it forbids forward mode as well."""
    if torch.compiler.is_compiling():
        return False
    return not (torch.is_grad_enabled() or torch._C._is_fwd_grad_enabled() or torch.is_inference_mode_enabled())


def _backward_step() -> tuple[int, int] | None:
    """Which backward pass this thread is in, and which of its nodes runs; None outside of one."""
    task = torch._C._current_graph_task_id()
    if task == -1:
        return None
    # What runs at the end of a backward pass belongs to no node.
    node = torch._C._current_autograd_node()
    return task, -1 if node is None else node._sequence_nr()


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest of two descriptors that may be the same, recomputed; infinite for others."""
    if a.shape != b.shape:
        return math.inf
    far = _largest(a - b)
    # Recomputed on a GPU it may differ in the last bits.
    return far if far <= 0.01 * _largest(b) else math.inf


def _largest(x: torch.Tensor) -> float:
    """The largest absolute value, where NaN counts as 0."""
    return x.float().abs().nan_to_num(nan=0.0).amax().item() if x.numel() else 0.0
