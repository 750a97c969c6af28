"""`torch.jit.trace` leaves sizes free: what is traced at one size and batch serves others."""

import warnings

import pytest
import torch
from kernel_helpers import CASES, cases


class Operator(torch.nn.Module):
    """A case's operator on tensors, its settings fixed."""

    def __init__(self, case):
        super().__init__()
        self.case = case

    def forward(self, *tensors):
        return self.case.call(*tensors)


def traced(module, tensors):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return torch.jit.trace(module, tuple(tensors), check_trace=False)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("deformable")])
@pytest.mark.parametrize("learns", [False, True])
def test_other_sizes(name, learns):
    tensors = list(cases(2, 6, 8)[name].tensors.values())
    tensors = [x.requires_grad_() for x in tensors] if learns else tensors
    script = traced(Operator(cases(2, 6, 8)[name]), tensors)
    # Smaller, larger, whole and, where the operator takes them, uneven ones.
    sizes = [(1, 4, 6), (3, 12, 10), (2, 2, 2), (2, 6, 8)]
    if not name.startswith("window"):
        sizes += [(1, 7, 5), (2, 3, 11), (1, 1, 1)]
    for size in sizes:
        case = cases(*size)[name]
        inputs = list(case.tensors.values())
        # Weights and tables are of the model: the same at every size.
        torch.testing.assert_close(script(*inputs), case.call(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["deformable", "deformable_3d"])
def test_other_levels(name):
    """Levels are tensors: the graph reads them at every call."""

    def arguments(*size):
        case = cases(*size)[name]
        sizes = torch.tensor(case.settings["spatial_shapes"])
        starts = torch.tensor(case.settings["level_start_index"])
        return case, (*case.tensors.values(), sizes, starts)

    case, example = arguments(2, 6, 8)
    order = (*case.tensors, *case.settings)

    class Attention(torch.nn.Module):
        def forward(self, *given):
            from attnzoo import kernels

            return getattr(kernels, case.name)(**dict(zip(order, given, strict=True)))

    script = traced(Attention(), example)
    for size in ((1, 4, 2), (3, 12, 10), (2, 6, 8)):
        other, given = arguments(*size)
        torch.testing.assert_close(script(*given), other.call(), rtol=1e-9, atol=1e-10)


def test_levels_in_numbers_stay_as_they_are():
    """Python's numbers are constants of a trace, as anywhere in PyTorch; batch and queries are free."""
    case = cases(2, 6, 8)["deformable"]
    script = traced(Operator(case), case.tensors.values())
    other = cases(3, 6, 8)["deformable"]
    torch.testing.assert_close(script(*other.tensors.values()), other.call(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_no_warning_of_sizes_that_become_constant(name):
    case = cases()[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        torch.jit.trace(Operator(case), tuple(case.tensors.values()), check_trace=False)
