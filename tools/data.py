"""Checks of a config's data before anything is built or written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .annotations import check_coco, check_label_maps
from .config import one_line
from .errors import UserError


def _datasets(cfg: Any, field: str) -> Iterator[tuple[str, Any]]:
    """The data sets below a wrapper (`RepeatDataset`, `ConcatDataset`, …) with the names of their fields."""
    if "dataset" in cfg:
        yield from _datasets(cfg["dataset"], f"{field}.dataset")
    elif "datasets" in cfg:
        for index, part in enumerate(cfg["datasets"]):
            yield from _datasets(part, f"{field}.datasets[{index}]")
    else:
        yield field, cfg


def _join(root: str | None, path: str) -> Path:
    return Path(root or "", path)


def check_data(cfg: Any, modes: tuple[str, ...]) -> None:
    """Check that the local files named by the data sets of a config are there, and that annotations can be used.

    Args:
        cfg: The config.
        modes: Whose loaders to check, of `train`, `val` and `test`.

    Raises:
        UserError: naming the field and the file, if an annotation file or a folder is missing, a COCO file is not
            JSON, or images that it lists are missing; the file and the entry that is wrong in a COCO file or in label
            maps; or what a data set of attnzoo finds wrong with itself.
    """
    from mmengine.registry import init_default_scope

    init_default_scope(cfg.get("default_scope") or "mmengine")
    for mode in modes:
        loader = cfg.get(f"{mode}_dataloader")
        if loader is None:
            continue
        for field, dataset in _datasets(loader["dataset"], f"{mode}_dataloader.dataset"):
            if dataset.get("backend_args") is None:
                _check_dataset(field, dataset)


def check_scale(cfg: Any, model: Any, modes: tuple[str, ...]) -> None:
    """Check that a model that enlarges images does so by the scale of its data sets; of others nothing is checked.

    Raises:
        UserError: naming the field and both values.
    """
    scale = getattr(model, "scale", None)
    for mode in modes if isinstance(scale, int) else ():
        loader = cfg.get(f"{mode}_dataloader")
        for field, dataset in _datasets(loader["dataset"], f"{mode}_dataloader.dataset") if loader else ():
            if dataset.get("scale", scale) != scale:
                raise UserError(f"{field}.scale: {dataset['scale']}, but the model enlarges {scale} times")


def _check_dataset(field: str, dataset: Any) -> None:
    root = dataset.get("data_root")
    prefixes = {key: _join(root, folder) for key, folder in (dataset.get("data_prefix") or {}).items() if folder}
    for key, folder in prefixes.items():
        if key in ("gt", "img", "img_path", "seg_map_path") and not folder.is_dir():
            raise UserError(f"{field}.data_prefix.{key}: no folder {str(folder)!r}")
    if str(dataset.get("type")).startswith("attnzoo."):
        _check_itself(field, dataset)
    elif "seg_map_path" in prefixes:
        check_label_maps(field, _built(field, dataset))
    if not dataset.get("ann_file"):
        return
    ann_file = _join(root, dataset["ann_file"])
    if not ann_file.is_file():
        raise UserError(f"{field}.ann_file: no file {str(ann_file)!r}")
    if ann_file.suffix == ".json":
        _check_coco(f"{field}.ann_file", ann_file, prefixes.get("img", Path(root or "")), dataset)


def _check_itself(field: str, dataset: Any) -> None:
    from mmengine.registry import DATASETS

    try:
        DATASETS.build(dataset).check()
    except (ValueError, OSError) as error:
        raise UserError(f"{field}: {error}") from error


def _built(field: str, dataset: Any) -> Any:
    from mmengine.registry import DATASETS

    try:
        return DATASETS.build(dataset)
    except Exception as error:  # constructors of any library
        raise UserError(f"{field}: the data set cannot be built: {one_line(error)}") from error


def _classes(dataset: Any) -> tuple[str, ...]:
    """The names that a data set takes, none if it does not say."""
    from mmengine.registry import DATASETS

    with DATASETS.switch_scope_and_registry(dataset.get("_scope_")) as registry:
        default = getattr(registry.get(dataset["type"]), "METAINFO", {})
    return tuple((dataset.get("metainfo") or default).get("classes") or ())


def _check_coco(field: str, ann_file: Path, folder: Path, dataset: Any) -> None:
    try:
        content = json.loads(ann_file.read_text(encoding="utf-8"))
        names = [image["file_name"] for image in content["images"]] if "images" in content else []
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{field}: {str(ann_file)!r} is not a COCO file: {one_line(error)}") from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        first = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise UserError(
            f"{field}: {len(missing)} of the {len(names)} images in {str(ann_file)!r} are missing "
            f"from {str(folder)!r}: {first}"
        )
    if "images" in content:
        masks = any(step.get("with_mask") for step in dataset.get("pipeline") or ())
        check_coco(field, ann_file, content, _classes(dataset), masks)
