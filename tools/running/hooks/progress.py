"""Progress bars of trainings, validations and tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...common.progress import bar


class ProgressHook(Hook):
    """A bar over all training iterations with the loss, and one over each validation or test.

    Args:
        begin: Is called once, when the first iteration of a training has ended, and before anything is saved.
    """

    priority = "LOWEST"

    def __init__(self, begin: Callable[[], None] = lambda: None) -> None:
        self._begin = begin
        self._bars: dict[str, Any] = {}
        self.started = False

    def before_train(self, runner: Runner) -> None:
        """Open the bar where a resumed run stands."""
        self.started = True
        self._bars["train"] = bar(total=runner.max_iters, initial=runner.iter, title="train")

    def before_test(self, runner: Runner) -> None:
        """Note that all is built."""
        self.started = True

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Advance, and show the loss."""
        self._has_begun()
        if outputs and "loss" in outputs:
            self._bars["train"].set_postfix(loss=f"{float(outputs['loss'].detach()):.3f}", refresh=False)
        self._bars["train"].update()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Begin where a resumed run saves the best of a validation before its first iteration."""
        self._has_begun()

    def _has_begun(self) -> None:
        begin, self._begin = self._begin, lambda: None
        begin()

    def after_train(self, runner: Runner) -> None:
        """Close the bar."""
        self._bars.pop("train").close()

    def _before_epoch(self, runner: Runner, mode: str = "train") -> None:
        if mode != "train":
            loader = runner.val_dataloader if mode == "val" else runner.test_dataloader
            self._bars[mode] = bar(total=len(loader), title=mode, leave=mode == "test")

    def _after_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None, mode: str = "train"
    ) -> None:
        if mode != "train":
            self._bars[mode].update()

    def _after_epoch(self, runner: Runner, mode: str = "train") -> None:
        if mode != "train":
            self._bars.pop(mode).close()
