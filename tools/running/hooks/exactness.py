"""Hooks by which a resumed run is the undisturbed one: random numbers, gradients, validations."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import EarlyStoppingHook, Hook
from mmengine.registry import HOOKS, TRANSFORMS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from ...common.errors import warn
from ...config.classes import class_of, nested
from ..batches import NumberedBatches, number_batches
from .divergence import plain_names


@HOOKS.register_module(force=True)
class ReseedHook(Hook):
    """Seed every generator anew from the seed of the run and the iteration, and for the data from the batch.

    mmengine saves no generator states, least of all those of a loader's workers; with this hook a resumed run draws
    what the undisturbed one draws, with any number of workers. The hook also saves the gradients that one process has
    accumulated since the last step. What keeps a resumed run from being exact all the same, a warning tells.
    """

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self._gradients: Any = None

    @staticmethod
    def _reseed(runner: Runner, iteration: int) -> None:
        seed = (runner.seed * 1_000_003 + iteration) % 2**32
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def before_train(self, runner: Runner) -> None:
        """Cover what is drawn for the data, and go on from what was accumulated."""
        number_batches(runner.train_dataloader, runner.seed, get_rank())
        gradients, self._gradients = self._gradients, None
        if not runner._resume:
            return
        for reason in _inexact(runner, isinstance(gradients, dict)):
            warn(f"{runner._load_from}: the resumed run is not just what the undisturbed one would have been: {reason}")
        if isinstance(gradients, dict) and _is_accumulating(runner):
            for name, parameter in plain_names(runner.model.named_parameters()).items():
                value = gradients.get(name)
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    parameter.grad = value.to(parameter)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save what one process has accumulated; of several, each has its own."""
        if _is_accumulating(runner) and get_world_size() == 1:
            parameters = plain_names(runner.model.named_parameters())
            checkpoint["gradients"] = {name: one.grad for name, one in parameters.items() if one.grad is not None}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep it until the training begins."""
        self._gradients = checkpoint.get("gradients")

    def before_train_epoch(self, runner: Runner) -> None:
        """Cover what is drawn before the first iteration, and number the batches of an epoch from there."""
        self._reseed(runner, runner.iter)
        batches, loop = runner.train_dataloader.batch_sampler, runner.train_loop
        # A loop by iterations skips the first batches of the loader where it goes on, unless it is to be quick.
        skips = isinstance(loop, IterBasedTrainLoop) and not getattr(loop, "fast_forward_on_resume", False)
        if isinstance(batches, NumberedBatches) and not skips:
            batches.count = runner.iter

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Cover what the model draws."""
        self._reseed(runner, runner.iter)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Cover what the next batch draws, as a resumed run draws it: without a past."""
        self._reseed(runner, runner.iter + 1)

    def after_val_epoch(self, runner: Runner, metrics: Any = None) -> None:
        """The same where a validation has come between, in which more may be drawn; and note that it has."""
        self._reseed(runner, runner.iter)
        runner.message_hub.update_info("validated", _position(runner))


def _is_accumulating(runner: Runner) -> bool:
    """Whether gradients wait for later iterations before the optimizer makes its step."""
    wrapper = runner.optim_wrapper
    count = getattr(wrapper, "_inner_count", 0)
    return count % getattr(wrapper, "_accumulative_counts", 1) != 0 and count != wrapper._max_counts


def _inexact(runner: Runner, has_gradients: bool) -> Iterator[str]:
    """What a resumed run has lost.

    Args:
        runner: Of the run.
        has_gradients: Whether its checkpoint has those that were accumulated.
    """
    if _is_accumulating(runner) and not has_gradients:
        yield "the gradients that were accumulated since the last step are lost"
    if isinstance(runner.train_loop, EpochBasedTrainLoop) and "iter_" in Path(runner._load_from).name:
        yield "it was saved by iterations, and its epoch begins again"
    found = [class_of(part, TRANSFORMS) for part in nested(runner.cfg.train_dataloader)]
    if cached := next((one.__name__ for one in found if one and one.__name__.startswith("Cached")), None):
        yield f"{cached} has kept images, and begins anew"
    if any(isinstance(hook, EarlyStoppingHook) for hook in runner.hooks):
        yield "EarlyStoppingHook counts its patience anew"
    if getattr(runner.train_loop, "fast_forward_on_resume", False):
        yield "fast_forward_on_resume skips no images, and their order begins anew"


def _position(runner: Runner) -> int:
    """What validations are counted by: epochs, or iterations where the loop goes by these."""
    return runner.iter if isinstance(runner.train_loop, IterBasedTrainLoop) else runner.epoch


class DueValidationHook(Hook):
    """Validate, in a resumed run, what was saved but not validated before the kill."""

    priority = "LOWEST"

    def before_train(self, runner: Runner) -> None:
        """Run the validation that would have come next."""
        loop, position = runner.train_loop, _position(runner)
        known = isinstance(loop, EpochBasedTrainLoop | IterBasedTrainLoop)
        if not (known and runner._resume and runner.val_loop is not None and position >= max(loop.val_begin, 1)):
            return
        loop._decide_current_val_interval()
        last = loop.max_iters if isinstance(loop, IterBasedTrainLoop) else loop.max_epochs
        due = position % loop.val_interval == 0 or position == last
        if due and runner.message_hub.runtime_info.get("validated") != position:
            runner.val_loop.run()
