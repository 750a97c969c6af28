"""What plug-in modules share."""

import re
from typing import Any

import torch
from torch import nn


class Plugin(nn.Module):
    """A module of (B, C, H, W) to the same that also loads the names of its published code, wherever it sits.

    Attributes:
        published: pairs of a pattern at the beginning of a published name and what stands there instead.
    """

    published: tuple[tuple[str, str], ...] = ()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for key in [key for key in state_dict if key.startswith(prefix)]:
            own = rename(key[len(prefix) :], self.published)
            state_dict[prefix + own] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


def rename(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    """The name with the first fitting pattern at its beginning replaced."""
    for pattern, own in pairs:
        name, found = re.subn(rf"^{pattern}", own, name)
        if found:
            break
    return name


def own_names(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """The published names of plug-in modules replaced by ours; the names must lie where `model` has the modules."""
    published = {f"{name}.": m.published for name, m in model.named_modules() if isinstance(m, Plugin)}
    out = {}
    for key, value in state_dict.items():
        prefix = next((prefix for prefix in published if key.startswith(prefix)), "")
        out[prefix + rename(key[len(prefix) :], published.get(prefix, ()))] = value
    return out


def group_norm(x: torch.Tensor, groups: int, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    """Group normalisation (eps 1e-5) that also takes groups of a single value, which it makes zero.

    `torch.nn.functional.group_norm` and `instance_norm` refuse those, and a map of 1x1 has them.
    """
    return torch.group_norm(x, groups, weight, bias, 1e-5)
