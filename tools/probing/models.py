"""The models whose features are probed, with their weights."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import torch

from ...backbones.contract.facts import convert_checkpoint
from ..common.errors import UserError
from ..common.messages import one_line
from ..common.models import create_free
from ..running.checkpoint import load_into


def build(name: str, checkpoint: str | os.PathLike[str] | None = None, pretrained: bool = False) -> Any:
    """A timm model that takes any image size, as far as it can, with its weights or with random ones of seed 0.

    Raises:
        UserError: if the checkpoint does not fit, or timm's weights cannot be had.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model = create_free(name, pretrained=pretrained)
        except TypeError:
            raise
        except Exception as error:  # of a download, of any kind
            if not pretrained:
                raise
            raise UserError(
                f"{name}: no weights of timm's can be had ({one_line(error, 200)}); --checkpoint takes a file"
            ) from error
    if checkpoint is not None:
        load_into(model, checkpoint, partial(_converted, model))
    return model


def _converted(model: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A checkpoint in the model's layout; the classifier, which probing does not use, keeps its own values."""
    try:
        state = convert_checkpoint(state, model)
    except ValueError:
        raise
    except Exception as error:  # timm's take the shapes that they expect for granted
        raise ValueError(f"not weights of {type(model).__name__}: {one_line(error, 200)}") from error
    names = model.pretrained_cfg.get("classifier") or ()
    prefixes = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
    own = {key: value for key, value in model.state_dict().items() if key.startswith(prefixes)}
    return {**{key: value for key, value in state.items() if not key.startswith(prefixes)}, **own}
