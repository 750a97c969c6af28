"""What the entry points of all families share on their way to timm's builder."""

from typing import Any

from timm.models import build_model_with_cfg
from torch import nn

from .arguments import check_flags, flags_of, is_integer

__all__ = ["TimmChangedError", "build", "levels_of"]


class TimmChangedError(ImportError):
    """timm has changed what a module of this package builds on; timm's own is then left as it is."""


def build(
    model_cls: type[nn.Module],
    variant: str,
    pretrained: bool,
    levels: int,
    default: int | tuple[int, ...] | None = None,
    feature_cfg: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """As `build_model_with_cfg` of timm, with `out_indices` and what is True or False checked before they are used.

    Args:
        model_cls: of the model.
        variant: name of the model.
        pretrained: load the weights that its configuration names.
        levels: of the model's feature maps.
        default: `out_indices` where the caller gives none; None for all levels.
        feature_cfg: for timm, beside `out_indices`.
        **kwargs: of timm's function and of the model.

    Raises:
        ValueError: for `out_indices` that are not a number of levels or their indices in increasing order, or something
            else than True or False where one of the two is needed.
    """
    features_only = kwargs.get("features_only", False)
    # Libraries on top of timm give None for no weights.
    pretrained = False if pretrained is None else pretrained
    kwargs |= check_flags(pretrained=pretrained, features_only=features_only, **flags_of(model_cls, kwargs))
    out_indices = kwargs.pop("out_indices", None)
    if out_indices is not None:
        out_indices = _checked_out_indices(variant, out_indices, levels)
    elif default is not None:
        out_indices = default
    else:
        out_indices = tuple(range(levels))
    return build_model_with_cfg(
        model_cls, variant, feature_cfg=dict(feature_cfg or {}, out_indices=out_indices), **kwargs
    )


def levels_of(kwargs: dict[str, Any], default: int, name: str = "depths") -> int:
    """Stages that the arguments ask for; what is no tuple is the constructor's to refuse."""
    depths = kwargs.get(name)
    return len(depths) if isinstance(depths, tuple | list) and depths else default


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
