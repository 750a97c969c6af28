"""Checks of a config's data before anything is built or written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..config.building import building
from ..config.classes import class_names, class_of, is_own, nested
from ..config.plain_files import plain_files
from .coco import CocoNeeds
from .coco_files import Folders, check_coco_file, coco_kind, evaluated_files, needs_of
from .datasets import classes_of, dataset_class, datasets_of, ignored_labels, is_local, loader_step
from .maps import LabelMaps, check_label_maps


def _join(root: str | None, path: str) -> Path:
    return Path(root or "", path)


def check_data(cfg: Any, modes: tuple[str, ...]) -> None:
    """Check that the local files named by the data sets of a config are there, and that annotations can be used.

    Args:
        cfg: The config.
        modes: Whose loaders to check, of `train`, `val` and `test`.

    One line a file warns of annotations that are left out.

    Raises:
        UserError: naming the field and the file, if an annotation file or a folder is missing, a COCO file is not
            JSON, or images that it lists are missing; the file and the entry that is wrong in a COCO file or in label
            maps; or what a data set of attnzoo finds wrong with itself.
    """
    from mmengine.registry import init_default_scope

    init_default_scope(cfg.get("default_scope") or "mmengine")
    coco: dict[Path, dict[tuple[CocoNeeds, Folders], str]] = {}
    ignored = ignored_labels(cfg)
    for mode in modes:
        loader = cfg.get(f"{mode}_dataloader")
        if loader is None:
            continue
        if not isinstance(loader, Mapping) or "dataset" not in loader:
            raise UserError(f"{cfg.filename}: {mode}_dataloader: a dict with a dataset is needed, got {loader!r:.80}")
        if "batch_size" in loader and loader["batch_size"] is None and loader.get("batch_sampler") is None:
            raise UserError(f"{cfg.filename}: {mode}_dataloader.batch_size: a number is needed, got None")
        classes: tuple[str, ...] = ()
        for field, dataset in datasets_of(loader["dataset"], f"{mode}_dataloader.dataset"):
            classes = classes_of(dataset)
            if is_local(dataset):
                for path, needs, folders in _check_dataset(field, dataset, mode, ignored):
                    coco.setdefault(path, {}).setdefault((needs, folders), f"{field}.ann_file")
        for field, path, needs, folders in evaluated_files(cfg, mode, classes) if mode != "train" else ():
            coco.setdefault(path, {}).setdefault((needs, folders), field)
    for path, uses in coco.items():
        check_coco_file(path, uses)


def check_scale(cfg: Any, model: Any, modes: tuple[str, ...]) -> None:
    """Check that a model that enlarges images does so by the scale of its data sets; of others nothing is checked.

    Raises:
        UserError: naming the field and both values.
    """
    scale = getattr(model, "scale", None)
    for mode in modes if isinstance(scale, int) else ():
        loader = cfg.get(f"{mode}_dataloader")
        for field, dataset in datasets_of(loader["dataset"], f"{mode}_dataloader.dataset") if loader else ():
            if dataset.get("scale", scale) != scale:
                raise UserError(f"{field}.scale: {dataset['scale']}, but the model enlarges {scale} times")


def _check_dataset(
    field: str, dataset: Any, mode: str, ignored: frozenset[int]
) -> Iterator[tuple[Path, CocoNeeds, Folders]]:
    """Check folders and label maps; yield the COCO file, if there is one, with its use and the folders."""
    root = dataset.get("data_root")
    prefixes = {key: _join(root, folder) for key, folder in (dataset.get("data_prefix") or {}).items() if folder}
    for key, folder in prefixes.items():
        if key in ("gt", "img", "img_path", "seg_map_path") and not os.path.isdir(folder):
            raise UserError(f"{field}.data_prefix.{key}: no folder {str(folder)!r}")
    if str(dataset.get("type")).startswith("attnzoo."):
        _check_itself(field, dataset)
    elif "seg_map_path" in prefixes and "mmseg.BaseSegDataset" in class_names(dataset_class(dataset)):
        check_label_maps(field, _built(field, dataset), _label_maps(dataset, ignored))
    if not dataset.get("ann_file"):
        return
    ann_file = _join(root, dataset["ann_file"])
    if not os.path.isfile(ann_file):
        raise UserError(f"{field}.ann_file: no file {str(ann_file)!r}")
    kind = coco_kind(dataset_class(dataset))
    if kind:
        segments = prefixes.get("seg") if kind == "panoptic" else None
        measured = loader_step(dataset, "mmcv.LoadImageFromFile") is not None
        folders = Folders(prefixes.get("img", Path(root or "")), segments, measured)
        yield ann_file, needs_of(dataset, kind, mode), folders


def _check_itself(field: str, dataset: Any) -> None:
    try:
        _built(field, dataset).check()
    except (ValueError, OSError) as error:
        raise UserError(f"{field}: {error}") from error


def _built(field: str, dataset: Any) -> Any:
    from mmengine.registry import DATASETS

    with plain_files(), building(f"{field}: the data set cannot be built"):
        return DATASETS.build(dataset)


def _label_maps(dataset: Any, ignored: frozenset[int]) -> LabelMaps:
    from mmengine.registry import TRANSFORMS

    images, maps = loader_step(dataset, "mmcv.LoadImageFromFile"), loader_step(dataset, "mmseg.LoadAnnotations")
    return LabelMaps(
        images=images is not None,
        upright=images is not None and images.get("color_type", "color") in ("color", "grayscale"),
        maps=maps is not None and maps.get("imdecode_backend", "pillow") in ("pillow", "cv2", None),
        labels=not any(is_own(class_of(step, TRANSFORMS)) for step in nested(dataset.get("pipeline"))),
        ignored=ignored,
    )
