"""nuScenes' tables, read from their public layout (Caesar et al., 2020, https://arxiv.org/abs/1903.11027).

    DATAROOT/VERSION/*.json    the tables
    DATAROOT/samples/          images and point clouds of key frames
    DATAROOT/sweeps/           those between

A row of a table is its number in the file, of those that are kept. Tables are read when they are first needed.
"""

import os
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ...arguments import check_bool, check_text
from .classes import ATTRIBUTES, CLASS_OF_CATEGORY
from .records import Field, Table
from .splits import is_official, split_scenes

# A row, or an array of rows.
Index: TypeAlias = int | np.ndarray

_FIELDS: dict[str, tuple[Field, ...]] = {
    "scene": (
        Field("name", "text"),
        Field("first_sample_token", "reference", table="sample"),
        Field("nbr_samples", "integer"),
        Field("log_token", "reference", table="log"),
    ),
    "log": (),
    "map": (Field("category", "text"), Field("filename", "text"), Field("log_tokens", "token_set")),
    "sample": (
        Field("timestamp", "integer"),
        Field("scene_token", "reference", table="scene"),
        Field("prev", "reference", table="sample", optional=True),
        Field("next", "reference", table="sample", optional=True),
    ),
    "sensor": (Field("channel", "text"),),
    "calibrated_sensor": (
        Field("sensor_token", "reference", table="sensor"),
        Field("translation", "numbers", 3),
        Field("rotation", "numbers", 4),
        Field("camera_intrinsic", "matrix"),
    ),
    "ego_pose": (Field("translation", "numbers", 3), Field("rotation", "numbers", 4)),
    "sample_data": (
        Field("sample_token", "reference", table="sample"),
        Field("ego_pose_token", "reference", table="ego_pose"),
        Field("calibrated_sensor_token", "reference", table="calibrated_sensor"),
        Field("timestamp", "integer"),
        Field("is_key_frame", "flag"),
        Field("filename", "text"),
    ),
    "category": (Field("name", "text"),),
    "attribute": (Field("name", "text"),),
    "instance": (Field("category_token", "reference", table="category"),),
    "sample_annotation": (
        Field("sample_token", "reference", table="sample"),
        Field("instance_token", "reference", table="instance"),
        Field("attribute_tokens", "references", table="attribute"),
        Field("translation", "numbers", 3),
        Field("size", "numbers", 3),
        Field("rotation", "numbers", 4),
        Field("prev", "reference", table="sample_annotation", optional=True),
        Field("next", "reference", table="sample_annotation", optional=True),
        Field("num_lidar_pts", "integer"),
        Field("num_radar_pts", "integer"),
    ),
}
# Of `sample_data`, where sweeps are kept.
_SWEEP = Field("prev", "reference", table="sample_data", optional=True)
_REFERENCES = {
    **{(name, field.name): field.table for name, fields in _FIELDS.items() for field in fields if field.table},
    ("sample_data", _SWEEP.name): _SWEEP.table,
}


