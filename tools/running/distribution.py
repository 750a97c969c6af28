"""Runs in several processes: their start and end, and models in shards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from mmengine._strategy import FSDPStrategy
from mmengine.dist import is_main_process
from mmengine.hooks import EMAHook
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, STRATEGIES
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import lambda_auto_wrap_policy

from ..common.errors import UserError
from ..common.files import atomic_path
from ..config.classes import class_of
from .logs import quiet


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
        return quiet(super().build_logger(*args, **kwargs))

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
