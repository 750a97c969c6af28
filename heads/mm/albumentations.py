"""albumentations in the pipelines of every mm library: image, boxes, masks and label map move together."""

import importlib
import inspect
import os
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.structures.bbox import BaseBoxes, HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from torch.utils.data import get_worker_info

from ..arguments import check_number
from .registry import TRANSFORMS

# What mmdet keeps for each box beside the box itself.
_PER_BOX = ("gt_bboxes_labels", "gt_ignore_flags")


@TRANSFORMS.register_module()
class Albumentations(BaseTransform):
    """Transforms of albumentations over a sample of mmdet, of mmseg or of a pair of images.

    They act on `img`, on `gt` (the other image of a pair, of any size) with the same random values, on `gt_seg_map`,
    and on `gt_bboxes` and `gt_masks`, whose labels and flags follow. Where mm's own `Albu` differs: label maps are
    moved with boxes, the transforms see RGB, boxes that are lost take their masks and labels along, an image may have
    no box, and the random stream obeys the run's seed. `Albu` repeats one stream in every worker and epoch; here each
    sample has a seed of its own: drawn from that of torch's worker, which is new at each epoch, and from the rank. In
    trainings by attnzoo, which seed numpy's global generator for each sample, and without workers it is drawn from that
    generator, as the transforms of mm draw.

    Where an image is moved over its border, masks are filled with 0 and label maps with 255, which mmseg ignores.

    Args:
        transforms: Configs of albumentations' transforms: `type` is a class of albumentations, `transforms` inside one
            (`OneOf`, `SomeOf`) are such configs again, all else are its arguments.
        min_visibility: Share of a box's area that must stay in the image, else it is dropped.
        min_area: Area in pixels that must stay.

    Raises:
        TypeError: An argument of another type.
        ValueError: An unknown transform, an argument that it does not have or a value that it does not take, or
            `fill_mask`.

    Example:
        In a config:

            dict(type="attnzoo.Albumentations", transforms=[
                dict(type="HorizontalFlip", p=0.5),
                dict(type="OneOf", p=0.2, transforms=[dict(type="Blur"), dict(type="GaussNoise")]),
            ])
    """

    # Whether who loads the samples seeds numpy's generator for each. mmengine seeds it alike at each epoch.
    seeded_by_sample = False

    def __init__(self, transforms: list[dict], min_visibility: float = 0.0, min_area: float = 1.0) -> None:
        check_number("min_visibility", min_visibility, 0, 1)
        check_number("min_area", min_area, 0)
        self.transforms = transforms
        library = _library()
        steps = _steps(library, transforms)
        targets = {"gt": "image"}
        boxes = library.BboxParams(
            "pascal_voc", label_fields=["index"], clip=True, min_visibility=min_visibility, min_area=min_area
        )
        # The images of a pair have two sizes.
        self._plain = library.Compose(steps, additional_targets=targets, is_check_shapes=False)
        with warnings.catch_warnings():
            # Of transforms of pixels alone, that they move no box.
            warnings.simplefilter("ignore")
            self._boxed = library.Compose(steps, additional_targets=targets, is_check_shapes=False, bbox_params=boxes)
        self._worker_seed: int | None = None
        self._calls = 0

    def _next_seed(self) -> int:
        # The processes that load data have no process group to ask.
        rank = int(os.environ.get("RANK", 0))
        worker = get_worker_info()
        if worker is None or self.seeded_by_sample:
            entropy = [int(np.random.randint(2**31)), rank]
        else:
            if self._worker_seed != worker.seed:
                self._worker_seed, self._calls = worker.seed, 0
            self._calls += 1
            entropy = [worker.seed, rank, self._calls]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def transform(self, results: dict) -> dict:
        """Transform a sample.

        Args:
            results: With `img` (H, W, 3), BGR; and if there are any `gt` (H', W', 3), `gt_seg_map` (H, W), uint8,
                `gt_bboxes` (N, 4), x1, y1, x2, y2 in pixels, with `gt_bboxes_labels` and `gt_ignore_flags`, and
                `gt_masks` of N objects.

        Returns:
            The same dict, changed.

        Raises:
            TypeError: A label map that is not uint8, or boxes that are not horizontal.
        """
        data: dict[str, Any] = {"image": cv2.cvtColor(results["img"], cv2.COLOR_BGR2RGB)}
        if "gt" in results:
            data["gt"] = cv2.cvtColor(results["gt"], cv2.COLOR_BGR2RGB)
        labels = results.get("gt_seg_map")
        if labels is not None:
            if labels.dtype != np.uint8:
                raise TypeError(f"gt_seg_map must be uint8, got {labels.dtype}")
            # Moved up by one, what is filled with 0 comes back as 255.
            data["mask"] = labels + np.uint8(1)
        masks = results.get("gt_masks")
        if masks is not None and len(masks):
            data["masks"] = masks.to_ndarray().astype(np.uint8)
        boxes = results.get("gt_bboxes")
        compose = self._plain
        if boxes is not None:
            if isinstance(boxes, BaseBoxes) and not isinstance(boxes, HorizontalBoxes):
                raise TypeError(f"gt_bboxes must be HorizontalBoxes, got {type(boxes).__name__}")
            compose = self._boxed
            data["bboxes"] = np.asarray(boxes.numpy() if isinstance(boxes, BaseBoxes) else boxes, np.float32)
            data["index"] = np.arange(len(boxes))

        compose.set_random_seed(self._next_seed())
        data = compose(**data)

        results["img"] = cv2.cvtColor(data["image"], cv2.COLOR_RGB2BGR)
        results["img_shape"] = results["img"].shape[:2]
        if "gt" in data:
            results["gt"] = cv2.cvtColor(data["gt"], cv2.COLOR_RGB2BGR)
        if "mask" in data:
            results["gt_seg_map"] = data["mask"] - np.uint8(1)
        kept = np.asarray(data["index"] if boxes is not None else range(len(masks or ())), np.int64)
        if boxes is not None:
            moved = np.asarray(data["bboxes"], np.float32).reshape(-1, 4)
            results["gt_bboxes"] = type(boxes)(torch.from_numpy(moved)) if isinstance(boxes, BaseBoxes) else moved
            for key in _PER_BOX:
                if key in results:
                    results[key] = results[key][kept]
        if masks is not None:
            moved = data["masks"][kept] if len(masks) else np.zeros((0, *results["img_shape"]), np.uint8)
            results["gt_masks"] = BitmapMasks(moved, *results["img_shape"])
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}(transforms={self.transforms})"


