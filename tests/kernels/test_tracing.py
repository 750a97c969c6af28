"""Export and compilation are told apart, in every supported version of PyTorch."""

import torch
from torch import nn

from attnzoo.kernels.tracing import is_exporting


class Marked(nn.Module):
    """Adds 1 in an exported graph."""

    def forward(self, x):
        return x + 1 if is_exporting() else x * 1


def test_eager_code_is_not_exported():
    assert not is_exporting()
    assert Marked()(torch.zeros(2)).sum() == 0


def test_compiled_code_is_not_exported():
    torch.compiler.reset()
    assert torch.compile(Marked(), backend="eager", fullgraph=True)(torch.zeros(2)).sum() == 0


def test_exported_code_is():
    for strict in (False, True):
        program = torch.export.export(Marked(), (torch.zeros(2),), strict=strict)
        assert program.module()(torch.zeros(2)).sum() == 2
        assert not is_exporting()
