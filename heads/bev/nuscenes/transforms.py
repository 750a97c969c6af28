"""From the paths of a frame to the tensors of a sample.

In between, `img` is a list of arrays (H, W, 3), one a camera, with BGR channels as everywhere in the mm libraries.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.structures import BaseDataElement, InstanceData

from ...arguments import check_bool, check_choice, check_int, check_number
from ...mm.registry import TRANSFORMS
from ..projection import check_range
from .classes import CLASSES
from .lidar import depth_maps, load_points
from .maps import BEVGrid, shared_map

# Of BEV maps, with the category of the map that has them.
BEV_CLASSES = {"vehicle": "", "drivable_area": "semantic_prior", "lane_divider": "lane_divider"}
_VEHICLES = ("car", "truck", "construction_vehicle", "bus", "trailer", "motorcycle", "bicycle")

_META = (
    "token",
    "prev",
    "scene_token",
    "timestamp",
    "img_path",
    "lidar2img",
    "lidar2ego",
    "ego2global",
    "can_bus",
    "has_previous",
    "img_shape",
)


@TRANSFORMS.register_module()
class LoadMultiViewImages(BaseTransform):
    """Read the pictures of `img_path` to `img`, float32 of values 0 to 255, and set `img_shape`."""

    def transform(self, results: dict) -> dict:
        """Read them.

        Raises:
            FileNotFoundError: A file is missing, naming it.
            ValueError: A file is no image, or pictures have different sizes.
        """
        images: list[np.ndarray] = []
        for path in results["img_path"]:
            if not Path(path).is_file():
                raise FileNotFoundError(f"{path}: there is no such image")
            image = mmcv.imread(path)
            if image is None:
                raise ValueError(f"{path}: not an image that can be read")
            if images and image.shape != images[0].shape:
                raise ValueError(
                    f"{path}: the shape is {image.shape}, that of {results['img_path'][0]} {images[0].shape}"
                )
            images.append(image.astype(np.float32))
        results.update(img=images, img_shape=images[0].shape[:2])
        return results


@TRANSFORMS.register_module()
class MultiViewPhotoMetricDistortion(BaseTransform):
    """Brightness, contrast, saturation and hue of each picture, drawn anew for each.

    Args:
        **kwargs: Of mmdet's `PhotoMetricDistortion`.
    """

    def __init__(self, **kwargs: Any) -> None:
        self.distortion = TRANSFORMS.build({"type": "mmdet.PhotoMetricDistortion", **kwargs})

    def transform(self, results: dict) -> dict:
        """Distort them."""
        results["img"] = [self.distortion({"img": image})["img"] for image in results["img"]]
        return results


@TRANSFORMS.register_module()
class ResizeMultiViewImages(BaseTransform):
    """Resize the pictures (bilinear), and `lidar2img` with them.

    Args:
        scale: By how much; sides are rounded down.
    """

    def __init__(self, scale: float) -> None:
        self.scale = check_number("scale", scale, 0, above=True)

    def transform(self, results: dict) -> dict:
        """Resize them.

        Raises:
            ValueError: Nothing would be left.
        """
        height, width = results["img_shape"]
        size = int(width * self.scale), int(height * self.scale)
        if not all(size):
            raise ValueError(f"scale={self.scale}: nothing is left of images of {width} x {height} pixels")
        results["img"] = [mmcv.imresize(image, size) for image in results["img"]]
        factors = np.array([size[0] / width, size[1] / height, 1, 1])
        results["lidar2img"] = factors[:, None] * results["lidar2img"]
        results["img_shape"] = size[::-1]
        return results


@TRANSFORMS.register_module()
class LoadLidarDepth(BaseTransform):
    """Project the LiDAR's points into the pictures as they are now: `gt_depth` (cameras, H, W), as of `depth_maps`.

    It stands behind all transforms that move pixels. `BEVDataPreprocessor` pads the depth and cuts holes into it as
    into the images.

    Args:
        history: Whether frames that are only history have depth too: a model that takes true depth needs it.
    """

    def __init__(self, history: bool = False) -> None:
        self.history = check_bool("history", history)

    def transform(self, results: dict) -> dict:
        """Add the depth.

        Raises:
            FileNotFoundError: The point cloud is missing, naming it.
            ValueError: It holds something else.
        """
        if self.history or not results["is_history"]:
            points = load_points(Path(results["lidar_path"]))
            results["gt_depth"] = depth_maps(points, results["lidar2img"], results["img_shape"])
        return results


@TRANSFORMS.register_module()
class DrawBEVMap(BaseTransform):
    """Draw what is on the ground: `gt_bev_map` (classes, rows, columns), bool.

    `vehicle` is drawn from `gt_bboxes_3d`: cells that vehicles of any kind, cycles too, cover to a half at least.
    `drivable_area` and `lane_divider` come from the pictures of `map_path`: cells of which a half can be driven on, and
    cells with any part of a line. It stands before `BoxRangeFilter`, which leaves out vehicles that reach into the map.

    Args:
        classes: Of `vehicle`, `drivable_area` and `lane_divider`, in the order of the map's channels.
        rows: Of the map, along y.
        columns: Of the map, along x.
        point_range: x, y and z minimum, then maximum, in metres in the LiDAR's frame; z does not count.
        box_classes: Those of the data set, in the order of its labels.

    Attributes:
        ground: Whether it reads pictures of maps.
    """

    def __init__(
        self,
        classes: Sequence[str],
        rows: int,
        columns: int,
        point_range: Sequence[float],
        box_classes: Sequence[str] = CLASSES,
    ) -> None:
        for i, name in enumerate(classes):
            check_choice(f"classes[{i}]", name, tuple(BEV_CLASSES))
        self.classes = list(classes)
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes={classes!r}: must be different names, at least one")
        bounds = check_range("point_range", point_range)
        self.grid = BEVGrid(check_int("rows", rows, 1), check_int("columns", columns, 1), (*bounds[:2], *bounds[3:5]))
        for i, name in enumerate(box_classes):
            check_choice(f"box_classes[{i}]", name, CLASSES)
        self.ground = self.classes != ["vehicle"]
        self.vehicles = [i for i, name in enumerate(box_classes) if name in _VEHICLES]

    def transform(self, results: dict) -> dict:
        """Draw them.

        Raises:
            FileNotFoundError: The picture of a map is missing, naming it.
            ValueError: The scene's log has no map of a class, or it is no picture.
        """
        results["gt_bev_map"] = np.stack([self._drawn(name, results) for name in self.classes])
        return results

    def _drawn(self, name: str, results: dict) -> np.ndarray:
        if name == "vehicle":
            chosen = np.isin(results["gt_labels_3d"], self.vehicles)
            return self.grid.boxes(results["gt_bboxes_3d"][chosen]) >= 0.5
        category = BEV_CLASSES[name]
        paths = results.get("map_path")
        if paths is None:
            raise ValueError(f"classes has {name!r}: the data set must have maps=True")
        if category not in paths:
            raise ValueError(
                f"sample {results['token']}: map.json has no map of the category {category!r} for its log, which the "
                f"class {name!r} needs; there are {sorted(paths)}"
            )
        share = self.grid.ground(shared_map(str(paths[category])), results["ego2global"] @ results["lidar2ego"])
        return share > 0 if name == "lane_divider" else share >= 0.5


@TRANSFORMS.register_module()
class BoxRangeFilter(BaseTransform):
    """Leave out boxes whose centre is not within a range on the ground.

    Args:
        point_range: x, y and z minimum, then maximum, in metres in the LiDAR's frame; z does not count.
    """

    def __init__(self, point_range: Sequence[float]) -> None:
        self.point_range = check_range("point_range", point_range)

    def transform(self, results: dict) -> dict:
        """Filter `gt_bboxes_3d` and `gt_labels_3d`."""
        places = results["gt_bboxes_3d"][:, :2]
        kept = ((places > self.point_range[:2]) & (places < self.point_range[3:5])).all(-1)
        for name in ("gt_bboxes_3d", "gt_labels_3d"):
            results[name] = results[name][kept]
        return results


@TRANSFORMS.register_module()
class PackBEVInputs(BaseTransform):
    """Bring a frame into the form that `attnzoo.BEVDetector` takes.

    The result has `inputs`, a tensor (cameras, 3, H, W) of float32, and `data_samples`, a `BaseDataElement` with
    `gt_instances_3d`, that is `bboxes_3d` (N, 9) of float32 and `labels_3d` (N,), with `gt_depth` (cameras, H, W) and
    `gt_bev_map` (classes, rows, columns) where they were made, and with the metainfo that `NuScenesDataset` names, and
    `img_shape`.
    """

    def transform(self, results: dict) -> dict:
        """The packed frame."""
        sample = BaseDataElement(metainfo={key: results[key] for key in _META})
        sample.gt_instances_3d = InstanceData(
            bboxes_3d=torch.from_numpy(results["gt_bboxes_3d"]).float(),
            labels_3d=torch.from_numpy(results["gt_labels_3d"]).long(),
        )
        for name in ("gt_depth", "gt_bev_map"):
            if name in results:
                sample.set_data({name: torch.from_numpy(results[name])})
        images = np.stack(results["img"]).transpose(0, 3, 1, 2)
        return {"inputs": torch.from_numpy(np.ascontiguousarray(images)).float(), "data_samples": sample}