def _library() -> ModuleType:
    # Its import would ask the package index for a newer version.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    try:
        return importlib.import_module("albumentations")
    except ImportError as error:
        raise ImportError(
            f"attnzoo.Albumentations needs albumentations: pip install 'attnzoo[mm]' ({error})"
        ) from error


def _steps(library: ModuleType, configs: Any) -> list[Any]:
    if isinstance(configs, str | dict) or not isinstance(configs, Sequence):
        raise TypeError(f"transforms={configs!r}: must be a list of dicts, got {type(configs).__name__}")
    return [_build(library, step) for step in configs]


def _build(library: ModuleType, config: dict) -> Any:
    """The transform of albumentations that a config describes."""
    if not isinstance(config, dict):
        raise TypeError(f"transforms: {config!r} must be a dict with a type, got {type(config).__name__}")
    options = dict(config)
    name = options.pop("type", None)
    cls = getattr(library, name, None) if isinstance(name, str) else None
    if not (isinstance(cls, type) and issubclass(cls, (library.BasicTransform, library.BaseCompose))):
        raise ValueError(f"transforms: type={name!r} is no transform of albumentations {library.__version__}")
    if "fill_mask" in options:
        raise ValueError(f"transforms: {name} has fill_mask; masks are filled with 0 and label maps with 255")
    if "transforms" in options:
        options["transforms"] = _steps(library, options["transforms"])
    known = inspect.signature(cls).parameters
    unknown = sorted(set(options) - set(known))
    if unknown and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        allowed = ", ".join(key for key in known if key != "strict")
        raise ValueError(f"transforms: {name} has no {', '.join(unknown)}; allowed are {allowed}")
    if "InitSchema" in vars(cls):
        # Otherwise albumentations warns of values that it cannot use, and takes its defaults.
        options["strict"] = True
    try:
        return cls(**options)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"transforms: {name}: {' '.join(str(error).split())}") from error
