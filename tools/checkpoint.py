"""Checkpoints: read without running the code in them, loaded into a model with every key accounted for."""

from __future__ import annotations

import importlib
import os
import pickle
import re
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .config import one_line
from .errors import UserError


def _known_classes() -> list[Any]:
    try:
        return importlib.import_module("..heads.pickles", __package__).known_classes()
    except ImportError:
        return []


def load_checkpoint(path: str | os.PathLike, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint; code in it is never run.

    Args:
        path: A file of safetensors or of `torch.save`: a bare state dict, or one under `state_dict`, `model`,
            `params_ema` or `params`.
        map_location: As of `torch.load`.

    Returns:
        The content of the file, with the weights under `state_dict` and a dict, possibly empty, under `meta`.

    Raises:
        UserError: if the file is missing, truncated, no checkpoint, or a pickle that wants to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint {str(path)!r}")
    if path.suffix == ".safetensors":
        content: Any = _read_safetensors(path)
    else:
        content = _read_pickle(path, map_location)
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a checkpoint")
    places = ("state_dict", "model", "params_ema", "params")
    nested = next((content[key] for key in places if isinstance(content.get(key), dict)), None)
    state = content if nested is None else nested
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path}: holds no weights (a dict of tensors, or one under 'state_dict' or 'model')")
    meta = content.get("meta")
    meta = dict(meta) if nested is not None and isinstance(meta, dict) else {}
    # mmengine executes the Python text that old checkpoints carry here, for nothing but a count of GPUs.
    meta.pop("config", None)
    return {**(content if nested is not None else {}), "state_dict": state, "meta": meta}


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path}: truncated, or not a safetensors file ({one_line(error)})") from error


def _read_pickle(path: Path, map_location: Any) -> Any:
    try:
        with torch.serialization.safe_globals(_known_classes()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch warns of is refused below
            return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+) (?:was not|whose module)", str(error))
        if wanted:
            reason = f"refused, its pickle asks for {wanted.group(1)!r}, which no checkpoint needs"
        else:
            reason = "truncated, not a checkpoint, or a pickle that could run code; it was not run"
        raise UserError(f"{path}: {reason}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: truncated, or not a checkpoint ({one_line(error, 160)})") from error


def _some(keys: Iterable[str]) -> str:
    keys = list(keys)
    return ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")


def _origin(meta: dict[str, Any]) -> str:
    """Which model wrote the checkpoint, as far as the text of mmengine's meta tells."""
    text = str(meta.get("cfg", ""))
    names = dict.fromkeys(re.findall(r"\bmodel_name=['\"]([\w.]+)['\"]", text))
    config = re.sub(r"_\d{8}_\d{6}$", "", str(meta.get("experiment_name", "")))
    parts = ([f"config {config!r}"] if config else []) + ([f"backbone {', '.join(names)}"] if names else [])
    return f"; the checkpoint was written with {', '.join(parts)}" if parts else ""


def load_into(
    model: nn.Module, path: str | os.PathLike, convert: Callable[[dict[str, Any]], dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Load a checkpoint into `model`, whose every key must be there in its shape, and nothing else.

    Args:
        model: Loaded in place.
        path: As of `load_checkpoint`.
        convert: Brings the weights of the file into the model's layout; its `ValueError` says why it cannot.

    Returns:
        What `load_checkpoint` returns.

    Raises:
        UserError: as `load_checkpoint`, or naming the first keys that are missing, unexpected or of another shape.
    """
    checkpoint = load_checkpoint(path)
    state = {key.removeprefix("module."): value for key, value in checkpoint["state_dict"].items()}
    if convert is not None:
        try:
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
        summary = ", ".join(f"{count} {what} ({_some(keys)})" for count, what, keys in parts if count)
        raise UserError(
            f"{path}: not a checkpoint of this {type(model).__name__}: of {len(own)} keys {summary}"
            f"{_origin(checkpoint['meta'])}"
        )
    model.load_state_dict(state)
    return checkpoint
