"""What the kernel tests import."""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def assert_near(name: str, actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Fails where the largest difference exceeds `tolerance` times the largest magnitude expected (NaN fails too)."""
    assert actual.shape == expected.shape, f"{name}: {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    if actual.numel() == 0:
        return
    largest = expected.double().abs().max().clamp(min=1e-12)
    error = ((actual.double() - expected.double()).abs().max() / largest).item()
    assert error <= tolerance, f"{name}: relative error {error:.2e} above {tolerance:.0e}"
