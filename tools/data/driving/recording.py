"""A scene recorded: its images, LiDAR sweeps and maps as files, its rows of the tables."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ....heads.bev.nuscenes import rotations
from ....heads.bev.nuscenes.classes import CAMERAS, LIDAR
from .ground import Ground, paint_ground
from .lidar import sweep
from .maps import draw_map
from .rendering import render
from .scene import SAMPLE_TIME, Scene, boxes_at, make_scene
from .sensors import Sensor, make_rig, sensor_pose
from .tables import Row, Rows, calibration_row, link, token, visibility_token

SPLITS = ("train", "val")
MOST_SCENES = 4999  # of a split: names have four figures
_QUALITY = 95  # of JPEG
_BEGIN = 1_600_000_000  # seconds since 1970, of the first scene
_SCENE_SECONDS = 60  # from one to the next
_ANNOTATED = 60.0  # metres from the vehicle within which objects are annotated
_JITTER = 0.002  # seconds by which cameras are early or late


@dataclass(frozen=True)
class Recording:
    """A scene with all that it takes to record it.

    Attributes:
        scene: The scene.
        ground: Its ground.
        rig: The sensors by channel.
        image_size: Width and height in pixels.
        azimuths: Number of directions of a beam in a turn of the LiDAR.
        begin: Time of the first key frame, in microseconds since 1970.
        jitter: Seconds (samples, 6) by which a camera is late, in the order of `CAMERAS`.
        key: What tokens begin with.
    """

    scene: Scene
    ground: Ground
    rig: dict[str, Sensor]
    image_size: tuple[int, int]
    azimuths: int
    begin: int
    jitter: np.ndarray
    key: tuple[Any, ...]

    def timestamp(self, channel: str, step: float) -> int:
        """When a sensor records for a key frame or, for a fraction, between two, in microseconds since 1970."""
        time = step * SAMPLE_TIME - self.rig[channel].delay
        if channel != LIDAR:
            time += float(self.jitter[int(step), CAMERAS.index(channel)])
        return self.begin + round(1e6 * time)

    def seconds(self, timestamp: int) -> float:
        """The time of the scene."""
        return (timestamp - self.begin) / 1e6


def scene_name(split: str, number: int) -> str:
    """The name of a scene of a split, `scene-0001` and so on for `train`, `scene-5001` for `val`."""
    return f"scene-{5000 * SPLITS.index(split) + number + 1:04d}"


def make_recording(
    split: str, number: int, seed: int, samples: int, image_size: tuple[int, int], azimuths: int
) -> Recording:
    """Draw a scene and its sensors; those of another number, seed or split do not change it.

    Args:
        split: `train` or `val`.
        number: Of the scene in its split, from 0.
        seed: Of all that is drawn.
        samples: Number of key frames.
        image_size: Width and height of images, in pixels.
        azimuths: Number of directions of a beam in a turn of the LiDAR.
    """
    rng = np.random.default_rng((seed, SPLITS.index(split), number))
    scene = make_scene(rng, scene_name(split, number), samples)
    begin = (_BEGIN + (MOST_SCENES * SPLITS.index(split) + number) * _SCENE_SECONDS) * 10**6
    ground, rig = paint_ground(rng, scene), make_rig(rng, image_size)
    jitter = rng.uniform(-_JITTER, _JITTER, (samples, len(CAMERAS)))
    return Recording(scene, ground, rig, image_size, azimuths, begin, jitter, (seed, scene.name))


def record(root: Path, recording: Recording) -> Rows:
    """Write the files of a scene below a folder that has the folders for them, and return its rows of the tables."""
    scene, key = recording.scene, recording.key
    rows: Rows = {"sample_data": [], "ego_pose": [], "sample_annotation": []}
    rows["calibrated_sensor"] = [calibration_row(sensor, *key) for sensor in recording.rig.values()]
    rows["sample"] = [
        {
            "token": token("sample", *key, number),
            "timestamp": recording.timestamp(LIDAR, number),
            "scene_token": token("scene", *key),
        }
        for number in range(scene.samples)
    ]
    link(rows["sample"])
    for number in range(scene.samples):
        _record_sample(root, recording, number, rows)
    for channel in recording.rig:
        link(sorted((row for row in rows["sample_data"] if f"__{channel}__" in row["filename"]), key=_time))
    rows["instance"] = _instances(recording, rows["sample_annotation"])
    logfile = f"simulated-{scene.name}"
    rows["log"] = [
        {
            "token": token("log", *key),
            "logfile": logfile,
            "vehicle": "simulated",
            "date_captured": "2020-09-13",
            "location": "simulated",
        }
    ]
    rows["scene"] = [
        {
            "token": token("scene", *key),
            "log_token": token("log", *key),
            "nbr_samples": scene.samples,
            "first_sample_token": rows["sample"][0]["token"],
            "last_sample_token": rows["sample"][-1]["token"],
            "name": scene.name,
            "description": scene.description,
        }
    ]
    rows["map"] = [_write_map(root, recording, category) for category in ("semantic_prior", "lane_divider")]
    return rows


def _time(row: Row) -> int:
    return row["timestamp"]


def _record_sample(root: Path, recording: Recording, number: int, rows: Rows) -> None:
    """Record a key frame, and the LiDAR sweep before it; `rows` gets what is read and annotated."""
    scene = recording.scene
    sample = rows["sample"][number]["token"]
    for step in (number - 0.5, number):
        timestamp = recording.timestamp(LIDAR, step)
        time = recording.seconds(timestamp)
        boxes = boxes_at(scene, time)
        place, axes = sensor_pose(recording.rig[LIDAR], *scene.ego.pose(time))
        points, hit = sweep(scene, recording.ground, boxes, place, axes, recording.azimuths)
        row = _data_row(recording, LIDAR, timestamp, sample, step == number, rows)
        (root / row["filename"]).write_bytes(points.tobytes())
    seen, whole = np.zeros((2, len(scene.objects)), np.int64)
    for channel in CAMERAS:
        timestamp = recording.timestamp(channel, number)
        time = recording.seconds(timestamp)
        sensor = recording.rig[channel]
        place, axes = sensor_pose(sensor, *scene.ego.pose(time))
        assert sensor.intrinsic is not None
        image, *pixels = render(
            scene, recording.ground, boxes_at(scene, time), place, axes, sensor.intrinsic, recording.image_size
        )
        seen, whole = seen + pixels[0], whole + pixels[1]
        row = _data_row(recording, channel, timestamp, sample, True, rows)
        (root / row["filename"]).write_bytes(_encoded(image, "JPEG", quality=_QUALITY, subsampling=0))
    counts = np.bincount(hit[hit >= 0], minlength=len(scene.objects))
    middle = scene.ego.pose(number * SAMPLE_TIME)[0][:2]
    for index, (item, box) in enumerate(zip(scene.objects, boxes, strict=True)):
        if np.hypot(*(box[:2] - middle)) > _ANNOTATED:
            continue
        rows["sample_annotation"].append(
            {
                "token": token("sample_annotation", *recording.key, number, index),
                "sample_token": sample,
                "instance_token": token("instance", *recording.key, index),
                "visibility_token": visibility_token(int(seen[index]), int(whole[index])),
                "attribute_tokens": [token("attribute", item.attribute)] if item.attribute else [],
                "translation": [round(float(value), 4) for value in (box[0], box[1], item.shape.middle)],
                "size": list(item.shape.size),
                "rotation": [round(float(value), 9) for value in rotations.from_yaw(box[2])],
                "prev": "",
                "next": "",
                "num_lidar_pts": int(counts[index]),
                "num_radar_pts": 0,
            }
        )


def _data_row(recording: Recording, channel: str, timestamp: int, sample: str, is_key_frame: bool, rows: Rows) -> Row:
    """Append the rows of a sensor's reading and of the vehicle's pose, which have one token, and return the first."""
    own = token("sample_data", *recording.key, channel, timestamp)
    translation, rotation = recording.scene.ego.pose(recording.seconds(timestamp))
    rows["ego_pose"].append(
        {
            "token": own,
            "timestamp": timestamp,
            "rotation": rotation.tolist(),
            "translation": translation.tolist(),
        }
    )
    is_lidar = channel == LIDAR
    width, height = (0, 0) if is_lidar else recording.image_size
    folder, suffix = "samples" if is_key_frame else "sweeps", "pcd.bin" if is_lidar else "jpg"
    name = f"simulated-{recording.scene.name}__{channel}__{timestamp}.{suffix}"
    row = {
        "token": own,
        "sample_token": sample,
        "ego_pose_token": own,
        "calibrated_sensor_token": token("calibrated_sensor", *recording.key, channel),
        "timestamp": timestamp,
        "fileformat": suffix.partition(".")[0],
        "is_key_frame": is_key_frame,
        "height": height,
        "width": width,
        "filename": f"{folder}/{channel}/{name}",
    }
    rows["sample_data"].append(row)
    return row


def _instances(recording: Recording, annotations: list[Row]) -> list[Row]:
    """Chain the annotations of each object, and give the rows of the objects."""
    chains: dict[str, list[Row]] = {}
    for row in annotations:
        chains.setdefault(row["instance_token"], []).append(row)
    found = []
    for index, item in enumerate(recording.scene.objects):
        own = token("instance", *recording.key, index)
        if chain := chains.get(own):
            link(chain)
            found.append(
                {
                    "token": own,
                    "category_token": token("category", item.category),
                    "nbr_annotations": len(chain),
                    "first_annotation_token": chain[0]["token"],
                    "last_annotation_token": chain[-1]["token"],
                }
            )
    return found


def _write_map(root: Path, recording: Recording, category: str) -> Row:
    road, extent = recording.scene.road, recording.scene.extent
    if category == "semantic_prior":
        picture = draw_map(extent, polygons=road.surfaces()["drivable"])
    else:
        picture = draw_map(extent, lines=road.dividers())
    own = token("map", *recording.key, category)
    (root / "maps" / f"{own}.png").write_bytes(_encoded(picture, "PNG"))
    return {
        "category": category,
        "token": own,
        "filename": f"maps/{own}.png",
        "log_tokens": [token("log", *recording.key)],
    }


def _encoded(image: np.ndarray, kind: str, **options: Any) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()
