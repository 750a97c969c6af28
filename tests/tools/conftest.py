"""Two models trained once for all tests of the commands."""

import logging
import shutil

import pytest
import quick_mm
import torch
from tools_helpers import DETECTOR, HUES, SEGMENTOR, make_data, paint, write_config

from attnzoo.tools import cli

# mmengine's loggers outlive the captured stdout of the test that made them.
logging.raiseExceptions = False


@pytest.fixture(scope="session", autouse=True)
def quick_starts():
    with pytest.MonkeyPatch.context() as patch:
        quick_mm.replace(patch.setattr)
        yield


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("squares") / "data")


@pytest.fixture(scope="session")
def trained(data, tmp_path_factory):
    """Train both models by the command line; give the config and the last checkpoint of each by its name."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    runs = {}
    for name, text, epochs in (("detector", DETECTOR, 8), ("segmentor", SEGMENTOR, 8)):
        config = write_config(folder / f"{name}.py", text, data, epochs)
        assert cli.main(["train", str(config), "--work-dir", str(folder / name)]) == 0
        runs[name] = (config, folder / name / f"epoch_{epochs}.pth")
    return runs


@pytest.fixture
def place(data, tmp_path, monkeypatch):
    """A folder of one's own with a copy of the data and the configs of both models, as the working directory."""
    shutil.copytree(data, tmp_path / "data")
    write_config(tmp_path / "detector.py", DETECTOR, tmp_path / "data")
    write_config(tmp_path / "segmentor.py", SEGMENTOR, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def folder(tmp_path):
    """Images of three classes in folders by class."""
    for seed, (name, hue) in enumerate(HUES.items()):
        paint(tmp_path / "images" / name, hue, 10, seed)
    return tmp_path / "images"
