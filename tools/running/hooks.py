"""What mmengine's hooks lack: checkpoints that survive a kill, exact resume, an end to what diverges, progress bars."""

from __future__ import annotations

import hashlib
import io
import math
import os
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank, get_world_size, is_main_process, master_only
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, Hook
from mmengine.registry import HOOKS, TRANSFORMS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from mmengine.runner.checkpoint import CheckpointLoader

from ..common.errors import UserError, warn
from ..common.files import atomic_path
from ..common.progress import bar
from ..config.classes import class_of, nested
from .batches import NumberedBatches, number_batches
from .work_dir import checkpoint_folder, last_checkpoint, own_checkpoint, run_folders, step_of


@register_backend("attnzoo", force=True)
class AtomicBackend(LocalBackend):
    """Local files that are written under a temporary name and moved into place; only checkpoints are removed."""

    def __init__(self) -> None:
        self._doomed: list[str] | None = None

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write `obj` to `filepath`."""
        with atomic_path(filepath) as temporary:
            temporary.write_bytes(obj)

    def remove(self, filepath: str | Path) -> None:
        """Remove a checkpoint, or note it inside `removing_last`; what is none stays."""
        path = own_checkpoint(Path(filepath).parent, Path(filepath).name)
        if path is None:
            return
        if self._doomed is None:
            super().remove(path)
        else:
            self._doomed.append(str(path))

    def rmtree(self, dir_path: str | Path) -> None:
        """Leave the folder: no checkpoint of this backend is one."""

    def doomed(self) -> list[str]:
        """Names of the files whose removal is held back."""
        return [Path(path).name for path in self._doomed or ()]

    @contextmanager
    def removing_last(self) -> Iterator[None]:
        """Hold removals back until the outermost such block has ended."""
        if self._doomed is not None:
            yield
            return
        doomed: list[str] = []
        self._doomed = doomed
        try:
            yield
        finally:
            self._doomed = None
        for path in doomed:
            self.remove(path)


@HOOKS.register_module(force=True)
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, safe against a kill at any moment.

    mmengine writes in place and removes the old file first; here a checkpoint appears complete or not at all, and the
    old one goes after the new one and `last_checkpoint` stand. A checkpoint names the files that it supersedes, so that
    a resumed run removes what the killed one did not come to. Weights that are not finite are not written.
    """

    def __init__(self, **kwargs: Any) -> None:
        # Storage that is not a folder, and what the user has chosen for it, stay mmengine's.
        chosen = (kwargs.get("backend_args") or {}).get("backend", "local")
        if "://" not in str(kwargs.get("out_dir")) and chosen == "local" and not kwargs.get("file_client_args"):
            kwargs["backend_args"] = {"backend": "attnzoo"}
        super().__init__(**kwargs)
        self._superseded: list[str] = []
        self._position: dict[str, int] | None = None
        self._never_finite: set[str] = set()

    def _removing_last(self) -> AbstractContextManager[None]:
        # A remote backend of the user's own has no such block.
        return self.file_backend.removing_last() if isinstance(self.file_backend, AtomicBackend) else nullcontext()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Note what the checkpoint has superseded."""
        names = checkpoint.get("superseded")
        self._superseded = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []

    def before_train(self, runner: Runner) -> None:
        """Go on in the folder of a resumed run where its kill has interrupted it, and touch no other folder."""
        atomic = (self.backend_args or {}).get("backend") == "attnzoo"
        if runner._resume and atomic:
            self._forget_strangers(runner)
        super().before_train(runner)
        buffers = _plain_names(runner.model.named_buffers())
        self._never_finite = {name for name, buffer in buffers.items() if not _is_finite(buffer)}
        if not isinstance(self.file_backend, AtomicBackend):
            return
        folder, start = Path(self.out_dir), self._start(runner)
        if start is None or not atomic:
            return
        self.last_ckpt = str(start)
        if is_main_process():
            for name in self._superseded:
                path = own_checkpoint(folder, name)
                if path is not None and path.name != start.name:
                    path.unlink()

    def _forget_strangers(self, runner: Runner) -> None:
        """Keep of the names in a resumed checkpoint those of checkpoints in the folder: these alone may be removed."""
        folder, start, known = checkpoint_folder(runner.cfg), self._start(runner), runner.message_hub.runtime_info
        for key in [key for key in known if key == "best_ckpt" or key.startswith("best_ckpt_")]:
            # By its name alone, as the folder may have been moved.
            path = own_checkpoint(folder, Path(name).name) if isinstance(name := known[key], str) else None
            known[key] = None if path is None else str(path)
        ids, step = known.pop("keep_ckpt_ids", None), None if start is None else step_of(start)
        if step is not None and isinstance(ids, list) and all(type(each) is int and each >= 0 for each in ids):
            # The one that is resumed is the last to go.
            known["keep_ckpt_ids"] = sorted({each for each in ids if each <= step})

    @staticmethod
    def _start(runner: Runner) -> Path | None:
        """The checkpoint that is resumed, if it stands in the folder of this run."""
        if not (runner._resume and runner._load_from):
            return None
        folder, start = checkpoint_folder(runner.cfg), Path(runner._load_from)
        return folder / start.name if start.resolve().parent == folder.resolve() else None

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        with self._removing_last(), self._at(meta):
            super()._save_checkpoint_with_step(runner, step, meta)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        with self._removing_last(), self._at({"epoch": runner.epoch, "iter": runner.iter}):
            super()._save_best_checkpoint(runner, metrics)

    @contextmanager
    def _at(self, meta: dict) -> Iterator[None]:
        before, self._position = self._position, {key: meta[key] for key in ("epoch", "iter")}
        try:
            yield
        finally:
            self._position = before

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check the weights, and complete what mmengine writes.

        Raises:
            UserError: naming the first of the weights that is not finite.
        """
        for key in ("state_dict", "ema_state_dict"):
            for name, value in _plain_names(checkpoint.get(key, {}).items()).items():
                if name not in self._never_finite and not _is_finite(value):
                    iteration = self._position["iter"] if self._position else runner.iter
                    raise _diverged(runner, f"weight {name} is not finite", iteration)
        if self._position is not None:
            # FlexibleRunner counts one epoch too many where a checkpoint is written again after a validation.
            checkpoint["meta"].update(self._position)
        if isinstance(self.file_backend, AtomicBackend):
            checkpoint["superseded"] = self.file_backend.doomed()

    @master_only
    def _publish_model(self, runner: Runner, ckpt_path: str | None) -> None:
        # mmengine's own writes in place, and fails where a metric has never had a best.
        if ckpt_path is None:
            return
        checkpoint = CheckpointLoader.load_checkpoint(str(ckpt_path), "cpu")
        buffer = io.BytesIO()
        torch.save({key: value for key, value in checkpoint.items() if key in self.published_keys}, buffer)
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        path = f"{os.path.splitext(ckpt_path)[0]}-{digest[:8]}.pth"
        self.file_backend.put(buffer.getvalue(), path)
        runner.logger.info(f"{ckpt_path} is published as {path}, with {', '.join(self.published_keys)}")


