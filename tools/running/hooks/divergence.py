"""An end to trainings that diverge."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...common.errors import UserError
from ..work_dir import last_checkpoint, run_folders


def plain_names(tensors: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Tensors by the names that they have without wrappers around the model."""
    return {
        name.replace("_fsdp_wrapped_module.", "").replace("_orig_mod.", "").removeprefix("module."): value
        for name, value in tensors
    }


def is_finite(value: Any) -> bool:
    """Whether a value holds no number that is infinite or none (NaN)."""
    return not isinstance(value, torch.Tensor) or not value.is_floating_point() or bool(value.isfinite().all())


def diverged(runner: Runner, what: str, iteration: int) -> UserError:
    """The error that ends a training which has diverged.

    Args:
        runner: Of the training.
        what: Shows it.
        iteration: In which it does.
    """
    good = last_checkpoint(*run_folders(runner.cfg))
    return UserError(
        f"the training has diverged: {what} at iteration {iteration} (epoch {runner.epoch + 1}); "
        f"the last good checkpoint is {good or 'none, as none was written'}; a lower learning rate, or "
        "optim_wrapper.clip_grad, may help"
    )


@HOOKS.register_module(force=True)
class FiniteHook(Hook):
    """Stop a training whose loss is no longer finite.

    The values are those that mmengine has read for the log, so that no GPU is waited for. With fp16 the gradients may
    overflow, which the loss scaler answers by a smaller scale; their norm is looked at in other training only.
    """

    priority = "HIGH"

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Look at the loss, and at the norm of the gradients where they are clipped.

        Raises:
            UserError: naming the first term that is not finite, the iteration, and the last checkpoint before it.
        """
        scalars = runner.message_hub.log_scalars
        values = outputs if isinstance(outputs, dict) else {}
        # The sum is finite only if all terms are.
        losses = ["loss"] if "loss" in values else [name for name in values if "loss" in name]
        wrapper = runner.optim_wrapper
        if hasattr(wrapper, "grad_name") and not hasattr(wrapper, "loss_scaler") and wrapper.clip_grad_kwargs:
            losses.append(wrapper.grad_name)
        if all(math.isfinite(_current(name, values, scalars)) for name in losses):
            return
        terms = [name for name in values if "loss" in name and name != "loss"] + losses
        bad = next(name for name in terms if not math.isfinite(_current(name, values, scalars)))
        raise diverged(runner, f"{bad} is {_current(bad, values, scalars)}", runner.iter + 1)


def _current(name: str, values: dict[str, Any], scalars: Any) -> float:
    """The value of a term in this iteration, as it was read for the log where it was."""
    if f"train/{name}" in scalars and len(scalars[f"train/{name}"].data[0]):
        return float(scalars[f"train/{name}"].current())
    value = values.get(name, 0.0)
    return float(value) if isinstance(value, int | float) or getattr(value, "numel", lambda: 0)() == 1 else 0.0
