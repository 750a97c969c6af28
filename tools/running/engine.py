"""What the commands add to mmengine's Runner: models and runs built with one clear error, distributed runs."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine._strategy import FSDPStrategy
from mmengine.dist import is_main_process
from mmengine.hooks import EMAHook
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, MODELS, OPTIMIZERS, STRATEGIES, init_default_scope
from mmengine.runner import FlexibleRunner, Runner
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import lambda_auto_wrap_policy

from ...heads.mm import checkpoints
from ..common.errors import UserError
from ..common.files import atomic_path, is_disk_error, remove_files
from ..common.progress import shown
from ..config.classes import class_of
from ..config.loading import building, nearest, one_line, place_of, plain_files
from ..data.checks import ignored_labels
from ..data.reading import name_files
from .channels import check_channels
from .checkpoint import load_checkpoint
from .hooks import DueValidationHook, ProgressHook
from .work_dir import is_first_process, new_folders, run_files

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
    if issubclass(class_of(strategy, STRATEGIES) or object, FSDPStrategy):
        if strategy.get("state_dict_cfg", "full") != "full":
            raise UserError(f"{cfg.filename}: strategy.state_dict_cfg must be 'full', got {strategy.state_dict_cfg!r}")
        if any(issubclass(class_of(hook, HOOKS) or object, EMAHook) for hook in cfg.get("custom_hooks") or ()):
            raise UserError(f"{cfg.filename}: EMAHook averages whole parameters, which FSDPStrategy does not keep")
        strategy.type = "WholeFSDPStrategy"
    if strategy and cfg.launcher == "none":
        raise UserError(f"{cfg.filename}: strategy is for several processes: torchrun … --launcher pytorch")


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


def _quiet(logger: MMLogger) -> MMLogger:
    """Leave the terminal to the bar where one is shown; warnings and errors still reach it."""
    if shown():
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler:
                handler.setLevel(logging.WARNING)
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handleError = partial(_log_error, handler)  # type: ignore[method-assign]
    return logger


def _log_error(handler: logging.Handler, record: logging.LogRecord) -> None:
    """Leave it to the next checkpoint to say once that the disk is full, where each line of the log would."""
    if not is_disk_error(sys.exc_info()[1] or Exception()):
        logging.Handler.handleError(handler, record)


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


class _NamingRunner:
    """Of a Runner: data loaders whose files are named where they cannot be read."""

    cfg: Any

    def build_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Build a data loader as mmengine does."""
        loader = Runner.build_dataloader(*args, **kwargs)
        name_files(loader.dataset, ignored_labels(self.cfg))
        return loader


@contextmanager
def _checked_state(runner: Any, filename: str) -> Iterator[None]:
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


class TerminalRunner(_NamingRunner, Runner):
    """mmengine's Runner, whose log lines go to the file alone where a bar is shown, and which replaces no config."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build the logger as mmengine does."""
        return _quiet(super().build_logger(*args, **kwargs))

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Resume as mmengine does, and check the state of the optimizer."""
        with _checked_state(self, filename):
            super().resume(filename, *args, **kwargs)

    def dump_config(self) -> None:
        """Write none: a training keeps its config when it begins, and the log folder has it."""


class StrategyRunner(_NamingRunner, FlexibleRunner):
    """mmengine's FlexibleRunner, which replaces no config."""

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Resume as mmengine does, and check the state of the optimizer."""
        with _checked_state(self, filename):
            super().resume(filename, *args, **kwargs)

    def dump_config(self) -> None:
        """Write none, see `TerminalRunner`."""


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
        if not is_main_process():
            super().save_checkpoint(filename, **kwargs)
            return
        with atomic_path(filename) as temporary:
            super().save_checkpoint(str(temporary), **kwargs)


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
