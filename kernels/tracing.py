"""What is being done with the code that runs: one answer for every supported version of PyTorch."""

import torch


def is_exporting() -> bool:
    """Whether `torch.export` (and through it the ONNX exporter) is tracing; False under `torch.compile`.

    `torch.compiler.is_exporting` is not asked: before PyTorch 2.12 it is True under `torch.compile` too
    (https://github.com/pytorch/pytorch/issues/176347), and a compiled model would take the exporter's branches.
    The flag behind it is what `torch.export` sets, and `torch.compile` reads it as it stands.
    """
    return torch.compiler._is_exporting_flag


def leaves_sizes_free() -> bool:
    """Whether a graph of plain PyTorch is being made that must serve other sizes too: by an exporter or a tracer."""
    return is_exporting() or torch.jit.is_tracing()
