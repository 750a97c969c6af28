"""timm's models for the classes that mm builds: their creation, with errors for configs, and facts that timm gives."""

import difflib
from typing import Any

import timm
from torch import nn

from ...backbones.contract.facts import feature_levels
from ..arguments import check_text


def create_model(model_name: str, **kwargs: Any) -> Any:
    """`timm.create_model` with errors that name the argument at fault.

    Args:
        model_name: Name of a timm model, with or without a pretrained tag.
        **kwargs: Of `timm.create_model`.

    Returns:
        The model. Any, because timm's models keep their contract without a common class.

    Raises:
        TypeError: `model_name` is no string, or the model does not take an argument.
        ValueError: No such model or tag, arguments that do not go together, or a model that gives no feature maps.
    """
    check_text("model_name", model_name)
    if not timm.is_model(model_name) and ":" not in model_name:
        near = difflib.get_close_matches(model_name.split(".")[0], timm.list_models(), n=5)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() has all names"
        raise ValueError(f"model_name={model_name!r}: no such timm model; {hint}")
    try:
        model = timm.create_model(model_name, **kwargs)
    except TypeError as error:
        raise TypeError(f"model_name={model_name!r} with {_given(kwargs)}: {error}") from error
    except (AssertionError, AttributeError, IndexError, KeyError, ValueError, ZeroDivisionError) as error:
        # What the models of timm raise for depths, widths and sizes that do not go together.
        said = str(error) or type(error).__name__
        raise ValueError(f"model_name={model_name!r} with {_given(kwargs)}: {said}") from error
    except RuntimeError as error:
        if "Invalid pretrained tag" not in str(error):
            raise
        tags = ", ".join(timm.list_pretrained(f"{model_name.split('.')[0]}.*")) or "none"
        raise ValueError(f"model_name={model_name!r}: no such pretrained tag; known are {tags}") from error
    missing = [
        name
        for name in ("forward_intermediates", "prune_intermediate_layers", "group_matcher")
        if not hasattr(model, name)
    ]
    if missing:
        raise ValueError(f"model_name={model_name!r}: has no {' and no '.join(missing)}")
    return model


def _given(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if value is not None}


def levels_of(model_name: str, model: Any) -> list[dict[str, Any]]:
    """The model's `feature_info`: of every level its module, channels (`num_chs`) and stride (`reduction`).

    Raises:
        ValueError: It lacks one of them, or has no level.
    """
    levels = feature_levels(model)
    if not levels or any(not {"module", "num_chs", "reduction"} <= set(level) for level in levels):
        raise ValueError(
            f"model_name={model_name!r}: its feature_info does not name levels with module, num_chs and reduction"
        )
    return levels


def is_classifier(model: Any, key: str) -> bool:
    """Whether a checkpoint key belongs to the classifier that the model's `pretrained_cfg` names."""
    names = model.pretrained_cfg.get("classifier") or ()
    return key.startswith(tuple(f"{name}." for name in ([names] if isinstance(names, str) else names)))


def drop_head(model: Any) -> None:
    """Take out what timm before 1.0.31 leaves of a head, such as ConvNeXt's norm: it would never get a gradient."""
    # Where the classifier is elsewhere, what is named head may be a stage.
    if is_classifier(model, "head.fc.weight") and next(model.head.parameters(), None) is not None:
        model.head = nn.Identity()


def recompute(model_name: str, model: Any) -> None:
    """Make the model recompute activations, also where it only gives maps.

    Raises:
        ValueError: It cannot. ResNets of timm before 1.0.31 take the switch, but look at it in classification alone.
    """
    try:
        model.set_grad_checkpointing(True)
    except (AssertionError, AttributeError) as error:
        raise ValueError(f"with_cp=True: {model_name!r} cannot recompute activations") from error
    switched = [name for name, module in model.named_modules() if getattr(module, "grad_checkpointing", False)]
    if switched == [""] and "grad_checkpointing" not in type(model).forward_intermediates.__code__.co_names:
        raise ValueError(
            f"with_cp=True: {model_name!r} cannot recompute activations of maps in timm {timm.__version__}"
        )
