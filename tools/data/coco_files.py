"""The COCO files of a config: what they are used for, each read once and checked for all uses."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import UserError, warn
from ..common.messages import one_line, some
from ..config.classes import class_names, class_of, nested
from .coco import CocoNeeds, check_coco
from .datasets import check_scope, classes_of, dataset_class, is_local
from .maps import check_segment_maps
from .sizes import check_sizes


@dataclass(frozen=True)
class Folders:
    """Where the images of a COCO file are, and the maps of its segments, as far as they are read.

    Attributes:
        images: Their folder.
        segments: That of the maps.
        measured: Whether images are read as they are, so that their size can be compared.
    """

    images: Path | None = None
    segments: Path | None = None
    measured: bool = False


# Where a data set of mmdet takes the files' names from.
_NAMINGS = {
    "mmdet.LVISV1Dataset": "coco_url",
    "mmdet.LVISV05Dataset": "short",
    "mmdet.Objects365V2Dataset": "last_folder",
}


def coco_kind(found: type | None) -> str | None:
    """Which kind of COCO file a data set or a metric reads, None for none."""
    names = class_names(found)
    if names & {"mmdet.CocoPanopticDataset", "mmdet.CocoPanopticMetric"}:
        return "panoptic"
    return "instances" if names & {"mmdet.CocoDataset", "mmdet.CocoMetric"} else None


def needs_of(dataset: Any, kind: str, mode: str) -> CocoNeeds:
    """What a data set uses its COCO file for.

    Args:
        dataset: Its config.
        kind: As of `coco_kind`.
        mode: In which it is used, `train`, `val` or `test`.
    """
    from mmdet.datasets import CocoDataset
    from mmdet.datasets.objects365 import objv2_ignore_list

    found: Any = dataset_class(dataset)
    readers = [getattr(found, name) for name in ("load_data_list", "parse_data_info")]
    known = all(reader.__module__.startswith("mmdet.") for reader in readers)
    naming = next((naming for base, naming in _NAMINGS.items() if base in class_names(found)), "file_name")
    return CocoNeeds(
        kind=kind,
        reader="data set" if known else "other",
        annotated=mode == "train",
        classes=classes_of(dataset),
        ordered=kind == "instances" and readers[0] is CocoDataset.load_data_list,
        masks=any(step.get("with_mask") for step in nested(dataset.get("pipeline"))),
        naming=naming,
        unread=frozenset(objv2_ignore_list if naming == "last_folder" else ()),
    )


def evaluated_files(cfg: Any, mode: str, classes: tuple[str, ...]) -> Iterator[tuple[str, Path, CocoNeeds, Folders]]:
    """The COCO files that the metrics of a mode read, with the names of their fields."""
    from mmengine.registry import METRICS

    metrics = cfg.get(f"{mode}_evaluator") or ()
    several = isinstance(metrics, (list, tuple))
    for index, metric in enumerate(metrics if several else [metrics]):
        field = f"{mode}_evaluator[{index}]" if several else f"{mode}_evaluator"
        if not isinstance(metric, Mapping):
            raise UserError(f"{cfg.filename}: {field}: a metric is a dict with a type, got {type(metric).__name__}")
        if not several and isinstance(metric.get("metrics"), (list, tuple)):
            yield from evaluated_files({f"{mode}_evaluator": metric["metrics"]}, mode, classes)
            continue
        check_scope(metric, field)
        found, ann_file = class_of(metric, METRICS), metric.get("ann_file")
        kind = coco_kind(found)
        if kind is None or ann_file is None or not is_local(metric):
            continue
        if not isinstance(ann_file, (str, Path)) or not os.path.isfile(ann_file):
            raise UserError(f"{field}.ann_file: no file {ann_file!r:.160}")
        chosen = metric.get("metric", "bbox")
        compared = not metric.get("format_only")
        masks = compared and "segm" in (chosen if isinstance(chosen, (list, tuple)) else [chosen])
        # LVIS has a library of its own, which needs less.
        evaluated = compared and kind == "instances" and "mmdet.LVISMetric" not in class_names(found)
        naming = "file_name" if kind == "panoptic" else None
        segments = metric.get("seg_prefix") if kind == "panoptic" else None
        folders = Folders(segments=Path(segments) if compared and isinstance(segments, (str, Path)) else None)
        needs = CocoNeeds(kind, "metric", compared, classes, False, masks, evaluated, naming)
        yield f"{field}.ann_file", Path(ann_file), needs, folders


def check_coco_file(ann_file: Path, uses: dict[tuple[CocoNeeds, Folders], str]) -> None:
    """Read a COCO file once and check it for each of its uses, and that its images are there."""
    content: Any = None
    first = None
    for (needs, folders), field in uses.items():
        if content is None:
            content = _parsed(field, ann_file)
        names, told = check_coco(field, ann_file, content, needs)
        first = first or told
        if folders.segments is not None and "annotations" in content:
            check_segment_maps(field, ann_file, content, folders.segments)
        if folders.images is None:
            continue
        files = [None if name is None else os.path.join(folders.images, name) for name in names]
        missing = [name for name, file in zip(names, files, strict=True) if file and not os.path.isfile(file)]
        if missing:
            raise UserError(
                f"{field}: {len(missing)} of the {len(names)} images in {str(ann_file)!r} are missing "
                f"from {str(folders.images)!r}: {some(missing, 3, str)}"
            )
        if folders.measured:
            check_sizes(field, ann_file, content["images"], files)
    if first:
        warn(first)


def _parsed(field: str, ann_file: Path) -> dict[str, Any]:
    # Objects that are all kept: to look through them for garbage again and again takes half of the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        content = json.loads(ann_file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{field}: {str(ann_file)!r} is not a COCO file: {one_line(error)}") from error
    finally:
        if collecting:
            gc.enable()
    if type(content) is not dict:
        raise UserError(f"{field}: {str(ann_file)!r} is not a COCO file: it holds a {type(content).__name__}")
    return content
