"""Puts plug-in attention into a CNN that exists already."""

import fnmatch
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from timm.layers import DropPath
from timm.models._efficientnet_blocks import (
    DepthwiseSeparableConv,
    EdgeResidual,
    InvertedResidual,
    UniversalInvertedResidual,
)
from timm.models._features import FeatureGetterNet
from timm.models.convnext import ConvNeXtBlock
from timm.models.regnet import Bottleneck as RegNetBottleneck
from timm.models.regnet import RegStage
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from .. import modules
from ..contract.arguments import check_flags
from ..contract.facts import feature_levels

__all__ = ["Gated", "attach", "put_into_block"]

# Places within blocks that are empty or hold what can follow, and where their channels are read. "end" is the end of
# the residual branch, before the shortcut; the activation of a norm without one is a place there, since it is always
# run. "middle" is where the family itself puts squeeze and excitation.
_PLACES: dict[type, dict[str, tuple[str, str]]] = {
    BasicBlock: {"end": ("se", "bn2.num_features")},
    Bottleneck: {"end": ("se", "bn3.num_features")},
    RegNetBottleneck: {
        "end": ("conv3.bn.act", "conv3.bn.num_features"),
        "middle": ("se", "conv2.bn.num_features"),
    },
    DepthwiseSeparableConv: {"end": ("bn2.act", "bn2.num_features"), "middle": ("se", "bn1.num_features")},
    InvertedResidual: {"end": ("bn3.act", "bn3.num_features"), "middle": ("se", "bn2.num_features")},
    EdgeResidual: {"end": ("bn2.act", "bn2.num_features"), "middle": ("se", "bn1.num_features")},
    UniversalInvertedResidual: {
        "end": ("pw_proj.bn.act", "pw_proj.bn.num_features"),
        "middle": ("se", "pw_exp.bn.num_features"),
    },
    ConvNeXtBlock: {"end": ("drop_path", "conv_dw.out_channels")},
}


