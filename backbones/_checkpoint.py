"""What the conversion of published checkpoints shares between families."""

import math
import re

import torch
import torch.nn.functional as F
from torch import nn


def trunk_of(state_dict: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], bool]:
    """Takes a published file's wrapping off.

    Args:
        state_dict: as published; may stand below a key `model`, `state_dict`, `params_ema` or `params`.

    Returns:
        The backbone's tensors without `module.` and `backbone.` prefixes, and whether they came from a detector or
        segmentor, whose backbone has no classifier.
    """
    for key in ("state_dict", "model", "params_ema", "params"):
        inner = state_dict.get(key)
        if isinstance(inner, dict):
            state_dict = inner
    state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}
    trunk = {key.removeprefix("backbone."): value for key, value in state_dict.items() if key.startswith("backbone.")}
    return (trunk, True) if trunk else (state_dict, False)


def keep_classifier(
    state_dict: dict[str, torch.Tensor], model: nn.Module, prefixes: tuple[str, ...]
) -> dict[str, torch.Tensor]:
    """Fills what dense-prediction code deletes (classifier, final norm) from the model: the rest then loads strictly.

    Args:
        state_dict: in the model's own key names.
        model: about to be loaded.
        prefixes: of the keys that dense-prediction checkpoints lack.

    Returns:
        `state_dict` with the model's own values for the keys under `prefixes` that it lacks.
    """
    kept = {k: v for k, v in model.state_dict().items() if k.startswith(prefixes) and k not in state_dict}
    return {**state_dict, **kept}


def fuse_qkv(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Joins published `q` and `kv` projections to `qkv` wherever the model has one.

    Args:
        state_dict: in the model's own key names, but for `q` and `kv`.
        model: about to be loaded.
    """
    own = model.state_dict().keys()
    out = {}
    for key, value in state_dict.items():
        q, kv = re.sub(r"\.kv\.", ".q.", key), re.sub(r"\.q\.", ".kv.", key)
        fused = re.sub(r"\.kv\.", ".qkv.", kv)
        if key in (q, kv) and q != kv and fused in own and q in state_dict and kv in state_dict:
            out[fused] = torch.cat((state_dict[q], state_dict[kv]))
        else:
            out[key] = value
    return out


def fit_tables(
    state_dict: dict[str, torch.Tensor], model: nn.Module, lines: tuple[str, ...] = (), grids: tuple[str, ...] = ()
) -> dict[str, torch.Tensor]:
    """Resizes tables tied to the input size to those of the model, as the published code does when it fine-tunes.

    Args:
        state_dict: in the model's own key names.
        model: about to be loaded.
        lines: last parts of the names of tables with one entry a row or a column: linear.
        grids: last parts of the names of tables with one entry a cell of a square grid, flattened, possibly behind
            tokens with no place in it: bicubic.

    Returns:
        `state_dict` with every such table in the model's shape, where a single axis differs.
    """
    own = model.state_dict()
    out = dict(state_dict)
    for key, table in state_dict.items():
        leaf = key.rpartition(".")[2]
        if key not in own or leaf not in (*lines, *grids) or table.dim() != own[key].dim():
            continue
        axes = [i for i, size in enumerate(own[key].shape) if size != table.shape[i]]
        if len(axes) == 1:
            moved = table.movedim(axes[0], -1)
            size = own[key].shape[axes[0]]
            moved = _resize_line(moved, size) if leaf in lines else _resize_grid(moved, size)
            out[key] = moved.movedim(-1, axes[0])
    return out


def _resize_line(table: torch.Tensor, size: int) -> torch.Tensor:
    """(..., n) -> (..., size)."""
    line = F.interpolate(table.reshape(1, -1, table.shape[-1]).float(), size, mode="linear")
    return line.reshape(*table.shape[:-1], size).to(table.dtype)


def _resize_grid(table: torch.Tensor, size: int) -> torch.Tensor:
    """(..., tokens + n * n) -> (..., tokens + m * m), the latter of length `size`."""
    old, new = math.isqrt(table.shape[-1]), math.isqrt(size)
    tokens = size - new**2
    grid = table[..., table.shape[-1] - old**2 :].reshape(1, -1, old, old).float()
    grid = F.interpolate(grid, (new, new), mode="bicubic").reshape(*table.shape[:-1], new**2)
    return torch.cat((table[..., :tokens], grid.to(table.dtype)), -1)
