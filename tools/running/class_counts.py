"""Checks that heads have as many classes as the data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.registry import DATASETS, HOOKS, TRANSFORMS
from torch import nn

from ..common.errors import UserError, warn
from ..config.building import building
from ..config.classes import class_names, class_of, is_own, nested
from ..data.datasets import classes_of, dataset_class, datasets_of

# Heads whose `num_classes` are the labels of the data, by library and base class; those below have other labels.
_CLASSIFIERS = {
    f"mmdet.{name}"
    for name in ("BaseDenseHead", "BaseMaskHead", "BBoxHead", "SABLHead", "FCNMaskHead", "MaskIoUHead", "MaskPointHead")
} | {"mmseg.BaseDecodeHead"}
_OTHER_LABELS = {"mmseg.STDCHead", "mmseg.VPDDepthHead"}


def check_class_counts(cfg: Any, model: nn.Module, modes: tuple[str, ...]) -> None:
    """Compare `num_classes` of the heads of mmdet and mmseg with the classes of the data sets.

    A segmentor may have more classes than its data. Of a detector that has more, as of fewer where the labels may be
    others (out of code of the user's own, or where nothing is trained), a warning tells.

    Args:
        cfg: The config, whose data sets have been checked.
        model: What has been built of it.
        modes: Which data sets are to be looked at: `train`, `val`, `test`.

    Raises:
        UserError: naming head, data set and both numbers, if the data of a training have labels that a head has not,
            or mmdet's `NumClassCheckHook` is there and would stop the run; or if a name of a class cannot be read.
    """
    # What a detector of that kind tells apart is said by texts.
    heads = [] if hasattr(model, "language_model") else list(_classifiers(model))
    hooked = any(
        "mmdet.NumClassCheckHook" in class_names(class_of(hook, HOOKS)) for hook in cfg.get("custom_hooks") or ()
    )
    told = set()
    for mode in modes if heads else ():
        certain = mode == "train" and not _may_change_labels(cfg, model)
        for field, dataset, count, detection in _labelled(cfg, mode):
            for name, head in heads:
                fewer = _highest(dataset, head, count, detection) >= _limit(head, detection)
                unequal = detection and head.num_classes != count
                message = (
                    f"{cfg.filename}: {name} ({type(head).__name__}) has num_classes={head.num_classes}, "
                    f"but {field} has {count} classes"
                )
                if (fewer and certain) or (hooked and unequal and mode != "test"):
                    raise UserError(message)
                if (fewer or unequal) and (head.num_classes, count) not in told:
                    told.add((head.num_classes, count))
                    warn(message)


def _labelled(cfg: Any, mode: str) -> Iterator[tuple[str, Any, int, bool]]:
    """The data sets whose classes are known: field, config, number of classes, and whether they are of boxes."""
    loader = cfg.get(f"{mode}_dataloader")
    for field, dataset in datasets_of(loader["dataset"], f"{mode}_dataloader.dataset") if loader else ():
        count, kinds = len(classes_of(dataset)), class_names(dataset_class(dataset))
        # Heads of panoptic models tell things alone, or all classes.
        detection = "mmdet.BaseDetDataset" in kinds and "mmdet.CocoPanopticDataset" not in kinds
        if count and (detection or "mmseg.BaseSegDataset" in kinds):
            yield field, dataset, count, detection


def _classifiers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The heads of the libraries whose `num_classes` are the labels of the data, with their names in the model."""
    # Heads that tell objects of no class; RPN itself renames its head.
    heads = [
        getattr(module, "bbox_head" if "mmdet.RPN" in class_names(type(module)) else "rpn_head", None)
        for module in model.modules()
    ]
    proposing = {part for head in heads if isinstance(head, nn.Module) for part in head.modules()}
    for name, module in model.named_modules():
        kinds = class_names(type(module))
        if not kinds & _CLASSIFIERS or kinds & _OTHER_LABELS or is_own(type(module)):
            continue
        counted = type(getattr(module, "num_classes", None)) is int and not getattr(module, "class_agnostic", False)
        if counted and module not in proposing:
            yield name, module


def _highest(dataset: Any, head: Any, count: int, detection: bool) -> int:
    """The highest label of a data set that a head is trained with."""
    if detection:
        return count - 1
    # Where it is said by the config, the classes may count the label that is left out.
    labels = range(count - bool(dataset.get("reduce_zero_label")))
    return max((label for label in labels if label != getattr(head, "ignore_index", None)), default=-1)


def _limit(head: Any, detection: bool) -> int:
    """The number of labels that a head tells apart."""
    # One channel tells the foreground from the background, whatever the number of classes that is given.
    return 2 if not detection and getattr(head, "out_channels", None) == 1 else head.num_classes


def _may_change_labels(cfg: Any, model: nn.Module) -> bool:
    """Whether code that is not the libraries' is between the labels of the training data and the heads."""
    with building(f"{cfg.filename}: train_dataloader.dataset"):
        parts = [
            class_of(part, registry)
            for part in nested(cfg.get("train_dataloader"))
            if "type" in part and isinstance(part.get("_scope_"), (str, type(None)))
            for registry in (DATASETS, TRANSFORMS)
        ]
    parts += [type(model), type(getattr(model, "data_preprocessor", None))]
    bases = [base for part in parts for base in getattr(part, "__mro__", ()) if is_own(base)]
    # A data set that brings names alone has no code.
    return any(callable(value) for base in bases for value in vars(base).values())
