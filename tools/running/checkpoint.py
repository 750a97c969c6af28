"""Checkpoints: read without running the code in them, loaded into a model with every key accounted for."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch import nn

from ...backbones.checkpoints import CheckpointError, check_weights, read_checkpoint
from ...backbones.checkpoints.conversion import without_wrappers
from ..common.errors import UserError
from ..common.messages import some


def load_checkpoint(path: str | os.PathLike, map_location: Any = "cpu") -> dict[Any, Any]:
    """Read a checkpoint; code in it is never run.

    Args:
        path: As of `read_checkpoint` of `attnzoo.backbones.checkpoints`.
        map_location: As of `torch.load`.

    Returns:
        What `read_checkpoint` returns.

    Raises:
        UserError: if the file is missing, damaged, no checkpoint, or a pickle that wants to run code.
    """
    with suppress(ImportError):  # without mmengine there are no log buffers of its to read
        importlib.import_module("...heads.mm.checkpoints", __package__)
    try:
        return read_checkpoint(path, map_location)
    except (CheckpointError, FileNotFoundError) as error:
        raise UserError(str(error)) from error


def _origin(meta: dict[str, Any]) -> str:
    """Which model wrote the checkpoint, as far as the text of mmengine's meta tells."""
    text, name = (value if isinstance(value := meta.get(key), str) else "" for key in ("cfg", "experiment_name"))
    names = dict.fromkeys(re.findall(r"\bmodel_name=['\"]([\w.]+)['\"]", text))
    config = re.sub(r"_\d{8}_\d{6}$", "", name)
    parts = ([f"config {config!r}"] if config else []) + ([f"backbone {', '.join(names)}"] if names else [])
    return f"; the checkpoint was written with {', '.join(parts)}" if parts else ""


def stored_classes(path: str | os.PathLike, meta: Any) -> tuple[list[str] | None, Any]:
    """Names and palette of the classes as a checkpoint tells them; None for the names where it does not.

    Args:
        path: Of the checkpoint, for the message.
        meta: Its `meta`, whatever that is.

    Raises:
        UserError: if the names are no list of texts.
    """
    stored = meta.get("dataset_meta") if isinstance(meta, dict) else None
    found = {str(key).lower(): value for key, value in stored.items()} if isinstance(stored, dict) else {}
    if "classes" not in found:
        return None, None
    return listed_classes(path, found["classes"]), found.get("palette")


def listed_classes(source: str | os.PathLike, names: Any) -> list[str]:
    """The names of classes as a list.

    Args:
        source: Where they come from, for the message.
        names: As they stand there.

    Raises:
        UserError: if they are no list of texts.
    """
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{source}: the classes of its data must be a list of names, got {str(names)[:80]}")
    return list(names)


def _check_weights(state: dict[str, Any], model: nn.Module, path: str | os.PathLike) -> None:
    try:
        check_weights(state, model)
    except CheckpointError as error:
        raise UserError(f"{path}: {error}") from error


def load_into(
    model: nn.Module, path: str | os.PathLike, convert: Callable[[dict[str, Any]], dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Load a checkpoint into `model`, whose every key must be there in its shape, and nothing else.

    Args:
        model: Loaded in place.
        path: As of `load_checkpoint`.
        convert: Brings the weights of the file into the model's layout; its `ValueError` says why it cannot. That of
            the model itself, if it has one, where None.

    Returns:
        What `load_checkpoint` returns.

    Raises:
        UserError: as `load_checkpoint`, or naming the first keys that are missing, unexpected or of another shape, or
            the first tensor that is of another kind of number or not finite.
    """
    checkpoint = load_checkpoint(path)
    try:
        state = without_wrappers(checkpoint["state_dict"])
        convert = convert or getattr(model, "convert", None)
        if convert is not None:
            state = convert(state)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    own = model.state_dict()
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    reshaped = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or unexpected or reshaped:
        shapes = (f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}" for key in reshaped)
        parts = (
            (len(missing), "missing", missing),
            (len(unexpected), "unexpected", unexpected),
            (len(reshaped), "of another shape", shapes),
        )
        summary = ", ".join(f"{count} {what} ({some(keys, 3, str)})" for count, what, keys in parts if count)
        raise UserError(
            f"{path}: not a checkpoint of this {type(model).__name__}: of {len(own)} keys {summary}"
            f"{_origin(checkpoint['meta'])}"
        )
    _check_weights(state, model, path)
    model.load_state_dict(state)
    return checkpoint


def check_start(model: nn.Module, path: str | os.PathLike) -> None:
    """Check weights that mmengine's `load_from` is to load as far as they fit, as those of another number of classes.

    Args:
        model: Not changed.
        path: As of `load_checkpoint`.

    Raises:
        UserError: as `load_checkpoint`, or because not one tensor fits, or naming the first that fits and is of another
            kind of number or not finite.
    """
    checkpoint = load_checkpoint(path)
    # mmengine takes this prefix off, and no other.
    state = {key.removeprefix("module."): value for key, value in checkpoint["state_dict"].items()}
    if (convert := getattr(model, "convert", None)) is not None:
        state = convert(state)
    own = model.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    if not fitting:
        raise UserError(
            f"{path}: not one of its {len(state)} tensors ({some(state, 3, str)}) fits this {type(model).__name__} "
            f"({some(own, 3, str)}){_origin(checkpoint['meta'])}"
        )
    _check_weights(fitting, model, path)
