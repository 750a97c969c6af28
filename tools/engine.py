"""What the commands add to mmengine's Runner: checkpoints that survive a kill, exact resume, progress bars."""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine._strategy import FSDPStrategy
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, MODELS, OPTIMIZERS, STRATEGIES, init_default_scope
from mmengine.runner import FlexibleRunner, Runner
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import lambda_auto_wrap_policy

from ..heads import checkpoints
from .channels import check_channels
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
    def _reseed(runner: Runner, iteration: int) -> None:
        seed = (runner.seed * 1_000_003 + iteration) % 2**32
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def before_train_epoch(self, runner: Runner) -> None:
        """Cover what is drawn before the first iteration: the order of the data and the seeds of the workers."""
        self._reseed(runner, runner.iter)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Cover what the model draws."""
        self._reseed(runner, runner.iter)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Cover what the next batch draws, as a resumed run draws it: without a past."""
        self._reseed(runner, runner.iter + 1)

    def after_val_epoch(self, runner: Runner, metrics: Any = None) -> None:
        """The same where a validation has come between, in which more may be drawn."""
        self._reseed(runner, runner.iter)


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


# As importing heads does, with the errors of the commands.
checkpoints.register(load_checkpoint)


def build_model(cfg: Any) -> nn.Module:
    """Build `cfg.model` in the scope of the config.

    Raises:
        UserError: if it cannot be built, or if necks and heads do not fit its backbone.
    """
    init_default_scope(cfg.get("default_scope") or "mmengine")
    check_channels(cfg)
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


@contextmanager
def distributed(cfg: Any, launcher: str) -> Iterator[None]:
    """Prepare `cfg` and the process group for a launcher, also without a GPU, and end the group with the block.

    Args:
        cfg: The config; `launcher` and, on the CPU, `model_wrapper_cfg` are set.
        launcher: `none` or `pytorch`.

    Raises:
        UserError: if the config asks for a strategy in a way that cannot work.
    """
    cfg.launcher = launcher
    _check_strategy(cfg)
    # mmengine's own start selects a CUDA device, and its own wrapper names one.
    if launcher != "none" and not torch.cuda.is_available():
        torch.distributed.init_process_group("gloo")
        if cfg.get("model_wrapper_cfg") is None and not cfg.get("strategy"):
            cfg.model_wrapper_cfg = dict(
                type="MMDistributedDataParallel",
                device_ids=None,
                broadcast_buffers=False,
                find_unused_parameters=cfg.get("find_unused_parameters", False),
            )
    yield
    # Not after an error: NCCL's end waits for what is under way, which another process may never answer.
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _check_strategy(cfg: Any) -> None:
    if "FullyShardedDataParallel" in str((cfg.get("model_wrapper_cfg") or {}).get("type")):
        raise UserError(
            f"{cfg.filename}: model_wrapper_cfg: mmengine's Runner cannot save a sharded model: write "
            "strategy=dict(type='FSDPStrategy', model_wrapper=dict(...))"
        )
    strategy: Any = cfg.get("strategy") or {}
    if strategy.get("type") == "FSDPStrategy":
        if strategy.get("state_dict_cfg", "full") != "full":
            raise UserError(f"{cfg.filename}: strategy.state_dict_cfg must be 'full', got {strategy.state_dict_cfg!r}")
        if any(hook.get("type") == "EMAHook" for hook in cfg.get("custom_hooks") or ()):
            raise UserError(f"{cfg.filename}: EMAHook averages whole parameters, which FSDPStrategy does not keep")
        strategy.type = "WholeFSDPStrategy"
    if strategy and cfg.launcher == "none":
        raise UserError(f"{cfg.filename}: strategy is for several processes: torchrun … --launcher pytorch")


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


def _quiet(logger: MMLogger) -> MMLogger:
    """Leave the terminal to the bar where one is shown; warnings and errors still reach it."""
    if shown():
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler:
                handler.setLevel(logging.WARNING)
    return logger


