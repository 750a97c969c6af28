"""attnzoo's operators in the place of compiled ones of mmcv, where both are there and a user chooses ours."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ....kernels.deformable_attention import deformable_attention
from ...arguments import check_choice
from .deform_attn import ms_deform_attn_backward, ms_deform_attn_forward

__all__ = ["use_operators"]


def _attend(
    value: Tensor, value_spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """In the place of `multi_scale_deformable_attn_pytorch`; arguments as there."""
    ends = value_spatial_shapes.prod(1).cumsum(0)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    return deformable_attention(value, value_spatial_shapes, starts, sampling_locations, attention_weights)


def _ms_deform_attn() -> tuple[ModuleType, dict[str, Any]]:
    """What of mmcv's module is replaced, and by what."""
    module = import_module("mmcv.ops.multi_scale_deform_attn")
    ours: dict[str, Any] = {
        # For code that calls the autograd function itself.
        "ext_module": SimpleNamespace(
            ms_deform_attn_forward=ms_deform_attn_forward, ms_deform_attn_backward=ms_deform_attn_backward
        ),
        "multi_scale_deformable_attn_pytorch": _attend,
        # So that mmcv's layer takes that function on a GPU too. By the other it would round the places to the dtype
        # of the values, and in bfloat16 it would warn that it does not.
        "IS_CUDA_AVAILABLE": False,
    }
    return module, {name: value for name, value in ours.items() if hasattr(module, name)}


_REPLACEMENTS = {"ms_deform_attn": _ms_deform_attn}
# By operator: how many uses have not ended, and what was there before the first.
_in_use: dict[str, tuple[int, dict[str, Any]]] = {}


class _Use:
    """Ends the use of operators: when its context is left, or by `restore`."""

    def __init__(self, names: tuple[str, ...]):
        self._names = names

    def restore(self) -> None:
        """Put mmcv's operators back, once no other use of them is left. Calling it again changes nothing."""
        for name in self._names:
            count, before = _in_use.pop(name)
            if count > 1:
                _in_use[name] = count - 1, before
            else:
                vars(_REPLACEMENTS[name]()[0]).update(before)
        self._names = ()

    def __enter__(self) -> _Use:
        return self

    def __exit__(self, *error: object) -> None:
        self.restore()


def use_operators(*names: str) -> _Use:
    """Let mmcv compute operators by attnzoo, even where a compiled mmcv is installed, from now on or within a context.

    `"ms_deform_attn"` is multi-scale deformable attention: `mmcv.ops.MultiScaleDeformableAttention`, in models that
    exist already too, and `MultiScaleDeformableAttnFunction`. They run `attnzoo.kernels.deformable_attention`, in
    Triton where that is chosen (`attnzoo.kernels.use_backend`), in every dtype: in bfloat16, for which mmcv has no
    kernel, too. Code that took `multi_scale_deformable_attn_pytorch` out of mmcv before keeps mmcv's.

        attnzoo.heads.use_operators("ms_deform_attn")            # from now on

        with attnzoo.heads.use_operators("ms_deform_attn"):      # until here
            ...

    Args:
        *names: Of the operators.

    Returns:
        What restores mmcv's own: a context manager, with a method `restore`. Of uses that overlap the last to end does.

    Raises:
        ValueError: For an operator that cannot be chosen, or for none.
    """
    if not names:
        raise ValueError(f"use_operators needs one at least of {', '.join(_REPLACEMENTS)}")
    for name in names:
        check_choice("operator", name, tuple(_REPLACEMENTS))
    unique = tuple(dict.fromkeys(names))
    for name in unique:
        count, before = _in_use.get(name, (0, {}))
        if not count:
            module, ours = _REPLACEMENTS[name]()
            before = {key: getattr(module, key) for key in ours}
            vars(module).update(ours)
        _in_use[name] = count + 1, before
    return _Use(unique)
