"""What the contract tests know of a family: how to make a small one of its models, and what kind of model it is."""

import fnmatch
import math
import re

import timm
import torch

import attnzoo
from attnzoo.backbones.modules.plugin import Plugin

# Few blocks, every kind of layer. The first pattern that fits a name counts.
_SHALLOW = {
    "*_deit_*": dict(depth=2),
    "hat_*": dict(depths=(2, 1), num_heads=(6, 6)),
    # The class token has no relative position: the last scale's are seen by a second block alone.
    "coat_lite_*": dict(serial_depths=(1, 1, 1, 2)),
    "coat_*": dict(serial_depths=(1, 1, 1, 1), parallel_depth=1),
    "dinat_*": dict(depths=(2, 1, 2, 1), dilations=((1, 4), (1,), (1, 2), (1,))),
    "*_swin_*": dict(depths=(2, 2, 2, 2)),
    "resnet*": dict(layers=(1, 1, 1, 1), zero_init_last=False),
    "mobilenetv2_*": dict(depths=(1, 1, 1, 1, 1, 1, 1)),
    "*": dict(depths=(1, 1, 1, 1)),
}


def shallow_arguments(name: str) -> dict:
    return next(kwargs for pattern, kwargs in _SHALLOW.items() if fnmatch.fnmatch(name, pattern))


def shallow(name: str, **kwargs) -> torch.nn.Module:
    """A block or two a stage: every kind of layer, in a fraction of the time."""
    return timm.create_model(name, **{**shallow_arguments(name), **kwargs})


def restores(name: str) -> bool:
    """Whether the model maps an image to an image: it has no class logits and no stride."""
    return timm.models.get_pretrained_cfg(name).num_classes == 0


def map_side(level: dict, side: int) -> int:
    """Height or width of a level's map as its `size` in `feature_info` declares it."""
    return eval(level["size"], {"__builtins__": {}, "ceil": math.ceil, "max": max, "n": side})


def one_of_a_kind() -> list[str]:
    """Of the models of a class that are made of the same kinds of modules, the smallest.

    Convolutions of other kernels, strides or padding are of another kind: they take sizes otherwise. Plug-in attention
    at the same place counts as the same: its modules have their own tests.
    """
    kinds: dict[frozenset, tuple[int, str]] = {}
    for name in attnzoo.list_models():
        model = shallow(name, device="meta")
        size = sum(p.numel() for p in model.parameters())
        modules = dict(model.named_modules())
        plugins = tuple(f"{key}." for key, module in modules.items() if isinstance(module, Plugin))
        kind = frozenset(
            (type(model), re.sub(r"\d+", "#", key), _kind(module))
            for key, module in modules.items()
            if not key.startswith(plugins)
        )
        kinds[kind] = min(kinds.get(kind, (size, name)), (size, name))
    return [name for _, name in kinds.values()]


def _kind(module: torch.nn.Module) -> object:
    if isinstance(module, torch.nn.Conv2d):
        return type(module), module.kernel_size, module.stride, module.padding, module.dilation
    return Plugin if isinstance(module, Plugin) else type(module)