def _plain_names(tensors: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Tensors by the names that they have without wrappers around the model."""
    return {
        name.replace("_fsdp_wrapped_module.", "").replace("_orig_mod.", "").removeprefix("module."): value
        for name, value in tensors
    }


def _is_finite(value: Any) -> bool:
    return not isinstance(value, torch.Tensor) or not value.is_floating_point() or bool(value.isfinite().all())


def _diverged(runner: Runner, what: str, iteration: int) -> UserError:
    good = last_checkpoint(*run_folders(runner.cfg))
    return UserError(
        f"the training has diverged: {what} at iteration {iteration} (epoch {runner.epoch + 1}); "
        f"the last good checkpoint is {good or 'none, as none was written'}; a lower learning rate, or "
        "optim_wrapper.clip_grad, may help"
    )


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
            for name, parameter in _plain_names(runner.model.named_parameters()).items():
                value = gradients.get(name)
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    parameter.grad = value.to(parameter)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save what one process has accumulated; of several, each has its own."""
        if _is_accumulating(runner) and get_world_size() == 1:
            parameters = _plain_names(runner.model.named_parameters())
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
        raise _diverged(runner, f"{bad} is {_current(bad, values, scalars)}", runner.iter + 1)


def _current(name: str, values: dict[str, Any], scalars: Any) -> float:
    """The value of a term in this iteration, as it was read for the log where it was."""
    if f"train/{name}" in scalars and len(scalars[f"train/{name}"].data[0]):
        return float(scalars[f"train/{name}"].current())
    value = values.get(name, 0.0)
    return float(value) if isinstance(value, int | float) or getattr(value, "numel", lambda: 0)() == 1 else 0.0


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
