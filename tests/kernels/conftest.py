"""What the kernel tests share."""

from collections.abc import Iterator

import pytest
import quick_interpreter
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
    """The interpreter looks for integer overflows in `test_*_triton.py` alone."""
    if not _dispatch.INTERPRETED:
        yield
        return
    restore = quick_interpreter.replace(monkeypatch.setattr, request.module.__name__.endswith("_triton"))
    yield
    restore()
