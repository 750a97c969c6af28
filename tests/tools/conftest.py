"""Two models trained once for all tests of the commands."""

import ast
import functools
import logging
import shutil
from types import SimpleNamespace

import mmengine.dataset.base_dataset
import mmengine.runner.runner
import pytest
import torch
import yapf.yapflib.yapf_api
from tools_helpers import DETECTOR, HUES, SEGMENTOR, make_data, paint, write_config

from attnzoo.tools import cli

# mmengine's loggers outlive the captured stdout of the test that made them.
logging.raiseExceptions = False


def _unformatted(text, **options):
    ast.parse(text)  # yapf raises, too, for what is no Python
    return text, True


@pytest.fixture(scope="session", autouse=True)
def quick_starts():
    """Take from the start of a run what is the same each time."""
    with pytest.MonkeyPatch.context() as patch:
        # A run makes the text of its config six times, and to lay it out takes half a second.
        patch.setattr(yapf.yapflib.yapf_api, "FormatCode", _unformatted)
        patch.setattr(mmengine.runner.runner, "collect_env", functools.cache(mmengine.runner.runner.collect_env))
        # A collection whenever a data set is built.
        patch.setattr(mmengine.dataset.base_dataset, "gc", SimpleNamespace(collect=int))
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
