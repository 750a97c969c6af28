"""Trainings by mmengine's Runner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..common.errors import UserError
from ..common.files import is_disk_error
from ..config.classes import is_checkpoint_hook
from ..data.checks import check_data, check_scale
from .batches import end_workers
from .class_counts import check_class_counts
from .engine import ProgressHook, build_model, build_runner, check_optimizer, starting
from .metrics import check_evaluator
from .resumption import set_start
from .work_dir import check, last_checkpoint, opened, run_folders

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.runner import Runner


def train(cfg: Config, overwrite: bool = False) -> Runner:
    """Train as the config says, after checking that its model builds and its data are there.

    Args:
        cfg: A config with `work_dir`. `resume=True` goes on from `load_from`, or else from the last checkpoint of
            the run in `work_dir`. It is changed: the checkpoint hook becomes the one that survives a kill.
        overwrite: Remove an older training in `work_dir` after the first iteration, of which nothing but its
            checkpoints, logs and kept configs.

    Returns:
        The Runner, with the trained model.

    Raises:
        UserError: if a check fails, an older or a running training in `work_dir` among them; nothing has been written
            then. Later if the training diverges, or the disk is full.
    """
    for field in ("work_dir", "train_dataloader", "train_cfg", "optim_wrapper"):
        if cfg.get(field) is None:
            raise UserError(f"{cfg.filename}: {field} is missing, nothing can be trained")
    check(cfg, overwrite)
    check_data(cfg, ("train", "val"))
    check_evaluator(cfg, "val", overwrite)
    model = build_model(cfg)
    check_scale(cfg, model, ("train", "val"))
    check_class_counts(cfg, model, ("train", "val"))
    check_optimizer(cfg)
    _add_hooks(cfg)
    # So that the config that is kept in the work directory names what it uses.
    if cfg.get("custom_imports") is None:
        cfg.custom_imports = dict(imports=[], allow_failed_imports=False)
    imports = cfg.custom_imports.imports
    imports.extend(name for name in ("attnzoo.heads", "attnzoo.tools.running.engine") if name not in imports)

    with opened(cfg, overwrite) as begin:
        progress = ProgressHook(begin)
        set_start(cfg, model)
        try:
            with starting(cfg, progress):
                runner = build_runner(cfg, progress)
                try:
                    runner.train()
                finally:
                    end_workers(runner)
        except OSError as error:
            if not is_disk_error(error):
                raise
            raise UserError(
                f"{error.filename or cfg.work_dir}: {error.strerror}: the training has stopped; the last complete "
                f"checkpoint is {last_checkpoint(*run_folders(cfg)) or 'none'}, from which --resume goes on"
            ) from error
    return runner


def _add_hooks(cfg: Config) -> None:
    # By assignment to the config, which makes dicts of its own kind of them.
    cfg.default_hooks = {"checkpoint": dict(type="CheckpointHook"), **(cfg.get("default_hooks") or {})}
    checkpoint = cfg.default_hooks.checkpoint
    if checkpoint is not None and is_checkpoint_hook(checkpoint.get("type")):
        checkpoint.type = "AtomicCheckpointHook"
    own = ("ReseedHook", "FiniteHook")
    others = [hook for hook in cfg.get("custom_hooks") or () if hook.get("type") not in own]
    cfg.custom_hooks = [*others, *(dict(type=name) for name in own)]
