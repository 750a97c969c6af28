"""A data set of simulated drives in nuScenes' own layout, so that one reader serves both.

What is in the folder:
  v1.0-trainval/  the 13 tables of nuScenes; splits.json: the names of the scenes for training (`train`) and of those
                  held out (`val`)
  samples/        images (JPEG) and LiDAR points of the key frames, at 2 Hz, a folder a sensor
  sweeps/         LiDAR points halfway between the key frames, one sweep before each
  maps/           two pictures a scene: what can be driven on and lines between lanes
  driving.json    the parameters, and the checksums of all files

Points are float32: x, y, z in the LiDAR's frame, intensity in 0…255, and the beam. Everything is geometry-true: images,
points, boxes and maps show the same scene, each at its sensor's own time, from the vehicle's pose at that time. Boxes
are annotated at the LiDAR's time: in an image, up to 45 ms earlier, what moves is up to half a metre off its box, as in
nuScenes. What is left out: radar, camera sweeps, motion within a turn of the LiDAR. Textures are cut from the two
photographs that come with scikit-learn, so nothing is downloaded.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ....heads.arguments import check_int, check_ints
from ....heads.bev.nuscenes.classes import CAMERAS, LIDAR
from ...common.progress import bar
from ..folders import Kind, build_folder, folder_path
from .recording import MOST_SCENES, SPLITS, make_recording, record, scene_name
from .tables import TABLES, VERSION, Rows, common_rows, write_tables

STAMP = "driving.json"

_FORMAT = 1  # raised whenever the same parameters would give other files
_AZIMUTHS = 360  # number of directions of each beam of the LiDAR in a turn
_MOST_SAMPLES = 40  # as nuScenes' scenes have
_PART = re.compile(
    rf"{re.escape(VERSION)}/({'|'.join((*TABLES, 'splits'))})\.json|maps/[0-9a-f]{{32}}\.png"
    rf"|samples/(?P<camera>{'|'.join(CAMERAS)})/simulated-scene-\d{{4}}__(?P=camera)__\d+\.jpg"
    rf"|(samples|sweeps)/{LIDAR}/simulated-scene-\d{{4}}__{LIDAR}__\d+\.pcd\.bin"
)


@dataclass(frozen=True)
class DrivingData:
    """A built data set.

    Attributes:
        root: Its folder, nuScenes' `dataroot`.
        version: Of the tables, a folder in it.
        splits: Names of the scenes of each split, `train` and `val`.
    """

    root: Path
    version: str
    splits: dict[str, list[str]]


def make_driving_data(
    folder: str | os.PathLike[str],
    seed: int = 0,
    scenes: int = 36,
    held_out: int = 8,
    samples: int = 8,
    image_size: Sequence[int] = (256, 144),
    processes: int | None = None,
) -> DrivingData:
    """Make the data set, or return at once if a complete one with these parameters is there.

    The files depend on the parameters alone, not on the number of processes, and those of a scene not on how many
    there are. They are written to a folder beside `folder` that takes its place when it is complete.

    Args:
        folder: Where; it may be empty, or hold such a data set that nobody has changed, which is replaced.
        seed: Of everything drawn at random.
        scenes: Number of scenes for training, at most 4999.
        held_out: Number of scenes held out, likewise.
        samples: Key frames of a scene, at most 40, half a second apart.
        image_size: Width and height of the images, in pixels, from 16 to 1600.
        processes: How many work at once; as many as there are cores if None.

    Raises:
        TypeError: for an argument of a wrong type.
        ValueError: for one out of range, naming it.
        UserError: if the folder holds something else, naming what, or another process is building it.
    """
    check_int("seed", seed, 0)
    counts = {
        "train": check_int("scenes", scenes, 1, MOST_SCENES),
        "val": check_int("held_out", held_out, 1, MOST_SCENES),
    }
    check_int("samples", samples, 1, _MOST_SAMPLES)
    sides = check_ints("image_size", image_size, 16)
    if len(sides) != 2 or max(sides) > 1600:
        raise ValueError(f"image_size={image_size!r}: must be width and height, from 16 to 1600 pixels")
    if processes is None:
        processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    check_int("processes", processes, 1)
    parameters = {
        "format": _FORMAT, "seed": int(seed), "scenes": counts, "samples": int(samples), "image_size": list(sides),
    }  # fmt: skip
    root = folder_path(folder)
    splits = {split: [scene_name(split, number) for number in range(count)] for split, count in counts.items()}
    build_folder(_KIND, root, parameters, partial(_write, parameters=parameters, splits=splits, processes=processes))
    return DrivingData(root, VERSION, splits)


def _parts(stamp: dict[str, Any]) -> Callable[[str], bool] | None:
    if set(stamp) != {"format", "seed", "scenes", "samples", "image_size"}:
        return None
    return lambda name: _PART.fullmatch(name) is not None


_KIND = Kind("a data set of simulated drives", STAMP, _parts)


def _write(root: Path, parameters: dict[str, Any], splits: dict[str, list[str]], processes: int) -> None:
    for name in ("maps", f"sweeps/{LIDAR}", *(f"samples/{channel}" for channel in (*CAMERAS, LIDAR))):
        (root / name).mkdir(parents=True)
    jobs = [(split, number) for split in SPLITS for number in range(len(splits[split]))]
    recorded = bar(_recorded(root, parameters, jobs, processes), total=len(jobs), title="data set, scenes")
    write_tables(root, [common_rows(), *recorded])
    (root / VERSION / "splits.json").write_text(json.dumps(splits, indent=2) + "\n", encoding="utf-8")


def _recorded(root: Path, parameters: dict[str, Any], jobs: list[tuple[str, int]], processes: int) -> Iterator[Rows]:
    """The rows of each scene, in the order of the scenes."""
    work = partial(_record, root, parameters)
    if processes == 1 or len(jobs) == 1:
        yield from map(work, jobs)
        return
    # A fork has imported everything; elsewhere than on Linux it is not safe.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(min(processes, len(jobs)), mp_context=context) as pool:
        yield from pool.map(work, jobs)


def _record(root: Path, parameters: dict[str, Any], job: tuple[str, int]) -> Rows:
    split, number = job
    width, height = parameters["image_size"]
    return record(
        root, make_recording(split, number, parameters["seed"], parameters["samples"], (width, height), _AZIMUTHS)
    )
