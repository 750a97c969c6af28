"""Runs as mmengine's Runner makes them: models and runs built with one clear error, hooks and strategies registered.

Configs that trainings keep name this module among their `custom_imports`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.logging import MMLogger
from mmengine.registry import MODELS, OPTIMIZERS, init_default_scope
from mmengine.runner import FlexibleRunner, Runner
from torch import nn

from ...heads.mm import checkpoints
from ..common.errors import UserError
from ..common.files import new_folders, remove_files
from ..common.messages import nearest, one_line
from ..config.building import building, place_of
from ..config.plain_files import plain_files
from ..data.datasets import ignored_labels
from ..data.reading import name_files
from . import distribution  # noqa: F401  registers its strategy
from .channels import check_channels
from .checkpoint import load_checkpoint
from .hooks.exactness import DueValidationHook
from .hooks.progress import ProgressHook
from .logs import quiet
from .optimizer_state import checked_state
from .work_dir import is_first_process, run_files

# As importing heads does, with the errors of the commands.
checkpoints.register(load_checkpoint)


def build_model(cfg: Any) -> nn.Module:
    """Build `cfg.model` in the scope of the config.

    Raises:
        UserError: if it cannot be built, or if necks and heads do not fit its backbone.
    """
    if cfg.get("model") is None:
        raise UserError(f"{cfg.filename}: model is missing, nothing can be built")
    init_default_scope(cfg.get("default_scope") or "mmengine")
    check_channels(cfg)
    model = dict(cfg.model)
    if "data_preprocessor" in cfg:
        model.setdefault("data_preprocessor", cfg.data_preprocessor)
    with building(f"{cfg.filename}: the model cannot be built"):
        return MODELS.build(model)


def check_optimizer(cfg: Any) -> None:
    """Check that the optimizer is known, as mmengine's own message does not name it.

    Raises:
        UserError: naming the nearest.
    """
    name = (cfg.optim_wrapper.get("optimizer") or {}).get("type")
    if isinstance(name, str) and OPTIMIZERS.get(name) is None:
        close = nearest(name, OPTIMIZERS.module_dict)
        raise UserError(f"{cfg.filename}: optim_wrapper.optimizer.type: no optimizer {name!r}{close}")


@contextmanager
def starting(cfg: Any, progress: ProgressHook | None = None) -> Iterator[None]:
    """Turn what is raised in building the parts of a run into a UserError, and leave no new work directory then.

    Args:
        cfg: The config.
        progress: Its hook tells when the run has started: what is raised later is left as it is.

    Raises:
        UserError: for what libraries raise, and code of the user's own.
    """
    work_dir = Path(cfg.work_dir)
    with new_folders(work_dir), plain_files():
        before = set(run_files(work_dir))
        try:
            yield
        except Exception as error:  # constructors of any library
            if progress is not None and progress.started:
                raise
            if is_first_process(cfg):
                remove_files(work_dir, set(run_files(work_dir)) - before)
            if isinstance(error, UserError):
                raise
            raise UserError(f"{cfg.filename}: the run cannot be built: {one_line(error)}{place_of(error)}") from error


class _NamingRunner:
    """Of a Runner: data loaders whose files are named where they cannot be read."""

    cfg: Any

    def build_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Build a data loader as mmengine does."""
        loader = Runner.build_dataloader(*args, **kwargs)
        name_files(loader.dataset, ignored_labels(self.cfg))
        return loader


class TerminalRunner(_NamingRunner, Runner):
    """mmengine's Runner, whose log lines go to the file alone where a bar is shown, and which replaces no config."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build the logger as mmengine does."""
        return quiet(super().build_logger(*args, **kwargs))

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Resume as mmengine does, and check the state of the optimizer."""
        with checked_state(self, filename):
            super().resume(filename, *args, **kwargs)

    def dump_config(self) -> None:
        """Write none: a training keeps its config when it begins, and the log folder has it."""


class StrategyRunner(_NamingRunner, FlexibleRunner):
    """mmengine's FlexibleRunner, which replaces no config."""

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Resume as mmengine does, and check the state of the optimizer."""
        with checked_state(self, filename):
            super().resume(filename, *args, **kwargs)

    def dump_config(self) -> None:
        """Write none, see `TerminalRunner`."""


_begun: set[str] = set()


def _await_free_second(work_dir: str) -> None:
    """Wait until no other run has begun in the same second.

    mmengine names runs by it: two in one process would share the message hub and the log of the first, two in one work
    directory the log folder.
    """
    while (second := time.strftime("%Y%m%d_%H%M%S")) in _begun or Path(work_dir, second).exists():
        time.sleep(0.05)
    _begun.add(second)


def build_runner(cfg: Any, progress: ProgressHook) -> Runner:
    """Build the Runner of a config with a progress bar; one with a strategy, if the config has it."""
    _await_free_second(cfg.work_dir)
    if cfg.get("strategy"):
        cfg.env_cfg = cfg.get("env_cfg") or {}
        runner: Any = StrategyRunner.from_cfg(cfg)
    else:
        runner = TerminalRunner.from_cfg(cfg)
    # It may have come into the next second.
    _begun.add(runner.timestamp)
    runner.register_hook(progress)
    runner.register_hook(DueValidationHook())
    return runner