class Gated(nn.Module):
    """`x + weight * (module(x) - x)`: nothing at weight 0, where training starts, and the module itself at 1."""

    def __init__(self, module: nn.Module, device=None, dtype=None):
        super().__init__()
        self.module = module
        self.weight = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same."""
        return x + self.weight * (self.module(x) - x)


def attach(
    model: nn.Module,
    name: str,
    where: str | int | Sequence[int] | Sequence[str] = "stages",
    identity: bool = True,
    **kwargs: Any,
) -> nn.Module:
    """Puts an attention module behind stages or into blocks of a model, in place.

    Parameters that the model has keep their values and their names. Served are stages that are a row of blocks over
    maps (B, C, H, W), as in timm's ResNet, RegNet, ConvNeXt, MobileNet and EfficientNet and in this package's pyramids,
    and the blocks of the five families first named. A stage's module becomes the last of its blocks, so that its
    feature map has passed it; a block's module stands at the end of the residual branch, before the shortcut. `model`
    may also come from `features_only=True`. Behind stages, one image of zeros is sent through the model to see that its
    maps are what they should be.

    No gate ends at exactly 1, so that the modules of the papers change the function at once; `lka` alone can be
    initialised to the identity. All others are wrapped in `Gated`, one more parameter for each place, with which the
    model starts as the function that it was; of the new parameters that weight alone has a gradient in the first step.

    Args:
        model: of timm or this package.
        name: one of `attnzoo.backbones.modules.NAMES`.
        where: `"stages"` for behind every stage; levels of `feature_info`, counted as by `out_indices`, for behind
            those; `"blocks"` for into every block; names or shell patterns such as `"layer4.*"` for into those blocks.
        identity: start from the original function; False puts the module in bare, as in its paper.
        **kwargs: of the module.

    Returns:
        `model`.

    Raises:
        ValueError: if there is no such place or no such module, the place is taken, or the module does not allow the
            channels or the value of an option. Nothing has been changed then.
        TypeError: for an option that the module does not know, or that its place decides (`previous` of `"pkcam"`).

    Example:
        >>> import timm
        >>> model = attach(timm.create_model("resnet18", pretrained=False), "ela", where=(3, 4))
        >>> type(model.layer4[-1].module).__name__
        'ELA'
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model={model!r}: a module is needed")
    check_flags(identity=identity)
    linked = modules.get(name) is modules.PKCAM
    modules.check_options(name, kwargs, place=("channels", "device", "dtype", "previous"))
    body = model.model if isinstance(model, FeatureGetterNet) else model
    parameter = next(body.parameters(), None)
    if parameter is None:
        raise ValueError(f"model: a {type(body).__name__} has no parameters")
    dd = {"device": parameter.device, "dtype": parameter.dtype}
    wanted = [where] if isinstance(where, int | str) else list(where) if isinstance(where, Sequence) else [where]
    if wanted == ["stages"] or all(isinstance(level, int) and not isinstance(level, bool) for level in wanted):
        places = _behind_stages(model, body, None if wanted == ["stages"] else wanted)  # type: ignore[arg-type]
    elif not all(isinstance(pattern, str) for pattern in wanted) or (
        len(wanted) > 1 and {"stages", "blocks"} & {*wanted}
    ):
        raise ValueError(f"where={where!r}: 'stages', 'blocks', levels, or names or patterns of blocks are needed")
    elif linked:
        raise ValueError(f"where={where!r}: 'pkcam' links stages and stands behind them alone")
    else:
        places = _in_blocks(body, None if wanted == ["blocks"] else wanted)  # type: ignore[arg-type]
    row = modules.Row(len(places))
    # All are made before any is placed, so that an error leaves the model as it was.
    made = []
    for i, (channels, put) in enumerate(places):
        module = modules.create(name, channels, **({"previous": i} if linked else {}), **kwargs, **dd)
        if isinstance(module, modules.PKCAM):
            module = modules.Remembering(module, i, row)
        if identity and isinstance(module, modules.LKA):
            module.init_identity()
        elif identity:
            module = Gated(module, **dd)
        made.append((put, module.train(body.training)))
    for put, module in made:
        put(module)
    return model


def put_into_block(block: nn.Module, make: Callable[..., nn.Module], place: str = "end") -> None:
    """Puts a module into one block.

    Args:
        block: of timm's ResNet, RegNet, ConvNeXt, MobileNet or EfficientNet.
        make: called with the channels of the place.
        place: `"end"` of the residual branch, or `"middle"`, where the family puts squeeze and excitation.

    Raises:
        ValueError: if the block has no such place, or it is taken.
    """
    channels, put = _place(block, place, type(block).__name__)
    put(make(channels))


Place = tuple[int, Callable[[nn.Module], None]]


def _place(block: nn.Module, place: str, name: str) -> Place:
    """Channels of a place in a block, and what puts a module there."""
    places = next((_PLACES[kind] for kind in type(block).__mro__ if kind in _PLACES), {})
    if place not in places:
        allowed = ", ".join(repr(p) for p in places) or "none"
        raise ValueError(f"{name}: no place {place!r} in a {type(block).__name__}; it has {allowed}")
    path, channels = places[place]
    holder_path, _, leaf = path.rpartition(".")
    holder = block.get_submodule(holder_path)
    held = getattr(holder, leaf)
    if not (held is None or isinstance(held, nn.Identity | DropPath)):
        raise ValueError(f"{name}: the place is taken, {path} is a {type(held).__name__}")

    def put(module: nn.Module) -> None:
        setattr(holder, leaf, nn.Sequential(module, held) if isinstance(held, DropPath) else module)

    return attrgetter(channels)(block), put


