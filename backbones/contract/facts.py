"""What a family declares of its models, as data, and the functions that read it; timm's own models have answers too."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from timm.models import FeatureInfo
from torch import nn

from ..checkpoints.conversion import STAGE_NORMS

__all__ = [
    "Check",
    "Facts",
    "Group",
    "Variant",
    "convert_checkpoint",
    "declare",
    "families",
    "feature_levels",
    "gives_images",
    "group_of",
    "restores",
    "stage_norm_prefix",
    "stages_of",
]

Filter = Callable[[dict[str, torch.Tensor], nn.Module], dict[str, torch.Tensor]]


def stages_of(kwargs: Mapping[str, Any], default: int = 4) -> int:
    """Stages that the arguments of a model ask for; `depths` that are no tuple are the constructor's to refuse."""
    depths = kwargs.get("depths")
    return len(depths) if isinstance(depths, tuple | list) and depths else default


@dataclass(frozen=True)
class Facts:
    """What is true of all models of one class.

    Args:
        model_cls: the class.
        checkpoint_filter: translates a published checkpoint, `filter(state_dict, model)`, to the model's own names.
        stage_norms: what published detectors and segmentors put before the level's number in the names of norms behind
            levels, which are the mm adapter's; None where they have none.
        restores: the models map an image to an image; others classify.
        levels: number of feature maps, or what counts them from a model's arguments.
        default_levels: how many of them, the last ones, `features_only` gives unasked; None for all.
        feature_cfg: how timm takes them, its `feature_cfg`.
    """

    model_cls: type[nn.Module]
    checkpoint_filter: Filter
    stage_norms: str | None = None
    restores: bool = False
    levels: int | Callable[[Mapping[str, Any]], int] = stages_of
    default_levels: int | None = None
    feature_cfg: Mapping[str, Any] = field(default_factory=lambda: {"flatten_sequential": True})


@dataclass(frozen=True)
class Variant:
    """One model.

    Args:
        summary: what it is, in a line.
        arguments: of its class.
        golden: files of `tests/golden` that hold what published code of this very model computes.
        beyond: which of its layers are in no model of its group that has a golden file.
    """

    summary: str
    arguments: Mapping[str, Any]
    golden: tuple[str, ...] = ()
    beyond: str = ""


@dataclass(frozen=True)
class Check:
    """A comparison that the tests make beside those with golden files.

    Args:
        against: what ours is compared with.
        test: `FILE::FUNCTION`, from the repository's root.
    """

    against: str
    test: str


@dataclass(frozen=True)
class Group:
    """The models of a family that differ in sizes alone, but for what a variant says that it has `beyond`.

    Args:
        family: name of the module.
        facts: of their class.
        variants: by the models' names.
        checks: comparisons beside golden files.
        no_golden: why no model of the group has a golden file, if none has.
        golden_note: what the golden files of the group leave out, or how they were made if not by published code alone.
    """

    family: str
    facts: Facts
    variants: Mapping[str, Variant]
    checks: tuple[Check, ...] = ()
    no_golden: str = ""
    golden_note: str = ""


_CLASSES: dict[type, Facts] = {}
_MODELS: dict[str, Group] = {}


def declare(group: Group) -> None:
    """Notes the facts of models that are registered with timm.

    Raises:
        ValueError: for a name that another group has, or a class of which other facts are known.
    """
    for name in group.variants:
        if name in _MODELS and _MODELS[name].family != group.family:
            raise ValueError(f"{name}: declared by {_MODELS[name].family} and {group.family}")
    if _CLASSES.setdefault(group.facts.model_cls, group.facts) != group.facts:
        raise ValueError(f"{group.facts.model_cls.__name__}: declared twice, with different facts")
    _MODELS.update(dict.fromkeys(group.variants, group))


def group_of(name: str) -> Group | None:
    """The group of a model, with or without a tag; None for timm's own."""
    return _MODELS.get(name.partition(".")[0])


def families() -> dict[str, list[str]]:
    """Names of our models by family, as these declare them, small ones first; families in alphabetical order."""
    found: dict[str, list[str]] = {}
    for name, group in _MODELS.items():
        found.setdefault(group.family, []).append(name)
    return dict(sorted(found.items()))


def _facts_of(model: nn.Module) -> Facts | None:
    return next((_CLASSES[kind] for kind in type(model).__mro__ if kind in _CLASSES), None)


def convert_checkpoint(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """A published checkpoint in the model's own names; one that has them already is returned untouched.

    timm's own models translate theirs, if they do, by a function `checkpoint_filter_fn` beside their class; timm notes
    it nowhere else.

    Args:
        state_dict: of the original repository, ours or timm's, of a classifier, or as the model's family says.
        model: about to be loaded.

    Raises:
        ValueError: where the family's filter raises it.
    """
    facts = _facts_of(model)
    if facts is not None:
        return facts.checkpoint_filter(state_dict, model)
    timms = vars(sys.modules[type(model).__module__]).get("checkpoint_filter_fn")
    return state_dict if timms is None else timms(state_dict, model)


def stage_norm_prefix(model: nn.Module) -> str:
    """What stands before a level's number in the names of the norms behind levels, in a published dense checkpoint.

    That of the mm adapter for models whose published dense code has none, and for timm's own.
    """
    facts = _facts_of(model)
    return STAGE_NORMS if facts is None or facts.stage_norms is None else facts.stage_norms


def feature_levels(model: nn.Module) -> list[dict[str, Any]]:
    """What a model says of its feature maps, the finest first; empty where it says nothing.

    Args:
        model: of timm's, or its features alone, as `features_only=True` gives them.

    Returns:
        Of each level a dict with `num_chs`, `reduction` and `module`.
    """
    said: Any = vars(model).get("feature_info") or []
    return list(said.info if isinstance(said, FeatureInfo) else said)


def restores(name: str) -> bool:
    """Whether the models of that name map an image to an image; timm's own classify."""
    group = group_of(name)
    return group is not None and group.facts.restores


def gives_images(model: nn.Module) -> bool:
    """Whether a model maps an image to an image as it stands: it restores, and has the layers that do so."""
    facts = _facts_of(model)
    return facts is not None and facts.restores and not isinstance(cast(Any, model).get_classifier(), nn.Identity)
