"""How a family registers its models with timm, and what their entry points share on their way to timm's builder."""

import sys
from collections.abc import Mapping
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, register_model

from .arguments import check_flags, flags_of, is_integer
from .facts import Check, Facts, Group, Variant, declare

__all__ = ["TimmChangedError", "build", "imagenet_cfg", "register"]


class TimmChangedError(ImportError):
    """timm has changed what a module of this package builds on; timm's own is then left as it is."""


def register(
    module: str,
    facts: Facts,
    variants: Mapping[str, Variant],
    checks: tuple[Check, ...] = (),
    no_golden: str = "",
    golden_note: str = "",
) -> None:
    """Registers models with timm, each by an entry point of its name in the family's module.

    The module's `default_cfgs` are there before: timm reads them.

    Args:
        module: `__name__` of the family's module.
        facts: of the models' class.
        variants: by name: models that differ in sizes alone.
        checks: comparisons that the tests make beside those with golden files.
        no_golden: why no model of these has a golden file, if none has.
        golden_note: what the golden files leave out, or how they were made if not by published code alone.

    Raises:
        ValueError: for a name that is registered already.
    """
    declare(Group(module.rpartition(".")[2], facts, variants, checks, no_golden, golden_note))
    for name, variant in variants.items():
        _register(module, facts, name, variant)


def _register(module: str, facts: Facts, name: str, variant: Variant) -> None:
    def create(pretrained: bool = False, **kwargs):
        return build(facts, name, pretrained, **{**variant.arguments, **kwargs})

    create.__name__ = create.__qualname__ = name
    create.__module__ = module
    create.__doc__ = variant.summary
    create.__annotations__["return"] = facts.model_cls
    # Where pickle looks for a function.
    setattr(sys.modules[module], name, create)
    register_model(create)


def imagenet_cfg(top1: float | None = None, notes: tuple[str, ...] = (), **kwargs: Any) -> dict[str, Any]:
    """An entry of `default_cfgs`: a classifier of ImageNet-1k at 224 pixels, in what is most common.

    Args:
        top1: the authors' accuracy in per cent; None if they give none.
        notes: what else is to be known, before it.
        **kwargs: what differs, and what only the family knows: licence, origin, paper.
    """
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.0",
        "classifier": "head.fc",
        "notes": (*notes, *(() if top1 is None else (f"ImageNet-1k top-1 {top1} (authors' figure).",))),
        **kwargs,
    }


def build(facts: Facts, variant: str, pretrained: bool, **kwargs: Any) -> Any:
    """As `build_model_with_cfg` of timm, with `out_indices` and what is True or False checked before they are used.

    Args:
        facts: of the model's class.
        variant: name of the model.
        pretrained: load the weights that its configuration names.
        **kwargs: of timm's function and of the model.

    Raises:
        ValueError: for `out_indices` that are not a number of levels or their indices in increasing order, or something
            else than True or False where one of the two is needed.
    """
    features_only = kwargs.get("features_only", False)
    # Libraries on top of timm give None for no weights.
    pretrained = False if pretrained is None else pretrained
    kwargs |= check_flags(pretrained=pretrained, features_only=features_only, **flags_of(facts.model_cls, kwargs))
    levels = facts.levels if isinstance(facts.levels, int) else facts.levels(kwargs)
    out_indices = kwargs.pop("out_indices", None)
    if out_indices is not None:
        out_indices = _checked_out_indices(variant, out_indices, levels)
    elif facts.default_levels is not None:
        out_indices = min(facts.default_levels, levels)
    else:
        out_indices = tuple(range(levels))
    return build_model_with_cfg(
        facts.model_cls,
        variant,
        pretrained_filter_fn=facts.checkpoint_filter,
        feature_cfg=dict(facts.feature_cfg, out_indices=out_indices),
        **kwargs,
    )


def _checked_out_indices(variant: str, out_indices: Any, levels: int) -> int | tuple[int, ...]:
    """In Python's integers: timm knows no others."""
    if is_integer(out_indices) and 1 <= out_indices <= levels:
        return int(out_indices)
    if isinstance(out_indices, tuple | list) and all(is_integer(i) and -levels <= i < levels for i in out_indices):
        counted = [i + levels if i < 0 else i for i in out_indices]
        if counted and counted == sorted(set(counted)):
            return tuple(int(i) for i in out_indices)
    raise ValueError(
        f"out_indices={out_indices!r}: {variant} has {levels} levels, so a number of the last ones, 1 to {levels}, or "
        f"increasing indices from {-levels} to {levels - 1} are needed"
    )
