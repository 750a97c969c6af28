"""What a checkpoint brings into the optimizers of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..common.errors import UserError

# What torch's optimizers keep for each parameter in its shape.
_SHAPED = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg", "sum")


def wrong_state(optimizer: torch.optim.Optimizer, before: list[dict[str, Any]]) -> str | None:
    """What a checkpoint has brought into an optimizer that cannot be, None if all can: torch itself looks at no value.

    Args:
        optimizer: With the state that was loaded.
        before: Its `param_groups` before that.
    """
    # What others keep is for them to know: it may depend on the shape, or be of another one.
    known = type(optimizer).__module__.startswith("torch.optim.")
    for number, (group, old) in enumerate(zip(optimizer.param_groups, before, strict=True)):
        # Of the names from before, as a load puts others into the defaults that no group has.
        for name in (name for name in optimizer.defaults if name in old):
            if name not in group or not _is_like(group[name], old[name]):
                return f"param_groups[{number}].{name} is {group.get(name)!r:.60}"
        names: dict[int, set[str]] = {}
        for parameter in group["params"] if known else ():
            state = optimizer.state.get(parameter)
            if not state:
                continue
            # Adafactor factors matrices alone.
            odd = set(state) ^ names.setdefault(parameter.dim(), set(state))
            if odd:
                return f"not all parameters have {', '.join(sorted(odd))}"
            for name, value in state.items():
                shape = tuple(value.shape) if isinstance(value, torch.Tensor) else None
                if name in _SHAPED and value is not None and shape != tuple(parameter.shape):
                    return f"{name} is of shape {shape} for a parameter of {tuple(parameter.shape)}"
                if name == "step" and not (isinstance(value, int | float) or shape in ((), (1,))):
                    return f"step is {value!r:.60}"
    return None


def _is_like(value: Any, old: Any) -> bool:
    """Whether a value is a number where the old one is, and so on for lists of them; a flag may not be set."""
    if old is None or (value is None and isinstance(old, bool)):
        return True
    if isinstance(old, tuple | list):
        same = isinstance(value, tuple | list) and len(value) == len(old)
        return same and all(map(_is_like, value, old))
    if isinstance(old, int | float):
        return isinstance(value, int | float) and (math.isfinite(value) or value == old)
    return isinstance(value, type(old))


@contextmanager
def checked_state(runner: Any, filename: str) -> Iterator[None]:
    """Check what the block loads for the optimizers of a Runner.

    Raises:
        UserError: naming the first value that is of another kind than before.
    """
    wrappers = getattr(runner.optim_wrapper, "optim_wrappers", {"": runner.optim_wrapper}).values()
    # DeepSpeed's optimizers are of its own class.
    optimizers = [wrapper.optimizer for wrapper in wrappers if isinstance(wrapper.optimizer, torch.optim.Optimizer)]
    before = [[dict(group) for group in optimizer.param_groups] for optimizer in optimizers]
    yield
    for optimizer, groups in zip(optimizers, before, strict=True):
        if wrong := wrong_state(optimizer, groups):
            raise UserError(f"{filename}: the state of the optimizer cannot be used: {wrong}")
