"""Checks of a config's data before anything is built or written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    """Check that the local files named by the data sets of a config are there.

    Args:
        cfg: The config.
        modes: Whose loaders to check, of `train`, `val` and `test`.

    Raises:
        UserError: naming the field and the file, if an annotation file or a folder is missing, a COCO file is not
            JSON, or images that it lists are missing.
    """
    for mode in modes:
        loader = cfg.get(f"{mode}_dataloader")
        if loader is None:
            continue
        for field, dataset in _datasets(loader["dataset"], f"{mode}_dataloader.dataset"):
            if dataset.get("backend_args") is None:
                _check_dataset(field, dataset)


def _check_dataset(field: str, dataset: Any) -> None:
    root = dataset.get("data_root")
    prefixes = {key: _join(root, folder) for key, folder in (dataset.get("data_prefix") or {}).items() if folder}
    for key, folder in prefixes.items():
        if key in ("img", "img_path", "seg_map_path") and not folder.is_dir():
            raise UserError(f"{field}.data_prefix.{key}: no folder {str(folder)!r}")
    if not dataset.get("ann_file"):
        return
    ann_file = _join(root, dataset["ann_file"])
    if not ann_file.is_file():
        raise UserError(f"{field}.ann_file: no file {str(ann_file)!r}")
    if ann_file.suffix == ".json":
        _check_coco(f"{field}.ann_file", ann_file, prefixes.get("img", Path(root or "")))


def _check_coco(field: str, ann_file: Path, folder: Path) -> None:
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
