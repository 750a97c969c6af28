"""Another attention in the leading blocks of a body's stages: which blocks have it, and what their checkpoints hold."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..checkpoints.conversion import converted, fit_tables, fuse_qkv, renamed
from ..contract.arguments import check_integers, check_stages
from . import cswin, pvt, swin
from .deit import DeiT

__all__ = ["convert_exchanged", "leading_blocks"]

# Published names of each body to ours.
_RENAMES: list[tuple[type[nn.Module], list[tuple[str, str]]]] = [
    (DeiT, []),
    (pvt.PyramidVisionTransformer, pvt.RENAMES),
    (swin.SwinTransformer, swin.RENAMES),
    (cswin.CSwinTransformer, cswin.RENAMES),
]


def leading_blocks(
    argument: str,
    counts: tuple[int | None, ...],
    depths: tuple[int, ...],
    layer: Callable[[int], Callable[..., nn.Module]],
) -> Callable[[int, int], Callable[..., nn.Module] | None]:
    """Which attention a body's block has, as its argument `attention`: None stands for the body's own.

    Args:
        argument: name of `counts` in errors.
        counts: of each stage the leading blocks with the other attention; None for all.
        depths: blocks of each stage.
        layer: given the stage, what makes the other attention.

    Raises:
        ValueError: where `counts` has not one entry a stage, or one that is no number of blocks.
    """
    check_stages(depths=depths, **{argument: counts})
    limited: dict[str, Any] = {argument: [count for count in counts if count is not None]}
    check_integers(least=0, tuples=True, **limited)

    def attention(stage: int, block: int) -> Callable[..., nn.Module] | None:
        count = counts[stage]
        return layer(stage) if count is None or block < count else None

    return attention


def convert_exchanged(
    state_dict: dict[str, torch.Tensor],
    model: nn.Module,
    mark: str,
    renames: list[tuple[str, str]],
    lines: tuple[str, ...] = (),
    value: Callable[[str, torch.Tensor], torch.Tensor] = lambda key, value: value,
) -> dict[str, torch.Tensor]:
    """Renames a published checkpoint of a body with another attention to our keys; returns ours untouched.

    Tables of another input size are resized to the model's. The `norm0` to `norm3` of dense code are the mm adapter's
    and left out, and so are the published index and mask buffers.

    Args:
        state_dict: of a classifier, detector or segmentor.
        model: about to be loaded.
        mark: part of a name that our layout alone has.
        renames: of the attention.
        lines: last parts of the names of the attention's tables with one entry a row or a column.
        value: given our name and the published tensor, ours.
    """
    names = [*next(names for body, names in _RENAMES if isinstance(model, body)), *renames]

    def translate(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        out = {}
        for key, tensor in state_dict.items():
            if not re.search(r"^norm\d\.|\.relative_position_index$|\.attn_mask$", key):
                key = renamed(key, names)
                out[key] = value(key, tensor)
        return fit_tables(fuse_qkv(out, model), model, lines, grids=("pos_embed", "relative_position_bias_table"))

    return converted(
        state_dict, model, lambda state: any(mark in key for key in state), translate, classifier=("norm.", "head.")
    )