class TerminalRunner(Runner):
    """mmengine's Runner, whose log lines go to the file alone where a bar is shown."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build the logger as mmengine does."""
        return _quiet(super().build_logger(*args, **kwargs))


@STRATEGIES.register_module(force=True)
class WholeFSDPStrategy(FSDPStrategy):
    """mmengine's FSDPStrategy (fully sharded data parallel), whose checkpoints hold the whole model in one file.

    It runs on the CPU, too, and does right what mmengine's does wrong with sharded parameters or current PyTorch: the
    groups of the optimizer are made of whole parameters, as shards are flat and all look like biases; the norm of
    gradients to clip is that of all shards; the state of the optimizer can be resumed.

    Args:
        blocks: Gather and free each element of an `nn.Sequential`, such as the blocks of a stage, on its own. Without,
            the whole model is gathered at once. mm models call methods of their parts other than `forward`, so that
            torch's own policies by size, which pick any part, do not serve.
        model_wrapper: As of mmengine's.
        **kwargs: As of mmengine's.
    """

    def __init__(self, *, blocks: bool = False, model_wrapper: dict | None = None, **kwargs: Any) -> None:
        super().__init__(model_wrapper=model_wrapper or {}, **{"state_dict_cfg": "full", **kwargs})
        self.blocks = blocks
        if not torch.cuda.is_available():
            self.model_wrapper["device_id"] = "cpu"
            # Moved from the CPU to the CPU, all states of a parameter would share the memory of the last one.
            self.optim_state_dict_config.offload_to_cpu = False

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        if self.blocks:
            elements = {part for module in model.modules() if isinstance(module, nn.Sequential) for part in module}
            self.model_wrapper["auto_wrap_policy"] = partial(lambda_auto_wrap_policy, lambda_fn=elements.__contains__)
        return super()._wrap_model(model)

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build the logger as mmengine does."""
        return _quiet(super().build_logger(*args, **kwargs))

    def prepare(self, model: Any, *, optim_wrapper: Any = None, **kwargs: Any) -> Any:
        """Build and shard the model, and build the optimizer."""
        if isinstance(optim_wrapper, dict):
            model = self.build_model(model)
            if optim_wrapper.get("type") == "AmpOptimWrapper":
                optim_wrapper = {**optim_wrapper, "use_fsdp": True}
            optim_wrapper = build_optim_wrapper(model, optim_wrapper)
        return super().prepare(model, optim_wrapper=optim_wrapper, **kwargs)

    def build_optim_wrapper(self, optim_wrapper: Any, model: Any = None) -> Any:
        """Put shards into the place of the parameters that the optimizer was built with."""
        shards = {name.replace("_fsdp_wrapped_module.", ""): shard for name, shard in model.named_parameters()}
        for group in optim_wrapper.optimizer.param_groups:
            group["params"] = [shards[self.id_to_name[id(parameter)]] for parameter in group["params"]]
        if optim_wrapper.clip_grad_kwargs and optim_wrapper.clip_func is nn.utils.clip_grad_norm_:
            optim_wrapper.clip_func = lambda parameters, **options: model.clip_grad_norm_(**options)
        return optim_wrapper

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Shard and load the state of the optimizer."""
        optimizer = self.optim_wrapper.optimizer
        state = FullyShardedDataParallel.optim_state_dict_to_load(self.model, optimizer, state_dict)
        self.optim_wrapper.load_state_dict(state)

    def save_checkpoint(self, filename: str, **kwargs: Any) -> None:
        """Gather the shards and save them in the first process; the file appears complete or not at all."""
        path = Path(filename)
        temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
        super().save_checkpoint(str(temporary), **kwargs)
        if is_main_process():
            temporary.replace(path)


def build_runner(cfg: Any, progress: ProgressHook) -> Runner:
    """Build the Runner of a config with a progress bar; one with a strategy, if the config has it."""
    if cfg.get("strategy"):
        cfg.env_cfg = cfg.get("env_cfg") or {}
        runner: Any = FlexibleRunner.from_cfg(cfg)
    else:
        runner = TerminalRunner.from_cfg(cfg)
    runner.register_hook(progress)
    return runner
