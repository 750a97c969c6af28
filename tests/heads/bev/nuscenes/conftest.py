"""The golden tables: 7 samples of 2 scenes in nuScenes' layout, without images and point clouds."""

import json
import shutil

import golden_files
import pytest

from attnzoo.heads.bev.nuscenes.tables import NuScenes

TABLES = golden_files.FOLDER / "nuscenes_tables"


@pytest.fixture(scope="session")
def nusc(tmp_path_factory) -> NuScenes:
    """The golden tables, with sweeps; nobody changes them."""
    root = tmp_path_factory.mktemp("nuscenes")
    shutil.copytree(TABLES, root / "v1.0-golden")
    return NuScenes(root, "v1.0-golden", sweeps=True)


@pytest.fixture
def folder(tmp_path):
    """A copy of the golden tables: `tmp_path` is the data root, this the folder of the version `v`."""
    shutil.copytree(TABLES, tmp_path / "v")
    return tmp_path / "v"


@pytest.fixture
def change(folder):
    """A function that changes a table: it calls another with the rows, and writes them."""

    def write(name, function):
        path = folder / f"{name}.json"
        rows = json.loads(path.read_text())
        function(rows)
        path.write_text(json.dumps(rows))

    return write
