"""Where a training goes on from: its checkpoint found, checked, and its seed taken over."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import UserError, warn
from .checkpoint import check_start, load_checkpoint, load_into
from .work_dir import check_note, resumable, run_folders

if TYPE_CHECKING:
    from mmengine.config import Config


def set_start(cfg: Config, model: Any) -> None:
    """Find the checkpoint to go on from, and check that it and other weights to start from can be used."""
    if cfg.get("resume") and cfg.get("load_from") is None:
        content = None
        if not (found := list(resumable(*run_folders(cfg)))):
            check_note(cfg.work_dir)
        for path in found:
            try:
                content = load_into(model, path)
            except UserError as error:
                if path == found[-1] or _can_be_read(path):
                    raise
                warn(f"{error}; going on from the checkpoint before it")
                continue
            cfg.load_from = str(path)
            break
        cfg.resume = content is not None
    elif cfg.get("load_from") is None or re.match(r"(?!https?:)\S+://", str(cfg.load_from)):
        # Names of models that mmengine's own lists know are looked up there, when the run begins.
        return
    elif not cfg.get("resume"):
        check_start(model, cfg.load_from)
        return
    else:
        content = load_into(model, cfg.load_from)
    if cfg.get("resume") and content is not None:
        _check_state(cfg, content)
        _set_seed(cfg, content["meta"].get("seed"))


def _check_state(cfg: Config, content: dict[Any, Any]) -> None:
    """Check that a checkpoint holds the state of a training, at a place that this one has."""
    if not {"optimizer", "message_hub"} <= content.keys():
        raise UserError(f"{cfg.load_from}: holds weights but no state of a training run, nothing to resume")
    hub = content["message_hub"]
    parts = [hub.get(key) for key in ("log_scalars", "runtime_info", "resumed_keys")] if isinstance(hub, dict) else []
    if not parts or not all(isinstance(part, dict) for part in parts):
        raise UserError(f"{cfg.load_from}: message_hub is not as mmengine writes it: damaged")
    for key, name in (("epoch", "max_epochs"), ("iter", "max_iters")):
        value, most = content["meta"].get(key), cfg.train_cfg.get(name)
        # A loop by epochs knows its iterations only when the data are there.
        if type(value) is not int or not 0 <= value <= (2**31 if most is None else most):
            end = 2**31 if most is None else f"train_cfg.{name} ({most})"
            raise UserError(f"{cfg.load_from}: meta.{key} is {value!r:.60}, and must be a whole number from 0 to {end}")


def _set_seed(cfg: Config, seed: Any) -> None:
    """Give a resumed run the seed of its checkpoint from the first: mmengine's loaders would have another one."""
    if seed is None:
        return
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise UserError(f"{cfg.load_from}: meta.seed is {seed!r:.60}, and must be a whole number from 0 to {2**32 - 1}")
    randomness = cfg.get("randomness") or {}
    if randomness.get("seed") is None:
        cfg.randomness = {**randomness, "seed": seed}
    elif randomness["seed"] != seed:
        warn(
            f"{cfg.load_from}: was drawn with the seed {seed}, not {randomness['seed']}: the resumed run is not what "
            "the undisturbed one would have been"
        )


def _can_be_read(path: Path) -> bool:
    try:
        load_checkpoint(path)
    except UserError:
        return False
    return True
