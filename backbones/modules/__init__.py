"""Plug-in attention for CNNs: modules of (B, C, H, W) to the same.

`create` makes one by name, `attnzoo.attach` puts one into a model that exists already, and timm takes them wherever it
takes an attention layer: `timm.create_model("resnet50", block_args=dict(attn_layer="triplet"))`. Names that timm has of
its own (`"se"`, `"eca"`, `"cbam"`, `"coord"`, `"ela"`, `"strip"`) still mean timm's modules there; with the prefix
`attnzoo.` every name means the module of this package: `attn_layer="attnzoo.cbam"`. A class serves as well:
`attn_layer=partial(CBAM, reduction=8)`.

Parameters and multiply-adds (of convolutions and linear layers, in millions) at 256 channels and 56x56:

| name | module | parameters | M | source |
| --- | --- | --- | --- | --- |
| `cbam` | channel gate, then spatial gate | 8564 | 0.3 | arXiv 1807.06521 |
| `bam` | one gate, channel times space, that only strengthens | 17361 | 27.4 | arXiv 1807.06514 |
| `triplet` | three gates, one for each pair of axes | 300 | 3.1 | arXiv 2010.03045 |
| `ela_tiny` | gates of rows and columns | 1792 | 0.1 | arXiv 2403.01123 |
| `ela`, `ela_base` | | 2304 | 0.2 | |
| `ela_small` | | 10752 | 1.1 | |
| `ela_large` | | 14848 | 1.6 | |
| `coord` | coordinate attention; timm's class with the published reduction and biases | 6680 | 0.5 | arXiv 2103.02907 |
| `se` | squeeze and excitation; timm's, hidden channels not rounded to eights | 8464 | 0.0 | arXiv 1709.01507 |
| `eca` | efficient channel attention; timm's | 5 | 0.0 | arXiv 1910.03151 |
| `das` | deformable gate | 145796 | 455.5 | arXiv 2311.12091 |
| `ulsam` | one softmax map for each group of channels | 1292 | 1.6 | arXiv 2006.15102 |
| `pkcam` | ECA that also reads earlier layers | 5 | 0.0 | arXiv 2211.07521 |
| `lka` | VAN's large-kernel gate | 85248 | 266.3 | arXiv 2202.09741 |
| `strip` | timm's own simplification of coordinate attention | 1536 | 0.1 | timm |
| `scoord` | another | 31272 | 2.3 | timm |

timm's ECA has a kernel of 3 at least, the published one of 1 below 8 channels.
"""

import difflib
import functools
import sys
from collections.abc import Callable
from typing import Any

from timm.layers import EcaModule, SEModule
from timm.layers.coord_attn import CoordAttn, SimpleCoordAttn, StripAttn
from torch import nn

from ._plugin import Plugin, own_names
from .bam import BAM
from .das import DAS
from .ela import ELA
from .gates import CBAM, SpatialGate, TripletAttention
from .lka import LKA
from .pkcam import PKCAM, Remembering, Row
from .ulsam import ULSAM

__all__ = [
    "BAM",
    "CBAM",
    "DAS",
    "ELA",
    "LKA",
    "NAMES",
    "PKCAM",
    "ULSAM",
    "Plugin",
    "Remembering",
    "Row",
    "SpatialGate",
    "TripletAttention",
    "create",
    "get",
    "own_names",
]

_PREFIX = "attnzoo."


def _coordinate(channels: int, reduction: int = 32, **kwargs: Any) -> nn.Module:
    """Coordinate attention, timm's module as published: `reduction` with 8 hidden channels at least, and biases."""
    return CoordAttn(channels, rd_channels=max(8, channels // reduction), bias=True, **kwargs)


_MODULES: dict[str, Callable[..., nn.Module]] = {
    "bam": BAM,
    "cbam": CBAM,
    "coord": _coordinate,
    "das": DAS,
    "eca": EcaModule,
    "ela": ELA,
    "ela_base": ELA,
    "ela_large": functools.partial(ELA, kernel_size=7, group_size=8, num_groups=16),
    "ela_small": functools.partial(ELA, kernel_size=5, group_size=8, num_groups=16),
    "ela_tiny": functools.partial(ELA, kernel_size=5, group_size=1, num_groups=32),
    "lka": LKA,
    "pkcam": PKCAM,
    "scoord": SimpleCoordAttn,
    "se": functools.partial(SEModule, rd_divisor=1),
    "strip": StripAttn,
    "triplet": TripletAttention,
    "ulsam": ULSAM,
}

NAMES = tuple(_MODULES)


def get(name: str) -> Callable[..., nn.Module]:
    """The module's class, or what makes one: called with the channels and the module's own arguments.

    Args:
        name: one of `NAMES`, with or without the prefix `attnzoo.`.

    Raises:
        ValueError: for another name.
    """
    found = _MODULES.get(name.removeprefix(_PREFIX))
    if found is None:
        near = difflib.get_close_matches(name.removeprefix(_PREFIX), NAMES, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"known are {', '.join(NAMES)}"
        raise ValueError(f"attention module {name!r}: no such name; {hint}")
    return found


def create(name: str, channels: int, **kwargs: Any) -> nn.Module:
    """A module that maps (B, C, H, W) to the same.

    Args:
        name: one of `NAMES`.
        channels: C.
        **kwargs: of the module, and `device` and `dtype`.

    Raises:
        ValueError: for an unknown name, or channels or arguments that the module does not allow.
        TypeError: for arguments that the module does not know.

    Example:
        >>> import torch
        >>> create("ela_tiny", 64)(torch.rand(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])
    """
    return get(name)(channels, **kwargs)


def _for_timm(name: str) -> Callable[..., nn.Module]:
    """The module for timm's builders, which offer every attention layer the activation of the block around it.

    The modules here keep the activation of their papers, as timm's own `EffectiveSEModule` does.
    """

    def make(channels: int, act_layer: Any = None, **kwargs: Any) -> nn.Module:
        return create(name, channels, **kwargs)

    return make


def _resolve_names_in_timm() -> None:
    """Lets timm's `get_attn`, behind every `attn_layer` argument, resolve the names of this package.

    timm has no registry of attention layers: `get_attn` is a chain of comparisons that ends in a failed assertion. What
    timm resolves itself stays as it is. The models imported the function by name, so each module's own is replaced.
    """
    timms = sys.modules["timm.layers.create_attn"].get_attn

    @functools.wraps(timms)
    def get_attn(attn_type: Any) -> Any:
        if not isinstance(attn_type, str):
            return timms(attn_type)
        if attn_type.startswith(_PREFIX):
            get(attn_type)
            return _for_timm(attn_type)
        try:
            return timms(attn_type)
        except AssertionError:
            if attn_type not in _MODULES:
                raise
            return _for_timm(attn_type)

    for name, module in list(sys.modules.items()):
        if name.startswith("timm.") and vars(module).get("get_attn") is timms:
            module.get_attn = get_attn  # type: ignore[attr-defined]


_resolve_names_in_timm()