class NuScenes:
    """A version of nuScenes, or a data set in its layout.

    Args:
        dataroot: The folder with the versions' folders and `samples`.
        version: A folder of tables, as `v1.0-trainval` or `v1.0-mini`.
        sweeps: Whether records of sensors between the key frames are kept too. Of the whole data set these are ten
            times as many.

    Raises:
        TypeError: An argument of another type.
        FileNotFoundError: There is no such folder.

    All its methods raise a FileNotFoundError where a table is missing, and a ValueError where a row lacks a field, a
    field holds something else, or a token points nowhere, with the file, the row's token and the field.
    """

    def __init__(self, dataroot: str | os.PathLike, version: str, sweeps: bool = False) -> None:
        check_text("version", version)
        check_bool("sweeps", sweeps)
        self.dataroot = Path(dataroot)
        self.folder = self.dataroot / version
        self.has_sweeps = sweeps
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder}: there is no such folder of nuScenes tables")
        self._tables: dict[str, Table] = {}

    def table(self, name: str) -> Table:
        """A table by its name, as `sample_annotation`."""
        if name not in self._tables:
            fields = _FIELDS[name]
            keep: Callable[[dict], bool] | None = None
            if name == "sample_data":
                if self.has_sweeps:
                    fields += (_SWEEP,)
                else:
                    keep = _is_key_frame
            elif name == "ego_pose":
                # There is one for each record of a sensor, whether that was kept or not.
                keep = _is_one_of(self.table("sample_data")["ego_pose_token"])
            self._tables[name] = Table(self.folder / f"{name}.json", fields, keep)
        return self._tables[name]

    def rows(self, table: str, reference: str) -> np.ndarray:
        """A column of references, as `Table.resolve` gives it."""
        return self.table(table).resolve(reference, self.table(_REFERENCES[table, reference]))

    @cached_property
    def scenes(self) -> list[str]:
        """The names of the scenes, in the order of the table."""
        return [name.decode() for name in self.table("scene")["name"]]

    def scene_rows(self, split: str | Sequence[str]) -> list[int]:
        """The rows of scenes.

        Args:
            split: As of `splits.split_scenes`, or names of scenes.

        Returns:
            In the order of the split. Of an official split those that the tables have: a data set may be a part.

        Raises:
            ValueError: A scene that is named is not in the tables, or none is, or one comes twice.
        """
        names = split_scenes(split, self.folder) if isinstance(split, str) else list(split)
        rows = {name: row for row, name in enumerate(self.scenes)}
        missing = [name for name in names if name not in rows]
        path = self.table("scene").path
        in_parts = isinstance(split, str) and is_official(split, self.folder) and len(missing) < len(names)
        if missing and not in_parts:
            raise ValueError(f"{path}: has no scene {missing[0]!r} (of the split {split!r:.80})")
        if not names:
            raise ValueError(f"the split {split!r:.80} has no scenes")
        if len(set(names)) < len(names):
            raise ValueError(f"the split {split!r:.80} has a scene twice")
        return [rows[name] for name in names if name in rows]

    def samples(self, split: str | Sequence[str]) -> np.ndarray:
        """The samples (N,) of a split, scene by scene, in the order of time."""
        return np.concatenate([self.scene_samples(row) for row in self.scene_rows(split)])

    def scene_samples(self, scene: int) -> np.ndarray:
        """The samples (N,) of a scene, in the order of time.

        Raises:
            ValueError: Their chain has another length than the scene says, or leaves the scene.
        """
        table, following = self.table("scene"), self.rows("sample", "next")
        count, row = int(table["nbr_samples"][scene]), int(self.rows("scene", "first_sample_token")[scene])
        chain: list[int] = []
        while row >= 0 and len(chain) <= count:
            chain.append(row)
            row = int(following[row])
        samples = np.array(chain)
        if len(chain) != count or (self.rows("sample", "scene_token")[samples] != scene).any():
            raise table.error(
                table.token(scene), f"nbr_samples is {count}, and so many samples of the scene must be linked by next"
            )
        return samples

    @cached_property
    def channels(self) -> list[str]:
        """The names of the sensors, in the order of the table."""
        return [name.decode() for name in self.table("sensor")["channel"]]

    @cached_property
    def _key_frames(self) -> np.ndarray:
        """(samples, channels): rows of `sample_data`, -1 where there is none."""
        rows = np.full((len(self.table("sample")), len(self.channels)), -1)
        key = np.flatnonzero(self.table("sample_data")["is_key_frame"])
        rows[self.rows("sample_data", "sample_token")[key], self.sensor_channels(key)] = key
        return rows

    def sensor_channels(self, records: Index) -> np.ndarray:
        """Of records (...) of sensors the indices (...) in `channels`."""
        return self.rows("calibrated_sensor", "sensor_token")[
            self.rows("sample_data", "calibrated_sensor_token")[records]
        ]

    def key_frames(self, samples: Index, channel: str) -> np.ndarray:
        """The records (...) of a sensor at samples (...): rows of `sample_data`.

        Raises:
            ValueError: There is no such sensor, or it has no record at a sample.
        """
        if channel not in self.channels:
            known = ", ".join(self.channels)
            raise ValueError(f"{self.table('sensor').path}: has no channel {channel!r}; there are {known}")
        rows = self._key_frames[samples, self.channels.index(channel)]
        if (rows < 0).any():
            sample = int(np.ravel(samples)[np.ravel(rows < 0).argmax()])
            token = self.table("sample").token(sample)
            raise ValueError(
                f"{self.table('sample_data').path}: has no key frame of {channel} for the sample {token!r}"
            )
        return rows

    def sweep_chain(self, record: int, count: int) -> list[int]:
        """A record of a sensor and those before it, the newest first, at most `count`.

        Raises:
            ValueError: Sweeps were not kept.
        """
        if not self.has_sweeps:
            raise ValueError("the tables were read without sweeps: NuScenes(..., sweeps=True) has them")
        previous = self.rows("sample_data", "prev")
        chain: list[int] = []
        while record >= 0 and len(chain) < count:
            chain.append(record)
            record = int(previous[record])
        return chain

    def path(self, record: int) -> Path:
        """The file of a record of a sensor."""
        return self.dataroot / self.table("sample_data").text("filename", record)

    def maps(self, scene: int) -> dict[str, Path]:
        """The pictures of the maps of a scene's log, by category, such as `semantic_prior`.

        Args:
            scene: A row of `scene`.
        """
        table = self.table("map")
        log = self.table("log").token(int(self.rows("scene", "log_token")[scene]))
        here = [row for row in range(len(table)) if log in table.text("log_tokens", row).split()]
        return {table.text("category", row): self.dataroot / table.text("filename", row) for row in here}

    @cached_property
    def _annotations(self) -> tuple[np.ndarray, np.ndarray]:
        """The annotations in the order of their samples, and where those of each sample start."""
        samples = self.rows("sample_annotation", "sample_token")
        order = np.argsort(samples, kind="stable")
        return order, np.searchsorted(samples[order], np.arange(len(self.table("sample")) + 1))

    def annotations(self, sample: int) -> np.ndarray:
        """The annotations (N,) of a sample, in the order of the table."""
        order, starts = self._annotations
        return order[starts[sample] : starts[sample + 1]]

    @cached_property
    def categories(self) -> list[str]:
        """The names of the categories, in the order of the table."""
        return [name.decode() for name in self.table("category")["name"]]

    def annotation_categories(self, annotations: np.ndarray) -> np.ndarray:
        """Of annotations (N,) the indices (N,) in `categories`."""
        return self.rows("instance", "category_token")[self.rows("sample_annotation", "instance_token")[annotations]]

    def annotation_labels(self, annotations: np.ndarray, classes: Sequence[str]) -> np.ndarray:
        """Of annotations (N,) the indices (N,) of their detection classes in `classes`; -1 where they have none."""
        labels = [CLASS_OF_CATEGORY.get(name, "") for name in self.categories]
        table = np.array([classes.index(name) if name in classes else -1 for name in labels])
        return table[self.annotation_categories(annotations)]

    def annotation_attributes(self, annotations: np.ndarray) -> np.ndarray:
        """Of annotations (N,) the indices (N,) of their attributes in `classes.ATTRIBUTES`; -1 where they have none.

        Raises:
            ValueError: One has more than one attribute, or one that the detection task does not know.
        """
        table = self.table("sample_annotation")
        rows = self.rows("sample_annotation", "attribute_tokens")[annotations]
        if (rows == -2).any():
            row = int(annotations[int((rows == -2).argmax())])
            raise table.error(table.token(row), "attribute_tokens must hold at most one token")
        names = [name.decode() for name in self.table("attribute")["name"]]
        # The last entry serves -1.
        known = np.array([*(ATTRIBUTES.index(name) if name in ATTRIBUTES else -2 for name in names), -1])
        found = known[rows]
        if (found == -2).any():
            row = int(annotations[int((found == -2).argmax())])
            raise table.error(table.token(row), f"attribute_tokens must point to one of {', '.join(ATTRIBUTES)}")
        return found


@lru_cache(maxsize=4)
def shared_tables(data_root: str, version: str) -> NuScenes:
    """The tables without sweeps, once for the data sets and metrics of a process; errors as of `NuScenes`."""
    return NuScenes(data_root, version)


def _is_key_frame(row: dict) -> bool:
    return row["is_key_frame"] is not False


def _is_one_of(tokens: np.ndarray) -> Callable[[dict], bool]:
    known = set(tokens.tolist())
    return lambda row: row["token"].encode() in known
