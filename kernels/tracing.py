"""What is being done with the code that runs: one answer for every supported version of PyTorch."""

import torch

# Before it, `torch.compiler.is_exporting` is not to be trusted: see `is_exporting`.
_TRUSTED = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 15)


def is_exporting() -> bool:
    """Whether `torch.export` (and through it the ONNX exporter) is tracing; False under `torch.compile`.

    `torch.compiler.is_exporting` was True under `torch.compile` too
    (https://github.com/pytorch/pytorch/issues/176347), so that a compiled model would have taken the exporter's
    branches. The flag behind it, which `torch.export` sets and `torch.compile` reads as it stands, was right.
    """
    return torch.compiler.is_exporting() if _TRUSTED else torch.compiler._is_exporting_flag
