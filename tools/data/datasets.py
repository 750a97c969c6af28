"""The data sets of a config: which, of which classes, with which steps."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.messages import shown
from ..config.classes import class_of, nested, root_of
from ..config.plain_files import PICKLES


def datasets_of(cfg: Any, field: str) -> Iterator[tuple[str, Any]]:
    """The data sets below a wrapper (`RepeatDataset`, `ConcatDataset`, …) with the names of their fields.

    Raises:
        UserError: for what is no data set.
    """
    if not isinstance(cfg, Mapping):
        raise UserError(f"{field}: a data set is a dict with a type, got {type(cfg).__name__}")
    if "dataset" in cfg:
        yield from datasets_of(cfg["dataset"], f"{field}.dataset")
    elif "datasets" in cfg:
        if not isinstance(cfg["datasets"], (list, tuple)):
            raise UserError(f"{field}.datasets: a list is needed, got {type(cfg['datasets']).__name__}")
        for index, part in enumerate(cfg["datasets"]):
            yield from datasets_of(part, f"{field}.datasets[{index}]")
    else:
        _check_fields(cfg, field)
        yield field, cfg


def _check_fields(dataset: Any, field: str) -> None:
    """Check the types of the fields that are read here."""
    if not isinstance(dataset.get("type"), (str, type)):
        raise UserError(f"{field}.type: the name of a data set is needed, got {dataset.get('type')!r:.80}")
    check_scope(dataset, field)
    allowed: dict[str, Any] = {
        "data_root": (str, Path),
        "ann_file": (str, Path),
        "data_prefix": Mapping,
        "metainfo": Mapping,
        "pipeline": (list, tuple),
    }
    for key, types in allowed.items():
        value = dataset.get(key)
        if value is not None and not isinstance(value, types):
            names = "a dict" if types is Mapping else "a list" if key == "pipeline" else "a path"
            raise UserError(f"{field}.{key}: {names} is needed, got {value!r:.80}")
    if "pipeline" in dataset and not dataset["pipeline"]:
        raise UserError(f"{field}.pipeline: a list of steps is needed, got {shown(dataset['pipeline'])}")
    names = (dataset.get("metainfo") or {}).get("classes", ())
    listed = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    if not listed and not (isinstance(names, str) and os.path.isfile(names)):
        raise UserError(f"{field}.metainfo.classes: a list of names, or a file of them, is needed, got {shown(names)}")
    for key, value in dataset.items():
        if isinstance(value, (str, Path)) and str(value).rpartition(".")[2] in PICKLES:
            raise UserError(f"{field}.{key}: {str(value)!r}: a pickle is refused, as code in it would run; write JSON")
    for key, folder in (dataset.get("data_prefix") or {}).items():
        if folder is not None and not isinstance(folder, (str, Path)):
            raise UserError(f"{field}.data_prefix.{key}: a path is needed, got {folder!r:.80}")


def check_scope(part: Any, field: str) -> None:
    """Check the type of `_scope_`, the library in which the names of a part are looked up."""
    if not isinstance(part.get("_scope_"), (str, type(None))):
        raise UserError(f"{field}._scope_: the name of a library is needed, got {shown(part['_scope_'])}")


def is_local(part: Any) -> bool:
    """Whether the files of a data set or a metric are those of this machine, as they are where nothing is said."""
    chosen = part.get("backend_args") or {}
    return isinstance(chosen, Mapping) and chosen.get("backend", "local") in ("local", "attnzoo")


def ignored_labels(cfg: Any) -> frozenset[int]:
    """The labels that the heads and metrics of a segmentor leave out, beside those of its data sets."""
    parts = nested([cfg.get("model"), cfg.get("val_evaluator"), cfg.get("test_evaluator")])
    return frozenset(label for part in parts if type(label := part.get("ignore_index")) is int)


def dataset_class(dataset: Any) -> type | None:
    """The class of a data set, None where it is not known."""
    from mmengine.registry import DATASETS

    return class_of(dataset, DATASETS)


def classes_of(dataset: Any) -> tuple[str, ...]:
    """The names that a data set takes, none if it does not say."""
    from mmengine.fileio import list_from_file

    # As mmengine has it: what is given replaces the names of the class entry by entry.
    names = {**getattr(dataset_class(dataset), "METAINFO", {}), **(dataset.get("metainfo") or {})}.get("classes") or ()
    if isinstance(names, str) and os.path.isfile(names):
        names = list_from_file(names)
    return tuple(names) if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names) else ()


def loader_step(dataset: Any, name: str) -> Any:
    """The step of a pipeline that has exactly this class, None where files are read by another."""
    from mmengine.registry import TRANSFORMS

    for step in nested(dataset.get("pipeline")):
        found = class_of(step, TRANSFORMS)
        if found is not None and f"{root_of(found)}.{found.__name__}" == name:
            return step
    return None
