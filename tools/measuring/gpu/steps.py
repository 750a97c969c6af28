"""The phase that times whole models: training steps, and a restorer on a photograph's size."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import timm
import torch

from ....kernels import use_backend
from . import clock
from .context import Context

# Of a training step: images at a time and their side. The last ones are the least certain to be reached.
STEPS = {"biformer_small": (64, 224), "van_b2": (64, 224), "hat_small_x4": (4, 64), "dinat_tiny": (64, 224)}
# Of a restorer, pixels.
PHOTOGRAPH = (480, 640)
WAYS = ("triton", "torch", "published")
# By family the module of `backbones` whose operator is replaced by its definition: what published code computes.
_PUBLISHED = {
    "biformer": ("biformer", "routing_attention"),
    "van": ("bodies.layers", "large_kernel_attention"),
    "hat": ("hat", "window_attention"),
    "dinat": ("nat", "neighborhood_attention"),
}
_SMALL: dict[str, Any] = {"depths": (1, 1, 1, 1), "embed_dims": (16, 16, 16, 16)}


def steps(context: Context) -> None:
    """Each with Triton, with PyTorch and as published; compiled ones as long as time is left."""
    todo: list[tuple[str, str, bool]] = [(name, way, False) for name in STEPS for way in WAYS]
    todo.insert(9, ("photograph", "", False))
    todo += [(name, way, True) for name in STEPS for way in WAYS[:2]]
    if context.dry:
        todo = [("van_b0", way, False) for way in WAYS]
    for name, way, compiled in todo:
        if context.left < 3:
            context.results.add("step", unfinished=f"{name}, {way}")
            break
        if name == "photograph":
            _photograph(context)
            continue
        fields = {"model": name, "way": way, "compiled": compiled}
        try:
            context.results.add("step", **fields, **_step(name, way, compiled, context))
        except Exception as error:
            context.results.failed("step", error, **fields)
        if not context.dry:
            torch.cuda.empty_cache()


@contextlib.contextmanager
def as_published(model: str) -> Iterator[None]:
    """Within it the operators of a model are their definitions."""
    where, operator = _PUBLISHED[model.partition("_")[0]]
    module = importlib.import_module(f"....backbones.{where}", __package__)
    naive = getattr(importlib.import_module(f"....kernels.{operator}.naive", __package__), operator)

    def packed(qkv: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return naive(*qkv.chunk(3, -1), *args, **kwargs)

    with contextlib.ExitStack() as stack:
        for name, function in ((operator, naive), (f"{operator}_packed", packed)):
            if hasattr(module, name):
                stack.enter_context(mock.patch.object(module, name, function))
        yield


def _in_way(way: str, model: str) -> contextlib.AbstractContextManager[None]:
    return as_published(model) if way == "published" else use_backend(way)


def _step(name: str, way: str, compiled: bool, context: Context) -> dict[str, Any]:
    batch, side = (2, 32) if context.dry else STEPS[name]
    model = timm.create_model(name, **(_SMALL if context.dry else {})).to(context.device)
    model = model.to(memory_format=torch.channels_last).train()
    forward: Callable[..., torch.Tensor] = torch.compile(model) if compiled else model
    image = torch.randn(batch, 3, side, side, device=context.device).to(memory_format=torch.channels_last)
    # The interpreter has no bfloat16.
    autocast = torch.autocast(context.device, torch.bfloat16, enabled=not context.dry)

    def step() -> None:
        with autocast:
            out = forward(image)
        out.float().square().mean().backward()
        model.zero_grad(set_to_none=True)

    with _in_way(way, name):
        return {"batch": batch, "side": side, **_measure(step, context)}


def _measure(call: clock.Call, context: Context) -> dict[str, Any]:
    if context.dry:
        return {"ms": clock.median([call], "cpu", samples=1), "peak_bytes": 0}
    call()
    peak = clock.peak_bytes(call)
    return {"ms": clock.median([call], "cuda", samples=10, seconds=1.0), "peak_bytes": peak}


def _photograph(context: Context) -> None:
    name = "hat_small_x4"
    image = torch.rand(1, 3, *PHOTOGRAPH, device=context.device)
    model = timm.create_model(name).to(context.device).eval()
    for way in WAYS:
        fields = {"model": f"{name}, {PHOTOGRAPH[0]}x{PHOTOGRAPH[1]}", "way": way, "compiled": False}

        @torch.no_grad()
        def upscale() -> None:
            with torch.autocast(context.device, torch.bfloat16):
                model(image)

        try:
            with _in_way(way, name):
                context.results.add("step", **fields, **_measure(upscale, context))
        except Exception as error:
            context.results.failed("step", error, **fields)
