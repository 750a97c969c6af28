"""What the tests know of a family: one entry each, by which all tests of backbones find its models."""

import fnmatch
import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import timm
import torch

import attnzoo
from attnzoo.backbones.contract import facts
from attnzoo.backbones.contract.facts import restores
from attnzoo.backbones.modules.plugin import Plugin

__all__ = [
    "FAMILIES",
    "Family",
    "family",
    "kind_of",
    "map_side",
    "one_of_a_class",
    "one_of_a_kind",
    "plain",
    "restores",
    "shallow",
    "shallow_arguments",
]


@dataclass(frozen=True)
class Family:
    """Test data of a family.

    Args:
        shallow: arguments that leave few blocks and every kind of layer, by patterns of names; the first that fits
            counts.
        learns: of each class a model, by its name, and what makes it so narrow that it learns to read digits of 32
            pixels in seconds.
        learns_slowly: those of `learns` with the same attention as another of them, which `make test-slow` trains.
        not_learning: why a family has none.
        golden: arguments of the models of golden files, by file, where they are other than the model's own.
    """

    shallow: Mapping[str, dict] = field(default_factory=lambda: {"*": dict(depths=(1, 1, 1, 1))})
    learns: Mapping[str, dict] = field(default_factory=dict)
    learns_slowly: tuple[str, ...] = ()
    not_learning: str = ""
    golden: Mapping[str, dict] = field(default_factory=dict)


_PYRAMID = dict(depths=(1, 1, 1, 1), embed_dims=(16, 32, 48, 64))
_HEADS = dict(_PYRAMID, num_heads=(1, 2, 3, 4))
_DEIT = dict(depth=2, embed_dim=64, num_heads=2, patch_size=8, img_size=32, global_pool="avg")
# Of the bodies of DeiT, Swin and the others.
_BODIES = {"*_deit_*": dict(depth=2), "*_swin_*": dict(depths=(2, 1, 1, 1)), "*": dict(depths=(1, 1, 1, 1))}

FAMILIES = {
    "agent": Family(
        _BODIES,
        learns={
            "agent_cswin_small": dict(_HEADS, num_heads=(2, 2, 2, 4), img_size=32),
            "agent_deit_base": dict(_DEIT, num_agents=9, agent_blocks=1),
            "agent_pvt_small": dict(_HEADS, img_size=32),
            "agent_swin_tiny": dict(_HEADS, img_size=32),
        },
        learns_slowly=("agent_cswin_small", "agent_deit_base", "agent_pvt_small"),
        golden={"agent_pvt_tiny_256x320": dict(agent_grids=(12, 16, 28, 28))},
    ),
    "attention_cnns": Family(
        {
            "resnet*": dict(layers=(1, 1, 1, 1), zero_init_last=False),
            "mobilenetv2_*": dict(depths=(1, 1, 1, 1, 1, 1, 1)),
        },
        not_learning="the bodies are timm's, and the modules' gradients have a test of their own",
    ),
    "biformer": Family(learns={"biformer_tiny": dict(_PYRAMID, n_win=4, head_dim=16)}),
    "coat": Family(
        {
            # The class token has no relative position: the last scale's are seen by a second block alone.
            "coat_lite_*": dict(serial_depths=(1, 1, 1, 2)),
            "coat_*": dict(serial_depths=(1, 1, 1, 1), parallel_depth=1),
        },
        learns={
            "coat_lite_tiny": dict(serial_depths=(1, 1, 1, 1), embed_dims=(16, 32, 48, 64)),
            "coat_tiny": dict(serial_depths=(1, 1, 1, 1), parallel_depth=1, embed_dims=(16, 48, 48, 48)),
        },
        learns_slowly=("coat_tiny",),
    ),
    "hat": Family(
        # Narrow: all of its maps are as large as the image.
        {"*": dict(depths=(2, 1), num_heads=(6, 6), embed_dim=48, window_size=8, squeeze_factor=6)},
        not_learning="it restores images",
    ),
    "inline": Family(
        _BODIES,
        learns={
            "inline_deit_tiny": _DEIT,
            "inline_pvt_tiny": dict(_HEADS, img_size=32),
            "inline_swin_tiny": dict(_HEADS, img_size=32),
        },
        learns_slowly=("inline_deit_tiny", "inline_swin_tiny"),
    ),
    "litv2": Family(learns={"litv2_small": _HEADS}),
    "nat": Family(
        {
            "dinat_*": dict(depths=(2, 1, 2, 1), dilations=((1, 4), (1,), (1, 2), (1,))),
            "*": dict(depths=(1, 1, 1, 1)),
        },
        learns={"dinat_mini": dict(_HEADS, dilations=((2,), (1,), (1,), (1,)), kernel_size=3)},
    ),
    "van": Family(learns={"mscan_tiny": _PYRAMID, "van_b0": _PYRAMID}),
}


