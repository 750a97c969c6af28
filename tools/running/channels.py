"""Checks that necks and heads take the channels that the backbone gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.registry import MODELS

from ..common.errors import UserError
from ..common.messages import shown
from ..config.building import building

_HEADS = ("decode_head", "auxiliary_head", "panoptic_head", "rpn_head", "bbox_head", "mask_head")


def check_channels(cfg: Any) -> None:
    """Compare `in_channels` of what follows an `attnzoo.Backbone` with the channels that come.

    Args:
        cfg: The config, in whose scope modules are built.

    Raises:
        UserError: naming file, field and what fits, if the backbone cannot be built, a neck does not fit the backbone,
            or a head what is before it. Modules that do not tell their channels are passed over.
    """
    backbone = cfg.model.get("backbone")
    if backbone is None or backbone.get("type") != "attnzoo.Backbone":
        return
    arguments = dict(backbone)
    if arguments.get("pretrained"):
        arguments["pretrained"] = False
    with building(f"{cfg.filename}: model.backbone"), torch.device("meta"):
        built = MODELS.build(arguments)
    levels = list(built.channels)
    source = f"levels {built.out_indices} of {backbone.get('model_name')!r}"
    for field, neck in _parts(cfg.model, "neck"):
        after = _after(cfg.filename, field, neck, levels, source)
        if after is None:
            return
        levels, source = after, field
    for key in _HEADS:
        for field, head in _parts(cfg.model, key):
            _check(cfg.filename, field, head, levels, source)


def _parts(model: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The modules under `key`, one or a list, with the names of their fields."""
    part = model.get(key)
    if isinstance(part, (list, tuple)):
        yield from ((f"model.{key}[{index}]", module) for index, module in enumerate(part))
    elif part is not None:
        yield f"model.{key}", part


def _after(filename: str, field: str, neck: Any, levels: list[int], source: str) -> list[int] | None:
    """The channels of a neck's levels, None where it does not tell them."""
    _check(filename, field, neck, levels, source)
    channels, count = neck.get("out_channels"), neck.get("num_outs", len(levels))
    if channels is None:
        return None
    channels = _integers(filename, f"{field}.out_channels", channels)
    if isinstance(channels, list):
        return channels
    if type(count) is not int or count < 1:
        raise UserError(f"{filename}: {field}.num_outs: a positive number is needed, got {shown(count)}")
    return [channels] * count


def _integers(filename: str, field: str, value: Any) -> int | list[int]:
    """One integer or a list of them.

    Raises:
        UserError: for anything else.
    """
    if type(value) is int:
        return value
    if not isinstance(value, (list, tuple)) or not all(type(part) is int for part in value):
        raise UserError(f"{filename}: {field}: an integer or a list of them is needed, got {shown(value)}")
    return list(value)


def _check(filename: str, field: str, module: Any, levels: list[int], source: str) -> None:
    given, index = module.get("in_channels"), module.get("in_index")
    if given is None:
        return
    given = _integers(filename, f"{field}.in_channels", given)
    chosen = None
    if index is not None:
        index = _integers(filename, f"{field}.in_index", index)
        chosen = [index] if isinstance(index, int) else index
    if chosen is not None and not all(-len(levels) <= i < len(levels) for i in chosen):
        raise UserError(
            f"{filename}: {field}.in_index={index!r}: {source} are {len(levels)}, so 0 to {len(levels) - 1} are allowed"
        )
    taken = levels if chosen is None else [levels[i] for i in chosen]
    if isinstance(given, int):
        # Without an index a module takes each level in turn, or one of them.
        fits = given in taken
        allowed = " or ".join(map(str, dict.fromkeys(taken)))
    else:
        # The one neck that counts levels from the coarsest.
        wanted = taken[::-1] if module.get("type") == "YOLOV3Neck" else taken
        fits = given == wanted
        allowed = str(wanted)
    if not fits:
        raise UserError(f"{filename}: {field}.in_channels={given}: allowed is {allowed}, the channels of {source}")
