"""The phase that times the kernels with other tiles than those that they choose."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch

from ....kernels import _dispatch
from . import clock
from .context import Context
from .subjects import MAIN, Subject, small
from .times import PASSES, each, one_pass


@dataclass(frozen=True)
class Variant:
    """Other tiles of some kernels of an operator.

    Attributes:
        subject: that is timed with them.
        options: the module and the function in it that choose the tiles, "package.module:function"; None to let them.
        changes: what replaces entries of what the function gives; nothing for the tiles as they are chosen.
        precision: of products of float32, None for PyTorch's.
        dtype: of the tensors.
    """

    subject: Subject
    options: str | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    precision: str | None = None
    dtype: str = "bfloat16"

    @contextmanager
    def chosen(self) -> Iterator[None]:
        """Within it the kernels take these tiles."""
        precision = self.precision or _dispatch.dot_precision()
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(_dispatch, "dot_precision", lambda: precision))
            if self.options is not None:
                where, name = self.options.split(":")
                module = importlib.import_module(f"....kernels.{where}", __package__)
                choose = getattr(module, name)
                stack.enter_context(mock.patch.object(module, name, lambda *kind: {**choose(*kind), **self.changes}))
            yield

    @property
    def is_chosen(self) -> bool:
        """Whether it changes nothing."""
        return not self.changes and self.precision in (None, "ieee")

    @property
    def title(self) -> str:
        """In a few words."""
        name = self.options.rpartition(":")[2] if self.options else "as chosen"
        words = [f"{key} {value}" for key, value in self.changes.items()]
        return ", ".join([name, *words, *([self.precision] if self.precision else [])])


# Functions of `kernels` that choose tiles, and what replaces entries of what they give.
_ROUTING: dict[str, tuple[dict[str, Any], ...]] = {
    "routing_attention.triton:_forward_options": ({"num_stages": 3}, {"BLOCK_LISTED": 128}, {"num_warps": 8}),
    "routing_attention.triton:_query_gradient_options": ({"num_stages": 1}, {"BLOCK_LISTED": 64}),
    "routing_attention.triton:_key_gradient_options": ({"num_stages": 2}, {"BLOCK_LISTED": 64}),
}
_DEFORMABLE: dict[str, tuple[dict[str, Any], ...]] = {
    "deformable_attention.triton:_forward_options": ({"UNROLL": 1}, {"UNROLL": 2}, {"num_warps": 8}),
    "deformable_attention.triton:_backward_options": ({"UNROLL": 1}, {"num_warps": 4}),
}
_DEPTHWISE: dict[str, tuple[dict[str, Any], ...]] = {
    "large_kernel_attention.triton:_depthwise_options": ({"RUN": 2}, {"RUN": 4}, {"strip": 1}, {"num_warps": 8}),
    "large_kernel_attention.triton:_taps_options": ({"RUN": 1}, {"TAPS": 4}, {"parts": 1}, {"num_warps": 8}),
}
_GATED: dict[str, tuple[dict[str, Any], ...]] = {
    "large_kernel_attention.triton_pointwise:_gated_options": ({"num_stages": 3}, {"BLOCK_P": 32}, {"num_warps": 8}),
}
_NEIGHBORHOOD: dict[str, tuple[dict[str, Any], ...]] = {
    "neighborhood_attention.triton:_forward_options": (
        {"BLOCK_N": 16},
        {"num_stages": 3},
        {"TILE_H": 8, "num_warps": 2},
    ),
    "neighborhood_attention.triton_backward:_grad_query_options": (
        {"BLOCK_N": 32},
        {"num_stages": 1},
        {"TILE_H": 8, "num_warps": 2},
    ),
    "neighborhood_attention.triton_backward:_grad_key_value_options": (
        {"TILE_W": 4},
        {"num_stages": 1},
        {"TILE_H": 8, "num_warps": 2},
    ),
    "neighborhood_attention.triton_backward:_grad_bias_options": (
        {"num_stages": 3},
        {"num_warps": 2},
        {"TILE_W": 32, "BLOCK_N": 64, "num_warps": 4},
    ),
}
_SMALL_WINDOWS: dict[str, tuple[dict[str, Any], ...]] = {
    "window_attention.triton:_tile_forward_options": ({"num_stages": 1}, {"num_stages": 3}, {"num_warps": 8}),
    "window_attention.triton:_tile_backward_options": ({"num_stages": 2}, {"CHUNK": 16}, {"num_warps": 8}),
}
_LARGER_WINDOWS: dict[str, tuple[dict[str, Any], ...]] = {
    "window_attention.triton:_forward_options": ({"num_stages": 3}, {"BLOCK_M": 64}, {"num_warps": 8}),
    "window_attention.triton:_grad_query_options": ({"num_stages": 1}, {"BLOCK_M": 64}, {"num_warps": 8}),
    "window_attention.triton:_grad_key_options": ({"num_stages": 2}, {"BLOCK_M": 32}, {"num_warps": 8}),
    "window_attention.triton:_grad_bias_options": ({"num_stages": 2}, {"BLOCK_N": 32}, {"num_warps": 8}),
}
# Operators whose work is products of matrices.
_PRODUCTS = ("neighborhood_attention", "routing_attention", "window_attention")
# By operator and a word of the setting: all variants of a subject begin with the tiles that its kernels choose.
_TRIED = (
    ("deformable_attention", "", _DEFORMABLE),
    ("deformable_attention_3d", "", _DEFORMABLE),
    ("large_kernel_attention", "depth-wise", _DEPTHWISE),
    ("large_kernel_attention", "gated", _GATED),
    ("neighborhood_attention", "", _NEIGHBORHOOD),
    ("routing_attention", "", _ROUTING),
    ("window_attention", "HAT", _LARGER_WINDOWS),
    ("window_attention", "Swin", _SMALL_WINDOWS),
)


def variants(dry: bool) -> list[Variant]:
    """All that are tried; those of a subject begin with what its kernels choose."""
    if dry:
        name, smaller = "routing_attention.triton:_forward_options", {"BLOCK_LISTED": 16}
        return [Variant(small()[0], dtype="float16"), Variant(small()[0], name, smaller, dtype="float16")]
    found: list[Variant] = []
    for subject in MAIN:
        for operator, word, tried in _TRIED:
            if operator == subject.operator and word in subject.setting:
                found.append(Variant(subject))
                found += [Variant(subject, name, x) for name, changes in tried.items() for x in changes]
        # Products of float32 on tensor cores: nearly as exact in three parts, it is hoped.
        for precision in ("ieee", "tf32", "tf32x3") if subject.operator in _PRODUCTS else ():
            found.append(Variant(subject, precision=precision, dtype="float32"))
    return found


def sweep(context: Context) -> None:
    """Forward and backward of the subjects with every variant, the error beside those of another precision."""
    todo = variants(context.dry)
    each(context, "sweep compile", _run_once, [(variant,) for variant in todo])
    for variant in todo:
        if context.left < 2:
            context.results.add("sweep", unfinished=variant.title)
            break
        fields: dict[str, Any] = {
            "operator": variant.subject.operator,
            "setting": variant.subject.setting,
            "dtype": variant.dtype,
        }
        fields |= {"variant": variant.title, "chosen": variant.is_chosen}
        try:
            context.results.add("sweep", **fields, **_measure(variant, context))
        except Exception as error:
            context.results.failed("sweep", error, **fields)


def _measure(variant: Variant, context: Context) -> dict[str, Any]:
    case = variant.subject.case()
    tensors = case.tensors(getattr(torch, variant.dtype), context.device)
    form, found = case.forms["triton"], {}
    with variant.chosen():
        with torch.no_grad():
            out = form(*tensors)
        grad = torch.randn_like(out)
        for kind in PASSES:
            calls = [one_pass(form, tensors, grad, kind)]
            if not context.dry:
                calls[0]()
                calls = clock.graph(calls)
            found[f"{kind}_ms"] = clock.median(calls, context.device, 1 if context.dry else clock.SAMPLES, seconds=0.05)
    if variant.precision is not None:
        precise = [x.detach().double() for x in tensors]
        want = case.should_be("triton", tensors, precise)
        found["error"] = ((out.double() - want).abs().max() / want.abs().max()).item()
    return found


def _run_once(variant: Variant, dry: bool) -> None:
    case = variant.subject.case()
    tensors = case.tensors(getattr(torch, variant.dtype), "cpu" if dry else "cuda")
    with variant.chosen():
        one_pass(case.forms["triton"], tensors, None, "backward")()
    if not dry:
        torch.cuda.synchronize()
