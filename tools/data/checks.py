"""Checks of a config's data before anything is built or written."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import UserError, warn
from ..config.checks import shown
from ..config.classes import class_names, class_of, is_own, nested, root_of
from ..config.loading import PICKLES, building, one_line, plain_files
from .annotations import CocoNeeds, LabelMaps, check_coco, check_label_maps, check_segment_maps, check_sizes


@dataclass(frozen=True)
class _Folders:
    """Where the images of a COCO file are, and the maps of its segments, as far as they are read.

    Attributes:
        images: Their folder.
        segments: That of the maps.
        measured: Whether images are read as they are, so that their size can be compared.
    """

    images: Path | None = None
    segments: Path | None = None
    measured: bool = False


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
    _check_scope(dataset, field)
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


def _check_scope(part: Any, field: str) -> None:
    if not isinstance(part.get("_scope_"), (str, type(None))):
        raise UserError(f"{field}._scope_: the name of a library is needed, got {shown(part['_scope_'])}")


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
    coco: dict[Path, dict[tuple[CocoNeeds, _Folders], str]] = {}
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
            if _is_local(dataset):
                for path, needs, folders in _check_dataset(field, dataset, mode, ignored):
                    coco.setdefault(path, {}).setdefault((needs, folders), f"{field}.ann_file")
        for field, path, needs, folders in _evaluated(cfg, mode, classes) if mode != "train" else ():
            coco.setdefault(path, {}).setdefault((needs, folders), field)
    for path, uses in coco.items():
        _check_coco(path, uses)


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


def _is_local(part: Any) -> bool:
    """Whether the files of a data set or a metric are those of this machine, as they are where nothing is said."""
    chosen = part.get("backend_args") or {}
    return isinstance(chosen, Mapping) and chosen.get("backend", "local") in ("local", "attnzoo")


def ignored_labels(cfg: Any) -> frozenset[int]:
    """The labels that the heads and metrics of a segmentor leave out, beside those of its data sets."""
    parts = nested([cfg.get("model"), cfg.get("val_evaluator"), cfg.get("test_evaluator")])
    return frozenset(label for part in parts if type(label := part.get("ignore_index")) is int)


def _check_dataset(
    field: str, dataset: Any, mode: str, ignored: frozenset[int]
) -> Iterator[tuple[Path, CocoNeeds, _Folders]]:
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
    kind = _kind(dataset_class(dataset))
    if kind:
        segments = prefixes.get("seg") if kind == "panoptic" else None
        measured = _loader(dataset, "mmcv.LoadImageFromFile") is not None
        folders = _Folders(prefixes.get("img", Path(root or "")), segments, measured)
        yield ann_file, _needs(dataset, kind, mode), folders


def _check_itself(field: str, dataset: Any) -> None:
    try:
        _built(field, dataset).check()
    except (ValueError, OSError) as error:
        raise UserError(f"{field}: {error}") from error


def _built(field: str, dataset: Any) -> Any:
    from mmengine.registry import DATASETS

    with plain_files(), building(f"{field}: the data set cannot be built"):
        return DATASETS.build(dataset)


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


# Where a data set of mmdet takes the files' names from.
_NAMINGS = {
    "mmdet.LVISV1Dataset": "coco_url",
    "mmdet.LVISV05Dataset": "short",
    "mmdet.Objects365V2Dataset": "last_folder",
}


def _kind(found: type | None) -> str | None:
    """Which kind of COCO file a data set or a metric reads, None for none."""
    names = class_names(found)
    if names & {"mmdet.CocoPanopticDataset", "mmdet.CocoPanopticMetric"}:
        return "panoptic"
    return "instances" if names & {"mmdet.CocoDataset", "mmdet.CocoMetric"} else None


def _needs(dataset: Any, kind: str, mode: str) -> CocoNeeds:
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


def _loader(dataset: Any, name: str) -> Any:
    """The step of a pipeline that has exactly this class, None where files are read by another."""
    from mmengine.registry import TRANSFORMS

    for step in nested(dataset.get("pipeline")):
        found = class_of(step, TRANSFORMS)
        if found is not None and f"{root_of(found)}.{found.__name__}" == name:
            return step
    return None


def _label_maps(dataset: Any, ignored: frozenset[int]) -> LabelMaps:
    from mmengine.registry import TRANSFORMS

    images, maps = _loader(dataset, "mmcv.LoadImageFromFile"), _loader(dataset, "mmseg.LoadAnnotations")
    return LabelMaps(
        images=images is not None,
        upright=images is not None and images.get("color_type", "color") in ("color", "grayscale"),
        maps=maps is not None and maps.get("imdecode_backend", "pillow") in ("pillow", "cv2", None),
        labels=not any(is_own(class_of(step, TRANSFORMS)) for step in nested(dataset.get("pipeline"))),
        ignored=ignored,
    )


def _evaluated(cfg: Any, mode: str, classes: tuple[str, ...]) -> Iterator[tuple[str, Path, CocoNeeds, _Folders]]:
    """The COCO files that the metrics of a mode read, with the names of their fields."""
    from mmengine.registry import METRICS

    metrics = cfg.get(f"{mode}_evaluator") or ()
    several = isinstance(metrics, (list, tuple))
    for index, metric in enumerate(metrics if several else [metrics]):
        field = f"{mode}_evaluator[{index}]" if several else f"{mode}_evaluator"
        if not isinstance(metric, Mapping):
            raise UserError(f"{cfg.filename}: {field}: a metric is a dict with a type, got {type(metric).__name__}")
        if not several and isinstance(metric.get("metrics"), (list, tuple)):
            yield from _evaluated({f"{mode}_evaluator": metric["metrics"]}, mode, classes)
            continue
        _check_scope(metric, field)
        found, ann_file = class_of(metric, METRICS), metric.get("ann_file")
        kind = _kind(found)
        if kind is None or ann_file is None or not _is_local(metric):
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
        folders = _Folders(segments=Path(segments) if compared and isinstance(segments, (str, Path)) else None)
        needs = CocoNeeds(kind, "metric", compared, classes, False, masks, evaluated, naming)
        yield f"{field}.ann_file", Path(ann_file), needs, folders


def _check_coco(ann_file: Path, uses: dict[tuple[CocoNeeds, _Folders], str]) -> None:
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
            some = ", ".join(map(str, missing[:3])) + (", …" if len(missing) > 3 else "")
            raise UserError(
                f"{field}: {len(missing)} of the {len(names)} images in {str(ann_file)!r} are missing "
                f"from {str(folders.images)!r}: {some}"
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
