"""What the kernel tests share."""

from collections.abc import Iterator

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


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


def assert_near(name: str, actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Fails where the largest difference exceeds `tolerance` times the largest magnitude expected (NaN fails too)."""
    assert actual.shape == expected.shape, f"{name}: {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    largest = expected.double().abs().max().clamp(min=1e-12)
    error = ((actual.double() - expected.double()).abs().max() / largest).item()
    assert error <= tolerance, f"{name}: relative error {error:.2e} above {tolerance:.0e}"
