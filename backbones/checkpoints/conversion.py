"""What the conversion of published checkpoints shares between families."""

import math
import re
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import nn

from .reader import PLACES

# As attnzoo.Backbone, and published dense BiFormer code, name the norms behind stages.
STAGE_NORMS = "extra_norms."
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+|(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")


def trunk_of(state_dict: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], bool]:
    """Takes the wrapping off a published file, or off one of a model that was trained with attnzoo's adapters.

    Args:
        state_dict: as published; may stand below one of the keys of `PLACES`.

    Returns:
        The backbone's tensors without prefixes (the very dict where there is nothing to take off), and whether they
        came from a detector or segmentor, whose backbone has no classifier.

    Raises:
        ValueError: if two tensors have the same name without prefixes.
    """
    state_dict, dense, adapted = unwrapped(state_dict)
    if adapted:
        state_dict = {key: value for key, value in state_dict.items() if not key.startswith(STAGE_NORMS)}
    return state_dict, dense


def converted(
    state_dict: dict[str, torch.Tensor],
    model: nn.Module,
    is_own: Callable[[dict[str, torch.Tensor]], bool],
    translate: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    classifier: tuple[str, ...],
) -> dict[str, torch.Tensor]:
    """What the checkpoint filters of families have in common: our own layout stays, a dense one gets a classifier.

    Args:
        state_dict: as `trunk_of` takes it.
        model: about to be loaded.
        is_own: whether names are the model's own already.
        translate: published names and tensors to the model's own.
        classifier: prefixes of what dense-prediction code deletes.
    """
    state_dict, dense = trunk_of(state_dict)
    if not is_own(state_dict):
        state_dict = translate(state_dict)
    return keep_classifier(state_dict, model, classifier) if dense else state_dict


def renamed(key: str, renames: Iterable[tuple[str, str]]) -> str:
    """The key after all substitutions (pattern, replacement), in their order."""
    for pattern, new in renames:
        key = re.sub(pattern, new, key)
    return key


def unwrapped(state_dict: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], bool, bool]:
    """As `trunk_of`, with the adapter's stage norms, and whether the adapter (`attnzoo.Backbone`) wrote the file."""
    for key in PLACES:
        inner = state_dict.get(key)
        if isinstance(inner, dict):
            state_dict = inner
            if key == "ema_state_dict":  # mmengine counts its averages there
                state_dict = {name: value for name, value in inner.items() if name != "steps"}
            break
    state_dict = without_wrappers(state_dict)
    trunk = {key.removeprefix("backbone."): value for key, value in state_dict.items() if key.startswith("backbone.")}
    dense = bool(trunk)
    state_dict = trunk or state_dict
    adapted = "model." in {key[:6] for key in state_dict} and all(
        key.startswith(("model.", STAGE_NORMS)) for key in state_dict
    )
    if adapted:
        state_dict = {key.removeprefix("model."): value for key, value in state_dict.items()}
    return state_dict, dense or adapted, adapted


def without_wrappers(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Takes off what data parallelism, sharding, checkpointing and compilation put into names.

    Raises:
        ValueError: if two tensors have the same name without it.
    """
    names = {key: _WRAPPERS.sub("", key) for key in state_dict}
    if all(key == name for key, name in names.items()):
        return state_dict
    first: dict[str, str] = {}
    for key, name in names.items():
        if name in first:
            raise ValueError(f"{first[name]!r} and {key!r} are both there, of which only one can be {name!r}")
        first[name] = key
    return {name: state_dict[key] for key, name in names.items()}


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
