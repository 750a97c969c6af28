"""Plug-in attention for CNNs: modules of (B, C, H, W) to the same.

`create` makes one by name, `attnzoo.attach` puts one into a model that exists already, and `attnzoo.attention` gives
what timm takes wherever it takes an attention layer:
`timm.create_model("resnet50", block_args=dict(attn_layer=attnzoo.attention("cbam", reduction=8)))`. Strings there mean
timm's own modules (`"se"`, `"eca"`, `"cbam"`, `"coord"`, `"ela"`, `"strip"`), which this package leaves alone.

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
import inspect
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import EcaModule, SEModule
from timm.layers.coord_attn import CoordAttn, SimpleCoordAttn, StripAttn
from torch import nn

from ..contract.arguments import check_flags, check_integers, check_numbers, flags_of
from .bam import BAM
from .das import DAS
from .ela import ELA
from .gates import CBAM, SpatialGate, TripletAttention
from .lka import LKA
from .pkcam import PKCAM, Remembering, Row
from .plugin import Plugin, own_names
from .ulsam import ULSAM

__all__ = [
    "BAM",
    "CBAM",
    "DAS",
    "ECA",
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
    "attention",
    "check_options",
    "create",
    "get",
    "own_names",
]


# timm's modules take options that they then do not use: kernels that the channels decide, ratios beside the number that
# they would give, and in one case anything. These take what has an effect.
def _coordinate(
    channels: int,
    reduction: int = 32,
    act_layer: Any = nn.Hardswish,
    norm_layer: Any = nn.BatchNorm2d,
    gate_layer: Any = "sigmoid",
    has_skip: bool = False,
    device=None,
    dtype=None,
) -> nn.Module:
    """Coordinate attention, timm's module as published: `reduction` with 8 hidden channels at least, and biases."""
    check_integers(reduction=reduction)
    hidden, dd = max(8, channels // reduction), {"device": device, "dtype": dtype}
    layers = {"act_layer": act_layer, "norm_layer": norm_layer, "gate_layer": gate_layer}
    return CoordAttn(channels, rd_channels=hidden, bias=True, has_skip=has_skip, **layers, **dd)


class ECA(EcaModule):
    """Efficient channel attention, whose kernel the channels decide; timm's, which takes no batch of none."""

    def __init__(
        self, channels: int, gamma: float = 2, beta: float = 1, gate_layer: Any = "sigmoid", device=None, dtype=None
    ):
        super().__init__(channels, gamma=gamma, beta=beta, gate_layer=gate_layer, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same."""
        gate = self.gate(self.conv(x.mean((2, 3)).unsqueeze(1)))
        return x * gate.transpose(1, 2).unsqueeze(3)


def _squeeze(
    channels: int,
    rd_ratio: float = 1 / 16,
    add_maxpool: bool = False,
    bias: bool = True,
    act_layer: Any = nn.ReLU,
    norm_layer: Any = None,
    gate_layer: Any = "sigmoid",
    device=None,
    dtype=None,
) -> nn.Module:
    """Squeeze and excitation, the hidden channels rounded to whole ones alone."""
    check_numbers(above=0, rd_ratio=rd_ratio)
    layers: dict[str, Any] = {"act_layer": act_layer, "norm_layer": norm_layer, "gate_layer": gate_layer}
    layers |= {"add_maxpool": add_maxpool, "bias": bias, "device": device, "dtype": dtype}
    return SEModule(channels, rd_ratio=rd_ratio, rd_divisor=1, **layers)


def _strip(
    channels: int,
    use_conv: bool = True,
    kernel_size: int = 3,
    bias: bool = False,
    gate_layer: Any = "sigmoid",
    has_skip: bool = False,
    device=None,
    dtype=None,
) -> nn.Module:
    """Strip attention of timm."""
    check_integers(odd=True, kernel_size=kernel_size)
    dd = {"device": device, "dtype": dtype}
    return StripAttn(channels, use_conv, kernel_size, bias, gate_layer, has_skip, **dd)


_MODULES: dict[str, Callable[..., nn.Module]] = {
    "bam": BAM,
    "cbam": CBAM,
    "coord": _coordinate,
    "das": DAS,
    "eca": ECA,
    "ela": ELA,
    "ela_base": ELA,
    "ela_large": functools.partial(ELA, kernel_size=7, group_size=8, num_groups=16),
    "ela_small": functools.partial(ELA, kernel_size=5, group_size=8, num_groups=16),
    "ela_tiny": functools.partial(ELA, kernel_size=5, group_size=1, num_groups=32),
    "lka": LKA,
    "pkcam": PKCAM,
    "scoord": SimpleCoordAttn,
    "se": _squeeze,
    "strip": _strip,
    "triplet": TripletAttention,
    "ulsam": ULSAM,
}

NAMES = tuple(_MODULES)


def get(name: str) -> Callable[..., nn.Module]:
    """The module's class, or what makes one: called with the channels and the module's own arguments.

    Args:
        name: one of `NAMES`.

    Raises:
        ValueError: for another name.
    """
    found = _MODULES.get(name) if isinstance(name, str) else None
    if found is None:
        near = difflib.get_close_matches(str(name), NAMES, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"known are {', '.join(NAMES)}"
        raise ValueError(f"attention module {name!r}: no such name; {hint}")
    return found


def check_options(name: str, options: dict[str, Any], place: tuple[str, ...] = ()) -> None:
    """Refuses options that a module does not have, and for its switches all but True and False.

    Args:
        name: one of `NAMES`.
        options: for the module.
        place: names of options that its place decides, and nobody else.

    Raises:
        ValueError: for another name, or a switch that is neither True nor False.
        TypeError: for an option that the module does not know, or that its place decides.
    """
    known = [option for option in inspect.signature(get(name)).parameters if option != "channels"]
    for option in options:
        if option in place and (option in known or option == "channels"):
            raise TypeError(f"attention module {name!r}: {option} follows from the place of the module")
        if option not in known:
            allowed = [option for option in known if option not in place] or ["none"]
            raise TypeError(f"attention module {name!r}: no option {option!r}; it has {', '.join(allowed)}")
    check_flags(**flags_of(get(name), options))


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
    check_options(name, kwargs)
    check_integers(channels=channels)
    return get(name)(channels, **kwargs)


def attention(name: str, **options: Any) -> Callable[..., nn.Module]:
    """What timm's builders take as an attention layer.

    The modules keep the activation of their papers, where timm's builders offer that of the block around.

    Args:
        name: one of `NAMES`.
        **options: of the module; `device` and `dtype` are the model's.

    Returns:
        What makes a module of (B, C, H, W) to the same, called with the channels; it can be pickled.

    Raises:
        ValueError: for an unknown name.
        TypeError: for options that the module does not know or that its place decides.

    Example:
        >>> import timm
        >>> model = timm.create_model("resnet18", block_args=dict(attn_layer=attention("ela", kernel_size=5)))
        >>> type(model.layer4[1].se).__name__
        'ELA'
    """
    # PKCAM links the stages of a row, which a block does not know: `attach` does.
    check_options(name, options, place=("channels", "device", "dtype", "previous"))
    return functools.partial(_for_timm, name, options)


def _for_timm(name: str, options: dict[str, Any], channels: int, act_layer: Any = None, **kwargs: Any) -> nn.Module:
    """Without the activation, which timm's builders offer to every attention layer."""
    return create(name, channels, **options, **kwargs)
