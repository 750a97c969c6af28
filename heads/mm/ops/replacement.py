"""attnzoo's operators in the place of compiled ones of mmcv, where both are there and a user chooses ours."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ....kernels import _dispatch
from ....kernels.deformable_attention import deformable_attention, deformable_attention_from_offsets
from ...arguments import check_choice
from .deform_attn import ms_deform_attn_backward, ms_deform_attn_forward

__all__ = ["use_operators"]


def _attend(
    value: Tensor, value_spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """In the place of `multi_scale_deformable_attn_pytorch`; arguments as there."""
    starts = _starts(value_spatial_shapes)
    return deformable_attention(value, value_spatial_shapes, starts, sampling_locations, attention_weights)


def _starts(spatial_shapes: Tensor) -> Tensor:
    """Of levels one after the other."""
    ends = spatial_shapes.prod(1).cumsum(0)
    return torch.cat([ends.new_zeros(1), ends[:-1]])


def _forward_of(theirs: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """In the place of the `forward` of mmcv's layer: softmax and locations are the kernels', and in no memory.

    Args:
        theirs: mmcv's own. It runs where Triton would not, and for exporters and tracers.
    """

    @functools.wraps(theirs)
    def forward(
        self: Any,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        level_start_index: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        fuses = _dispatch.may_choose_triton("deformable_attention", query)
        # The last has another name for the identity, of which mmcv warns.
        if not fuses or reference_points is None or spatial_shapes is None or "residual" in kwargs:
            kwargs |= dict(key=key, value=value, query_pos=query_pos, key_padding_mask=key_padding_mask)
            kwargs |= dict(reference_points=reference_points, spatial_shapes=spatial_shapes)
            kwargs |= {} if identity is None else dict(identity=identity)
            return theirs(self, query, level_start_index=level_start_index, **kwargs)
        source = query if value is None else value
        asking = query if query_pos is None else query + query_pos
        if not self.batch_first:
            source, asking = source.transpose(0, 1), asking.transpose(0, 1)
        maps = self.value_proj(source)
        if key_padding_mask is not None:
            maps = maps.masked_fill(key_padding_mask[..., None], 0.0)
        samples = *asking.shape[:2], self.num_heads, self.num_levels, self.num_points
        out = deformable_attention_from_offsets(
            maps.unflatten(2, (self.num_heads, -1)),
            spatial_shapes,
            _starts(spatial_shapes) if level_start_index is None else level_start_index,
            reference_points,
            self.sampling_offsets(asking).view(*samples, 2),
            self.attention_weights(asking).view(samples),
        )
        out = self.output_proj(out)
        out = out if self.batch_first else out.transpose(0, 1)
        return self.dropout(out) + (query if identity is None else identity)

    return forward


# Of what is replaced the owner, a module or a class, and the name.
_Place = tuple[Any, str]


def _ms_deform_attn() -> dict[_Place, Any]:
    """What of mmcv is replaced, and by what."""
    module = import_module("mmcv.ops.multi_scale_deform_attn")
    layer = module.MultiScaleDeformableAttention
    ours: dict[_Place, Any] = {
        # For code that calls the autograd function itself.
        (module, "ext_module"): SimpleNamespace(
            ms_deform_attn_forward=ms_deform_attn_forward, ms_deform_attn_backward=ms_deform_attn_backward
        ),
        (module, "multi_scale_deformable_attn_pytorch"): _attend,
        # So that mmcv's layer takes that function on a GPU too. By the other it would round the places to the dtype
        # of the values, and in bfloat16 it would warn that it does not.
        (module, "IS_CUDA_AVAILABLE"): False,
        (layer, "forward"): _forward_of(layer.forward),
    }
    return {(owner, name): value for (owner, name), value in ours.items() if hasattr(owner, name)}


_REPLACEMENTS = {"ms_deform_attn": _ms_deform_attn}
# By operator: how many uses have not ended, and what was there before the first.
_in_use: dict[str, tuple[int, dict[_Place, Any]]] = {}


def _put(values: dict[_Place, Any]) -> None:
    for (owner, name), value in values.items():
        setattr(owner, name, value)


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
                _put(before)
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
    kernel, too. In Triton the layer runs `deformable_attention_from_offsets`: softmax and locations in the kernels.
    Code that took `multi_scale_deformable_attn_pytorch` out of mmcv before keeps mmcv's.

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
            ours = _REPLACEMENTS[name]()
            before = {(owner, key): getattr(owner, key) for owner, key in ours}
            _put(ours)
        _in_use[name] = count + 1, before
    return _Use(unique)
