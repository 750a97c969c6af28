"""What the commands add to mmengine's Runner: checkpoints that survive a kill, exact resume, progress bars."""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import MMLogger
from mmengine.registry import HOOKS, MODELS, OPTIMIZERS, init_default_scope
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

from .checkpoint import load_checkpoint
from .config import nearest, one_line
from .errors import UserError
from .files import atomic_path
from .progress import bar, shown


@register_backend("attnzoo", force=True)
class AtomicBackend(LocalBackend):
    """Local files that are written under a temporary name and moved into place."""

    def __init__(self) -> None:
        self._doomed: list[str] | None = None

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write `obj` to `filepath`."""
        with atomic_path(filepath) as temporary:
            temporary.write_bytes(obj)

    def remove(self, filepath: str | Path) -> None:
        """Remove the file, or note it inside `removing_last`."""
        if self._doomed is None:
            super().remove(filepath)
        else:
            self._doomed.append(str(filepath))

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
    old one goes after the new one and `last_checkpoint` stand.
    """

    def __init__(self, **kwargs: Any) -> None:
        kwargs["backend_args"] = kwargs.get("backend_args") or {"backend": "attnzoo"}
        super().__init__(**kwargs)

    def _removing_last(self) -> AbstractContextManager[None]:
        # A remote backend of the user's own has no such block.
        return self.file_backend.removing_last() if isinstance(self.file_backend, AtomicBackend) else nullcontext()

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        with self._removing_last():
            super()._save_checkpoint_with_step(runner, step, meta)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        with self._removing_last():
            super()._save_best_checkpoint(runner, metrics)


@HOOKS.register_module(force=True)
class ReseedHook(Hook):
    """Seed every generator anew from the seed of the run and the iteration.

    mmengine saves no generator states; with this hook a resumed run draws what the undisturbed one draws.
    """

    priority = "VERY_HIGH"

    @staticmethod
    def _reseed(runner: Runner) -> None:
        seed = (runner.seed * 1_000_003 + runner.iter) % 2**32
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def before_train_epoch(self, runner: Runner) -> None:
        """Cover what is drawn before the first iteration: the order of the data and the seeds of the workers."""
        self._reseed(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Cover what the model and the next batch draw."""
        self._reseed(runner)


class ProgressHook(Hook):
    """A bar over all training iterations with the loss, and one over each validation or test."""

    priority = "LOWEST"

    def __init__(self) -> None:
        self._bars: dict[str, Any] = {}
        self.started = False

    def before_train(self, runner: Runner) -> None:
        """Open the bar where a resumed run stands."""
        self.started = True
        self._bars["train"] = bar(total=runner.max_iters, initial=runner.iter, title="train")

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Advance, and show the loss."""
        if outputs and "loss" in outputs:
            self._bars["train"].set_postfix(loss=f"{float(outputs['loss'].detach()):.3f}", refresh=False)
        self._bars["train"].update()

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


def _load_from_local(filename: str, map_location: Any) -> dict[str, Any]:
    return load_checkpoint(Path(filename).expanduser(), map_location or "cpu")


# mmengine falls back to `weights_only=False`, which runs what a hostile pickle asks for.
CheckpointLoader.register_scheme(prefixes="", loader=_load_from_local, force=True)


def build_model(cfg: Any) -> nn.Module:
    """Build `cfg.model` in the scope of the config.

    Raises:
        UserError: if it cannot be built.
    """
    init_default_scope(cfg.get("default_scope") or "mmengine")
    model = dict(cfg.model)
    if "data_preprocessor" in cfg:
        model.setdefault("data_preprocessor", cfg.data_preprocessor)
    try:
        return MODELS.build(model)
    except UserError:
        raise
    except Exception as error:  # constructors of any library
        raise UserError(f"{cfg.filename}: the model cannot be built: {one_line(error)}") from error


def check_optimizer(cfg: Any) -> None:
    """Check that the optimizer is known, as mmengine's own message does not name it.

    Raises:
        UserError: naming the nearest.
    """
    name = cfg.optim_wrapper.get("optimizer", {}).get("type")
    if isinstance(name, str) and OPTIMIZERS.get(name) is None:
        close = nearest(name, OPTIMIZERS.module_dict)
        raise UserError(f"{cfg.filename}: optim_wrapper.optimizer.type: no optimizer {name!r}{close}")


def start_distributed(cfg: Any, launcher: str) -> None:
    """Prepare `cfg` and the process group for a launcher, also without a GPU.

    Args:
        cfg: The config; `launcher` and, on the CPU, `model_wrapper_cfg` are set.
        launcher: `none` or `pytorch`.
    """
    cfg.launcher = launcher
    if launcher == "none" or torch.cuda.is_available():
        return
    # mmengine's own start selects a CUDA device, and its own wrapper names one.
    torch.distributed.init_process_group("gloo")
    if cfg.get("model_wrapper_cfg") is None:
        cfg.model_wrapper_cfg = dict(
            type="MMDistributedDataParallel",
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get("find_unused_parameters", False),
        )


@contextmanager
def starting(cfg: Any, progress: ProgressHook | None = None) -> Iterator[None]:
    """Turn what is raised in building the parts of a run into a UserError, and leave no work directory then.

    Args:
        cfg: The config.
        progress: Its hook tells when the run has started: what is raised later is left as it is.
    """
    work_dir = Path(cfg.work_dir)
    absent = [path for path in (work_dir, *work_dir.parents) if not path.exists()]
    try:
        yield
    except Exception as error:  # constructors of any library
        if progress is not None and progress.started:
            raise
        if absent:
            shutil.rmtree(work_dir, ignore_errors=True)
            with suppress(OSError):  # another run may have come to share the folder above
                for path in absent[1:]:
                    path.rmdir()
        if isinstance(error, UserError):
            raise
        raise UserError(f"{cfg.filename}: the run cannot be built: {one_line(error)}") from error


class TerminalRunner(Runner):
    """mmengine's Runner, whose log lines go to the file alone where a bar is shown."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build the logger as mmengine does; warnings and errors still reach the terminal."""
        logger = super().build_logger(*args, **kwargs)
        if shown():
            for handler in logger.handlers:
                if type(handler) is logging.StreamHandler:
                    handler.setLevel(logging.WARNING)
        return logger


def build_runner(cfg: Any, progress: ProgressHook) -> Runner:
    """Build the Runner of a config with a progress bar."""
    runner = TerminalRunner.from_cfg(cfg)
    runner.register_hook(progress)
    return runner
