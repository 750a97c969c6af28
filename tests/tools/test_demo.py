import json

import pytest
import quick_mm
from PIL import Image

from attnzoo.tools import cli
from attnzoo.tools.common.files import STAMP
from attnzoo.tools.config.loading import load_config
from attnzoo.tools.demonstration import demo, processes
from attnzoo.tools.demonstration.tasks import TASKS


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from strings(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from strings(part)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_one_data_root_moves_all_data(task):
    plain, moved = load_config(task.config), load_config(task.config, {"data_root": "/elsewhere"})
    old = [text for text in strings(plain.to_dict()) if text.startswith(plain.data_root)]
    new = [text for text in strings(moved.to_dict()) if text.startswith("/elsewhere/")]
    assert len(new) == len(old) >= 4
    assert not [text for text in strings(moved.to_dict()) if text.startswith(plain.data_root)]


@pytest.mark.parametrize(("reached", "code"), [(True, 0), (False, 1)])
def test_exit_code(monkeypatch, tmp_path, reached, code):
    monkeypatch.setattr(demo, "demo", lambda *_: {"reached": reached})
    assert cli.main(["demo", "--out", str(tmp_path)]) == code


def test_failing_model_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(processes, "_WORKER", "raise SystemExit('out of luck')")
    assert cli.main(["demo", "--quick", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "detector failed: out of luck" in error and "log.txt" in error
    assert not (tmp_path / "results.json").exists()


def test_out_that_is_a_file(tmp_path, capsys):
    (tmp_path / "taken").write_text("mine")
    assert cli.main(["demo", "--quick", "--out", str(tmp_path / "taken")]) == 2
    assert "--out" in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "mine"


def test_missing_extra_is_named_before_training(monkeypatch, tmp_path, capsys):
    found = demo.find_spec
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    assert cli.main(["demo", "--quick", "--out", str(tmp_path / "new")]) == 2
    assert "onnxruntime: pip install 'attnzoo[all]'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_negative_seed(tmp_path, capsys):
    assert cli.main(["demo", "--seed=-1", "--out", str(tmp_path)]) == 2
    assert "--seed" in capsys.readouterr().err


def test_data_only(tmp_path, capsys):
    assert cli.main(["demo", "--quick", "--data-only", "--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [STAMP, "data"]
    assert str(tmp_path / "data") in capsys.readouterr().out


# Without the time of exports, which test_export.py and the README's commands make.
WORKER = f"""
import inspect, runpy, sys
from pathlib import Path
from attnzoo.tools.demonstration import worker
from attnzoo.tools.exporting.report import ExportReport

export = worker.export

def stand_in(*args, **kwargs):
    given = inspect.signature(export).bind(*args, **kwargs).arguments
    assert Path(given["checkpoint"]).is_file() and Path(given["image"]).is_file() and not given["overwrite"]
    Path(given["out"]).write_bytes(given["cfg"].model.type.encode())
    return ExportReport(Path(given["out"]), 20, {{}}, {{}}, (), Path(given["out"]).stat().st_size)

worker.export = stand_in
runpy.run_path({quick_mm.__file__!r})["replace"]()
worker.work(sys.argv[1])
"""


@pytest.mark.long
def test_quick_demo_runs_every_step(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(processes, "_WORKER", WORKER)
    assert cli.main(["demo", "--quick", "--out", str(tmp_path)]) == 0
    shown = capfd.readouterr().out
    for task in TASKS:
        for command in ("train", "test", "predict", "export"):
            assert f"$ attnzoo {command} {task.config}" in shown
        assert (tmp_path / task.name / "epoch_1.pth").is_file()
        assert (tmp_path / task.name / "model.onnx").is_file()
        with Image.open(tmp_path / task.sheet) as sheet:
            assert sheet.width > 1500
    assert "not asked (--quick)" in shown and "all goals reached" not in shown
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["quick"] and not found["reached"]
    assert set(found["seconds"]) >= {"data", "detector: train", "segmentor: export", "all"}
    assert found["machine"]["cpu"] and found["versions"]["torch"]


@pytest.mark.slow
def test_full_demo_reaches_its_goals(tmp_path):
    assert cli.main(["demo", "--out", str(tmp_path)]) == 0
    values = [goal["value"] for goal in json.loads((tmp_path / "results.json").read_text())["goals"]]
    assert values[0] >= 0.80 and values[1] >= 0.85 and values[2] <= 600
