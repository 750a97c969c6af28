"""What the kernel tests share."""

import dataclasses
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from attnzoo.kernels import _dispatch


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """New floating-point memory holds NaN, so that what a kernel leaves unwritten shows."""

    def poison(make):
        def made(*args, **kwargs):
            out = make(*args, **kwargs)
            return out.fill_(float("nan")) if out.is_floating_point() else out

        return made

    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch.Tensor, "new_empty"),
        (torch, "empty_strided"),
    ):
        monkeypatch.setattr(owner, name, poison(getattr(owner, name)))
    yield


@pytest.fixture(autouse=True)
def _bfloat16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter keeps bfloat16 as integers, and `tl.dot` multiplies these: here it gets the numbers."""
    if not _dispatch.INTERPRETED:
        return
    monkeypatch.setattr(_dispatch, "INTERPRETED_DTYPES", _dispatch.DTYPES)
    tl = pytest.importorskip("triton.language")
    builder = pytest.importorskip("triton.runtime.interpreter").InterpreterBuilder
    create_dot = builder.create_dot

    def create_dot_of_numbers(self, a, b, *args):
        a, b = (self.create_fp_ext(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return create_dot(self, a, b, *args)

    monkeypatch.setattr(builder, "create_dot", create_dot_of_numbers)


@pytest.fixture(autouse=True)
def _quick_interpreter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Triton's interpreter replaces its language once a test, and looks for integer overflows where it is tested.

    Without this it replaces the language for each kernel and for each function that a kernel calls, which takes a
    quarter of its time. A third goes into the overflows, which `test_*_triton.py` look for.
    """
    if not _dispatch.INTERPRETED:
        yield
        return
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    replace = interpreter._patch_lang
    # By the module whose functions see the language: Triton's own see another part of it.
    replacements: dict[str, Any] = {}

    def replace_once(function: Callable) -> Any:
        module = function.__globals__["__name__"]
        if module not in replacements:
            replacements[module] = replace(function)
        return SimpleNamespace(restore=lambda: None)

    monkeypatch.setattr(interpreter, "_patch_lang", replace_once)
    if not request.module.__name__.endswith("_triton"):
        builder = interpreter.interpreter_builder
        monkeypatch.setattr(builder, "options", dataclasses.replace(builder.options, sanitize_overflow=False))
    yield
    for replacement in reversed(replacements.values()):
        # Triton 3.5 has no way back.
        if replacement is not None:
            replacement.restore()
