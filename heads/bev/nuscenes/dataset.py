"""nuScenes for mmengine's Runner, read from its tables: no files of infos are made beforehand."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.structures import BaseDataElement

from ...arguments import check_bool, check_choice, check_int, check_text
from ...mm.registry import DATASETS
from .boxes import annotated_boxes
from .calibration import (
    camera_intrinsics,
    can_bus,
    can_bus_step,
    ego_to_global,
    lidar_to_image,
    rigid_inverse,
    sensor_to_ego,
    sensor_to_global,
    sensor_to_lidar,
)
from .classes import CAMERAS, CLASSES, EVALUATION_CLASSES, LIDAR
from .tables import NuScenes, shared_tables
from .transforms import DrawBEVMap, LoadLidarDepth

# Of each frame of a sample, for the detector.
_OF_FRAMES = ("lidar2img", "can_bus", "has_previous")


@DATASETS.register_module()
class NuScenesDataset(BaseDataset):
    """Samples of nuScenes: pictures of several cameras, their calibration, and boxes in the LiDAR's frame.

    Samples stand in the order of scenes and time. Each frame, a dict, goes through `pipeline` on its own:

    - `token`, `prev` (of the frame before, empty if there is none), `scene_token`, `timestamp` in microseconds;
    - `img_path`, a list in the order of the cameras, and `lidar_path`;
    - `lidar2img` (cameras, 4, 4), as of `calibration.lidar_to_image`, `lidar2ego` and `ego2global` (4, 4), float64;
    - `can_bus` (18,), see `calibration.can_bus_step`, relative to the frame before;
    - `has_previous`: whether there is a frame before; `is_history`: whether this frame is only history;
    - `gt_bboxes_3d` (N, 9), rows as of `Boxes.rows`, velocities NaN where unknown, and `gt_labels_3d` (N,): objects of
      the classes with at least one point of LiDAR or radar.

    In training a sample has frames before it, as many as `history` says, at random out of one more, as published. Where
    a scene has too few, its first one of them comes again, and each copy starts anew. The frames' pictures are stacked,
    the oldest first, to `inputs` (frames, cameras, 3, H, W); `data_samples` is that of the newest frame, but
    `lidar2img`, `can_bus` and `has_previous` are those of all frames, with the frames as the first axis, and so is
    `gt_depth` where history has it too. In testing a sample is one frame, and the frame before is the sample before it
    in the scene: a model that keeps its state sees the samples in order, with `attnzoo.SceneSampler` in several
    processes too.

    Args:
        data_root: The folder with the version's folder, `samples` and, where they are there, `can_bus`.
        version: As `v1.0-trainval`.
        split: A name (`train`, `val`, `test`, `mini_train`, `mini_val`, or one of the version folder's `splits.json`),
            the path of a `.txt` file with names of scenes, or names of scenes.
        cameras: Their channels.
        classes: In the order of the labels.
        history: Frames before a sample in training.
        maps: Whether frames name the map pictures of their log, `map_path`, a dict by category: for
            `attnzoo.DrawBEVMap`.
        pipeline: Transforms, the last of all `attnzoo.PackBEVInputs`.
        **kwargs: mmengine's `BaseDataset` arguments.

    Raises:
        TypeError: An argument of another type.
        ValueError: A class is unknown, a camera is not in the tables, or the tables are wrong, naming file and row.
        FileNotFoundError: A folder or a table is missing.
    """

    def __init__(
        self,
        data_root: str | os.PathLike,
        version: str,
        split: str | Sequence[str],
        cameras: Sequence[str] = CAMERAS,
        classes: Sequence[str] = CLASSES,
        history: int = 0,
        maps: bool = False,
        pipeline: list | tuple = (),
        **kwargs: Any,
    ) -> None:
        for i, name in enumerate(classes):
            check_choice(f"classes[{i}]", name, EVALUATION_CLASSES)
        self.version = check_text("version", version)
        self.split = split
        self.cameras = [check_text(f"cameras[{i}]", camera) for i, camera in enumerate(cameras)]
        if not self.cameras:
            raise ValueError("cameras must have at least one channel")
        self.history = check_int("history", history, 0)
        self.maps = check_bool("maps", maps)
        metainfo = {"classes": tuple(classes), **(kwargs.pop("metainfo", None) or {})}
        super().__init__(data_root=str(data_root), metainfo=metainfo, pipeline=list(pipeline), **kwargs)

    @property
    def tables(self) -> NuScenes:
        """The tables, shared by the data sets and metrics of the process."""
        return shared_tables(self.data_root, self.version)

    def load_data_list(self) -> list[dict]:
        """An entry a sample: its row, those of earlier samples of its scene, the last of them first, and the scene."""
        nusc = self.tables
        entries = []
        for scene in nusc.scene_rows(self.split):
            samples = nusc.scene_samples(scene)
            # Every camera is there, or the table and the sample are named now.
            for channel in (*self.cameras, LIDAR):
                nusc.key_frames(samples, channel)
            rows = samples.tolist()
            for i, sample in enumerate(rows):
                earlier = rows[max(i - self.history - 1, 0) : i][::-1]
                entries.append({"sample": sample, "earlier": earlier, "scene": scene})
        # What a frame needs of the tables is read now, before workers are forked, which share it.
        self._frame(entries[0]["sample"], None, is_history=False)
        return entries

    def check(self) -> None:
        """Look for the files of every sample before a long run, and at the calibration of every camera.

        Raises:
            FileNotFoundError: A picture is missing, or a point cloud or a map that the pipeline reads; it is named.
            ValueError: A camera's intrinsics are singular, naming table and row.
        """
        nusc = self.tables
        steps = self.pipeline.transforms
        clouds = any(isinstance(step, LoadLidarDepth) for step in steps)
        samples = nusc.samples(self.split)
        for channel in (*self.cameras, *([LIDAR] if clouds else [])):
            records = nusc.key_frames(samples, channel)
            if channel != LIDAR:
                camera_intrinsics(nusc, records)
            for record in records.tolist():
                path = nusc.path(record)
                if not path.is_file():
                    kind = "point cloud" if channel == LIDAR else "image"
                    raise FileNotFoundError(f"{path}: there is no such {kind}")
        if any(isinstance(step, DrawBEVMap) and step.ground for step in steps):
            for scene in nusc.scene_rows(self.split):
                for path in nusc.maps(scene).values():
                    if not path.is_file():
                        raise FileNotFoundError(f"{path}: there is no such map")

    def prepare_data(self, idx: int) -> Any:
        """The frames of a sample through the pipeline, joined."""
        entry = self.get_data_info(idx)
        frames = [self.pipeline(frame) for frame in self.frames(entry["sample"], entry["earlier"])]
        return _joined(frames) if len(frames) > 1 else frames[0]

    def frames(self, sample: int, earlier: Sequence[int]) -> list[dict]:
        """The frames that a sample is made of, as dicts for the pipeline, the oldest first.

        Args:
            sample: A row of `sample`.
            earlier: Rows of samples before it in its scene, the last of them first.
        """
        if self.test_mode:
            return [self._frame(sample, earlier[0] if earlier else None, is_history=False)]
        chosen = list(earlier[: self.history + 1])
        if len(chosen) > self.history:
            del chosen[np.random.randint(len(chosen))]
        chosen = chosen[::-1]
        # Copies of the oldest frame, or of the sample itself, that nothing comes before.
        first = chosen[0] if chosen else sample
        copies = [first] * (self.history - len(chosen))
        frames = [self._frame(row, None, is_history=True) for row in copies]
        before = None
        for row in [*chosen, sample]:
            frames.append(self._frame(row, before, is_history=row != sample))
            before = row
        return frames

    def _frame(self, sample: int, before: int | None, is_history: bool) -> dict:
        nusc = self.tables
        samples = nusc.table("sample")
        lidar = int(nusc.key_frames(sample, LIDAR))
        records = np.array([int(nusc.key_frames(sample, camera)) for camera in self.cameras])
        lidar_global = sensor_to_global(nusc, lidar)
        camera_lidar = sensor_to_lidar(sensor_to_global(nusc, records), lidar_global)
        now = can_bus(nusc, sample, lidar)
        last = None if before is None else can_bus(nusc, before, int(nusc.key_frames(before, LIDAR)))
        boxes, labels = self._objects(sample, lidar_global)
        scene = int(nusc.rows("sample", "scene_token")[sample])
        frame = {
            "token": samples.token(sample),
            "prev": "" if before is None else samples.token(before),
            "scene_token": nusc.table("scene").token(scene),
            "timestamp": int(samples["timestamp"][sample]),
            "img_path": [str(nusc.path(int(record))) for record in records],
            "lidar_path": str(nusc.path(lidar)),
            "lidar2img": lidar_to_image(camera_intrinsics(nusc, records), camera_lidar),
            "lidar2ego": sensor_to_ego(nusc, lidar),
            "ego2global": ego_to_global(nusc, lidar),
            "can_bus": can_bus_step(now, last),
            "has_previous": before is not None,
            "is_history": is_history,
            "gt_bboxes_3d": boxes,
            "gt_labels_3d": labels,
        }
        if self.maps:
            frame["map_path"] = {category: str(path) for category, path in nusc.maps(scene).items()}
        return frame

    def _objects(self, sample: int, lidar_global: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        nusc = self.tables
        rows = nusc.annotations(sample)
        labels = nusc.annotation_labels(rows, self.metainfo["classes"])
        table = nusc.table("sample_annotation")
        kept = (labels >= 0) & (table["num_lidar_pts"][rows] + table["num_radar_pts"][rows] > 0)
        return annotated_boxes(nusc, rows[kept]).moved(rigid_inverse(lidar_global)).rows(), labels[kept]


def _joined(frames: list[dict]) -> dict:
    """Packed frames, the oldest first, as one sample: what a frame has one of stands in a row of the frames."""
    samples: list[BaseDataElement] = [frame["data_samples"] for frame in frames]
    sample = samples[-1]
    sample.set_metainfo({name: np.stack([one.get(name) for one in samples]) for name in _OF_FRAMES})
    if all("gt_depth" in one for one in samples):
        sample.set_data({"gt_depth": torch.stack([one.gt_depth for one in samples])})
    return {"inputs": torch.stack([frame["inputs"] for frame in frames]), "data_samples": sample}
