"""Products that keep the precision of their tensors."""

import contextlib

import torch


def own_precision(x: torch.Tensor) -> contextlib.AbstractContextManager[object]:
    """Within it, products on the device of `x` stay in the dtype of their tensors, whatever autocast asks for."""
    device = x.device.type
    # Of devices without autocast, such as meta, PyTorch raises when it is asked.
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)