def family(name: str) -> Family:
    """The test data of a model's family.

    Raises:
        LookupError: if `FAMILIES` has no entry for it.
    """
    group = facts.group_of(name)
    if group is None:
        raise LookupError(f"{name}: no model of attnzoo")
    if group.family not in FAMILIES:
        raise LookupError(f"{name}: tests/zoo.py has no entry for the family {group.family!r}; add one to FAMILIES")
    return FAMILIES[group.family]


def shallow_arguments(name: str) -> dict:
    fitting = [kwargs for pattern, kwargs in family(name).shallow.items() if fnmatch.fnmatch(name, pattern)]
    if not fitting:
        raise LookupError(f"{name}: no pattern of `shallow` in its family's entry in tests/zoo.py fits")
    return fitting[0]


def shallow(name: str, **kwargs) -> torch.nn.Module:
    """A block or two a stage: every kind of layer, in a fraction of the time."""
    return timm.create_model(name, **{**shallow_arguments(name), **kwargs})


def plain(name: str) -> bool:
    """Whether it is a classifier whose levels all have one stride, of tokens."""
    return not restores(name) and len({level["reduction"] for level in _shallow_shapes()[name].feature_info}) == 1


def map_side(level: dict, side: int) -> int:
    """Height or width of a level's map as its `size` in `feature_info` declares it."""
    return eval(level["size"], {"__builtins__": {}, "ceil": math.ceil, "max": max, "n": side})


@functools.cache
def one_of_a_kind() -> tuple[str, ...]:
    """Of the models of a class that are made of the same kinds of modules, the smallest."""
    return tuple(_smallest(lambda model: (type(model), kind_of(model))))


@functools.cache
def one_of_a_class() -> tuple[str, ...]:
    """The smallest model of each class."""
    return tuple(_smallest(type))


def _smallest(kind) -> list[str]:
    kinds: dict[object, tuple[int, str]] = {}
    for name, model in _shallow_shapes().items():
        size = sum(p.numel() for p in model.parameters())
        kinds[kind(model)] = min(kinds.get(kind(model), (size, name)), (size, name))
    return [name for _, name in kinds.values()]


@functools.cache
def _shallow_shapes() -> dict[str, torch.nn.Module]:
    return {name: shallow(name, device="meta") for name in attnzoo.list_models()}


def kind_of(model: torch.nn.Module) -> frozenset:
    """The kinds of a model's modules, each with its place but for numbers.

    Convolutions of other kernels, strides or padding are of another kind: they take sizes otherwise. Plug-in attention
    at the same place counts as the same: its modules have their own tests.
    """
    modules = dict(model.named_modules())
    plugins = tuple(f"{key}." for key, module in modules.items() if isinstance(module, Plugin))
    return frozenset(
        (re.sub(r"\d+", "#", key), _kind(module)) for key, module in modules.items() if not key.startswith(plugins)
    )


def _kind(module: torch.nn.Module) -> object:
    if isinstance(module, torch.nn.Conv2d):
        return type(module), module.kernel_size, module.stride, module.padding, module.dilation
    return Plugin if isinstance(module, Plugin) else type(module)
