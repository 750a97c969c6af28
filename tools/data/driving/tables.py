"""Rows of nuScenes' tables: what a scene needs, with tokens that follow from the seed and the names alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ....heads.bev.nuscenes.classes import ATTRIBUTES, CAMERAS, LIDAR
from .sensors import Sensor
from .shapes import CATEGORIES

VERSION = "v1.0-trainval"
TABLES = (
    "attribute", "calibrated_sensor", "category", "ego_pose", "instance", "log", "map", "sample", "sample_annotation",
    "sample_data", "scene", "sensor", "visibility",
)  # fmt: skip
# Of the pixels that an object would have alone: the share from which on a level is reached, of levels 1 to 4.
_LEVELS = ((0, 40), (40, 60), (60, 80), (80, 100))

Row = dict[str, Any]
Rows = dict[str, list[Row]]


def token(*names: Any) -> str:
    """A token of 32 hexadecimal figures, the same for the same names."""
    return hashlib.sha256("/".join(map(str, names)).encode()).hexdigest()[:32]


def visibility_token(seen: int, whole: int) -> str:
    """The level, as nuScenes has them, of an object seen in some of the pixels that it would have alone."""
    share = 100 * seen / whole if whole else 0
    return str(sum(share >= low for low, _ in _LEVELS))


def common_rows() -> Rows:
    """The rows that all scenes share."""
    return {
        "attribute": [{"token": token("attribute", name), "name": name, "description": ""} for name in ATTRIBUTES],
        "category": [{"token": token("category", name), "name": name, "description": ""} for name in CATEGORIES],
        "sensor": [
            {"token": token("sensor", name), "channel": name, "modality": "lidar" if name == LIDAR else "camera"}
            for name in (*CAMERAS, LIDAR)
        ],
        "visibility": [
            {
                "description": f"visibility of whole object is between {low}% and {high}%",
                "token": str(number),
                "level": f"v{low}-{high}",
            }
            for number, (low, high) in enumerate(_LEVELS, 1)
        ],
    }


def calibration_row(sensor: Sensor, *names: Any) -> Row:
    """The row of a sensor on a vehicle."""
    return {
        "token": token("calibrated_sensor", *names, sensor.channel),
        "sensor_token": token("sensor", sensor.channel),
        "translation": sensor.translation.tolist(),
        "rotation": sensor.rotation.tolist(),
        "camera_intrinsic": [] if sensor.intrinsic is None else sensor.intrinsic.tolist(),
    }


def link(rows: Iterable[Row]) -> None:
    """Set `prev` and `next` of rows that follow each other in time."""
    listed = list(rows)
    for index, row in enumerate(listed):
        row["prev"] = listed[index - 1]["token"] if index else ""
        row["next"] = listed[index + 1]["token"] if index + 1 < len(listed) else ""


def write_tables(root: Path, parts: Iterable[Mapping[str, list[Row]]]) -> None:
    """Write the 13 tables, a row a line, into `v1.0-trainval/`."""
    folder = root / VERSION
    folder.mkdir()
    merged: Rows = {name: [] for name in TABLES}
    for part in parts:
        for name, rows in part.items():
            merged[name] += rows
    for name, rows in merged.items():
        lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
        (folder / f"{name}.json").write_text(f"[{lines}]\n", encoding="utf-8")