def _in_blocks(body: nn.Module, patterns: list[str] | None) -> list[Place]:
    """Places in all blocks, or in those whose names fit a pattern."""
    blocks = {name: m for name, m in body.named_modules() if any(kind in _PLACES for kind in type(m).__mro__)}
    if patterns is None:
        if not blocks:
            kinds = ", ".join(sorted({kind.__name__ for kind in _PLACES}))
            raise ValueError(f"where='blocks': {type(body).__name__} has no blocks with a place; known are {kinds}")
        return [_place(block, "end", name) for name, block in blocks.items()]
    for pattern in patterns:
        if not fnmatch.filter(blocks, pattern):
            known = f"{next(iter(blocks))} to {list(blocks)[-1]}" if blocks else "none"
            raise ValueError(f"where={pattern!r}: no block with a place has such a name; blocks are {known}")
    fitting = [name for name in blocks if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    return [_place(blocks[name], "end", name) for name in fitting]


def _behind_stages(model: nn.Module, body: nn.Module, levels: list[int] | None) -> list[Place]:
    """Places behind all stages, or behind the levels asked for."""
    info = feature_levels(body)
    if levels is None:
        chosen = [i for i in range(len(info)) if _row(body, info[i]["module"]) is not None]
    else:
        chosen = sorted({level + len(info) if level < 0 else level for level in levels})
        if not chosen or chosen[0] < 0 or chosen[-1] >= len(info):
            raise ValueError(f"where={tuple(levels)}: {type(body).__name__} has the levels 0 to {len(info) - 1}")
    if not chosen:
        raise ValueError(f"where='stages': {type(body).__name__} has no stages that are a row of blocks")
    rows = {}
    for level in chosen:
        row = _row(body, info[level]["module"])
        if row is None:
            raise ValueError(
                f"where={level}: level {level} of {type(body).__name__} ({info[level]['module']}) is no row of blocks, "
                "or has been cut off"
            )
        rows[level] = row
    with _outputs(model, rows) as outputs:
        for level in rows:
            found = outputs.get(level)
            channels = info[level]["num_chs"]
            if not isinstance(found, torch.Tensor) or found.dim() != 4 or found.shape[1] != channels:
                shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
                raise ValueError(
                    f"where={level}: the blocks of {type(body).__name__} give {shape} at level {level}, not a map "
                    f"(B, {channels}, H, W)"
                )
    return [(info[level]["num_chs"], partial(_append, row)) for level, row in rows.items()]


def _row(body: nn.Module, name: str) -> nn.Module | None:
    """What runs the blocks of a stage one behind the other; the stage by its name, also as `features_only` has it."""
    found = dict(body.named_modules())
    stage = found.get(name, found.get(name.replace(".", "_")))
    row = stage if isinstance(stage, nn.Sequential | RegStage) else getattr(stage, "blocks", None)
    # timm leaves an empty row where it has cut a stage off.
    return row if isinstance(row, nn.Sequential | RegStage) and len(list(row.children())) > 0 else None


def _append(row: nn.Module, module: nn.Module) -> None:
    """Adds a module behind the last, in the same style of names: group matchers then know it as a block."""
    last = list(dict(row.named_children()))[-1]
    row.add_module(re.sub(r"\d+$", lambda number: str(int(number[0]) + 1), last), module)


@contextmanager
def _outputs(model: nn.Module, rows: dict[int, nn.Module]) -> Iterator[dict[int, Any]]:
    """What the rows give for one black image: whether their maps are NCHW is not to be seen from outside."""
    outputs: dict[int, Any] = {}

    def keep(level: int, _row: nn.Module, _inputs: Any, output: Any) -> None:
        outputs[level] = output

    hooks = [row.register_forward_hook(partial(keep, level)) for level, row in rows.items()]
    modes = {module: module.training for module in model.modules()}
    parameter = next(model.parameters())
    cfg: Any = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    size = cfg.get("input_size", (3, 224, 224)) if isinstance(cfg, dict) else cfg.input_size
    channels = getattr(model, "in_chans", None) or _first_channels(model) or size[0]
    try:
        model.eval()
        with torch.no_grad():
            model(torch.zeros(1, channels, *size[1:], device=parameter.device, dtype=parameter.dtype))
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode


def _first_channels(model: nn.Module) -> int | None:
    """Channels that the first convolution takes; `features_only` models do not say."""
    return next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), None)
