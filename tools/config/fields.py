"""Types of what commands read from a config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.messages import shown

_DICT = (Mapping, "a dict")
_DICTS = ((Mapping, list, tuple), "a dict or a list of them")
_LIST = ((list, tuple), "a list")
_TEXT = (str, "a text")
_TRUTH = (bool, "True or False")
_NUMBER = ((int, float), "a number")
# What commands and the Runner read from a config. None stands for what is not there.
_TYPES: dict[str, tuple[Any, str]] = {
    "model": _DICT,
    "model.type": ((str, type), "the name of a class"),
    "model.backbone": _DICT,
    "model.neck": _DICTS,
    "model.data_preprocessor": _DICT,
    **{f"model.{head}_head": _DICTS for head in ("decode", "auxiliary", "panoptic", "rpn", "bbox", "mask", "roi")},
    **{f"{mode}_dataloader": _DICT for mode in ("train", "val", "test")},
    **{f"{mode}_dataloader.{part}": _DICT for mode in ("train", "val", "test") for part in ("dataset", "sampler")},
    **{f"{mode}_cfg": _DICT for mode in ("train", "val", "test")},
    **{f"{mode}_evaluator": _DICTS for mode in ("val", "test")},
    "train_cfg.val_interval": _NUMBER,
    "train_cfg.val_begin": _NUMBER,
    "optim_wrapper": _DICT,
    "optim_wrapper.optimizer": _DICT,
    "optim_wrapper.paramwise_cfg": _DICT,
    "optim_wrapper.clip_grad": _DICT,
    "optim_wrapper.clip_grad.max_norm": _NUMBER,
    "param_scheduler": _DICTS,
    "default_hooks": _DICT,
    **{f"default_hooks.{name}": _DICT for name in ("checkpoint", "logger", "timer", "param_scheduler")},
    "default_hooks.checkpoint.interval": _NUMBER,
    "custom_hooks": _LIST,
    "custom_imports": _DICT,
    "data_preprocessor": _DICT,
    "visualizer": _DICT,
    "log_processor": _DICT,
    "env_cfg": _DICT,
    "randomness": _DICT,
    "strategy": _DICT,
    "model_wrapper_cfg": _DICT,
    "auto_scale_lr": _DICT,
    "default_scope": _TEXT,
    "work_dir": ((str, Path), "a path"),
    "load_from": ((str, Path), "a path"),
    "resume": _TRUTH,
    "find_unused_parameters": _TRUTH,
}


def check_types(cfg: Any) -> None:
    """Check the types of the fields that commands read; drop those that are None where mmengine wants them absent.

    Args:
        cfg: The config.

    Raises:
        UserError: naming file, field, what is allowed and what came.
    """
    for name in ("default_hooks", "custom_hooks", "custom_imports", "randomness", "env_cfg", "find_unused_parameters"):
        if name in cfg and cfg[name] is None:
            cfg.pop(name)
    for field, (types, allowed) in _TYPES.items():
        value = value_at(cfg, field)
        if value is not None and not isinstance(value, types):
            raise UserError(f"{cfg.filename}: {field}: {allowed} is needed, got {shown(value)}")
        if isinstance(value, (list, tuple)):
            for index, part in enumerate(value):
                if not isinstance(part, Mapping):
                    raise UserError(f"{cfg.filename}: {field}[{index}]: a dict is needed, got {shown(part)}")
    if cfg.get("val_dataloader") is not None and value_at(cfg, "train_cfg.val_interval") == 0:
        raise UserError(f"{cfg.filename}: train_cfg.val_interval: a number other than 0 is needed, got int 0")
    scope = cfg.get("default_scope")
    if scope is not None and not scope.isidentifier():
        raise UserError(f"{cfg.filename}: default_scope: the name of a library is needed, got {shown(scope)}")
    _check_imports(cfg)


def pipeline_steps(cfg: Any, mode: str) -> list[Mapping[str, Any]] | None:
    """The steps of the pipeline of a mode's data set, or of the first below a wrapper; None where there are none.

    Raises:
        UserError: naming file and field, if it is no list of dicts.
    """
    dataset, field = value_at(cfg, f"{mode}_dataloader.dataset"), f"{mode}_dataloader.dataset.pipeline"
    while isinstance(dataset, Mapping) and "pipeline" not in dataset:
        parts = dataset.get("datasets")
        dataset = dataset.get("dataset") or (parts[0] if isinstance(parts, (list, tuple)) and parts else None)
    if not isinstance(dataset, Mapping) or dataset["pipeline"] is None:
        return None
    steps = dataset["pipeline"]
    if not isinstance(steps, (list, tuple)):
        raise UserError(f"{cfg.filename}: {field}: a list of steps is needed, got {shown(steps)}")
    for index, step in enumerate(steps):
        if not isinstance(step, Mapping):
            raise UserError(f"{cfg.filename}: {field}[{index}]: a dict with a type is needed, got {shown(step)}")
    return list(steps)


def _check_imports(cfg: Any) -> None:
    """Check `custom_imports`, and make a list of one name."""
    imports = value_at(cfg, "custom_imports.imports")
    if isinstance(imports, str):
        cfg.custom_imports.imports = [imports]
    elif "custom_imports" in cfg and (
        not isinstance(imports, list) or not all(isinstance(name, str) for name in imports)
    ):
        raise UserError(f"{cfg.filename}: custom_imports.imports: a list of modules is needed, got {shown(imports)}")


def value_at(cfg: Any, field: str) -> Any:
    """The value of a field by its dotted name, None where there is none."""
    for name in field.split("."):
        cfg = cfg.get(name) if isinstance(cfg, Mapping) or hasattr(cfg, "filename") else None
    return cfg
