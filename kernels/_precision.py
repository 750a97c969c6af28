"""Products that keep the precision of their tensors."""

import contextlib

import torch

# Asked once, as torch.compile of PyTorch 2.9 cannot ask; of devices without autocast, such as meta, PyTorch raises.
_WITH_AUTOCAST = frozenset(
    device for device in ("cpu", "cuda", "hpu", "mps", "mtia", "xla", "xpu") if torch.amp.is_autocast_available(device)
)


def own_precision(x: torch.Tensor) -> contextlib.AbstractContextManager[object]:
    """Within it, products on the device of `x` stay in the dtype of their tensors, whatever autocast asks for."""
    device = x.device.type
    if device not in _WITH_AUTOCAST or not torch.is_autocast_enabled(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)
