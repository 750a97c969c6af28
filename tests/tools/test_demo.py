import json
import subprocess
import sys

import onnx
import pytest
from PIL import Image

from attnzoo.tools import cli, demo
from attnzoo.tools.common.errors import UserError
from attnzoo.tools.common.files import STAMP
from attnzoo.tools.config.loading import load_config


def reports(ap50=0.9, miou=90.0):
    metrics = {"detector": {"coco/bbox_mAP_50": ap50}, "segmentor": {"mIoU": miou}}
    onnx_report = {"path": "m.onnx", "bytes": 2**20, "compared": 9, "largest_difference": {"labels": 0.0}}
    return {
        name: {"metrics": values, "onnx": onnx_report, "checkpoint": "m.pth", "parameters": 10**6, "seconds": {}}
        for name, values in metrics.items()
    }


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from strings(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from strings(part)


@pytest.mark.parametrize("task", demo.TASKS, ids=lambda task: task.name)
def test_one_data_root_moves_all_data(task):
    plain, moved = load_config(task.config), load_config(task.config, {"data_root": "/elsewhere"})
    old = [text for text in strings(plain.to_dict()) if text.startswith(plain.data_root)]
    new = [text for text in strings(moved.to_dict()) if text.startswith("/elsewhere/")]
    assert len(new) == len(old) >= 4
    assert not [text for text in strings(moved.to_dict()) if text.startswith(plain.data_root)]


@pytest.mark.parametrize(
    ("values", "seconds", "missed"),
    [
        ({}, 400.0, []),
        ({"ap50": 0.80, "miou": 85.0}, 600.0, []),
        ({"ap50": 0.799}, 400.0, ["box AP50"]),
        ({"miou": 84.99}, 400.0, ["mIoU"]),
        ({"ap50": 0.1, "miou": 20.0}, 601.0, ["box AP50", "mIoU", "seconds"]),
    ],
    ids=["well", "just", "detector", "segmentor", "all"],
)
def test_goals_are_claimed_only_if_reached(tmp_path, values, seconds, missed):
    results = demo._results(reports(**values), {"all": seconds}, False, 0, 2, 1)
    assert results["reached"] == (not missed)
    rows = demo._table(results, tmp_path).splitlines()
    assert [row.split("  ")[0].startswith(tuple(missed)) for row in rows if row.endswith(" NO")] == [True] * len(missed)
    assert (rows[-1] == "all goals reached.") == (not missed)
    assert all(name in rows[-1] for name in missed)


def test_nothing_detected_is_a_score_of_zero():
    found = reports()
    found["detector"]["metrics"] = {}
    results = demo._results(found, {"all": 1.0}, False, 0, 2, 1)
    assert not results["reached"] and results["goals"][0]["value"] == 0


@pytest.mark.parametrize(("reached", "code"), [(True, 0), (False, 1)])
def test_exit_code(monkeypatch, tmp_path, reached, code):
    monkeypatch.setattr(demo, "demo", lambda *_: {"reached": reached})
    assert cli.main(["demo", "--out", str(tmp_path)]) == code


def test_failing_model_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(demo, "_WORKER", "raise SystemExit('out of luck')")
    assert cli.main(["demo", "--quick", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "detector failed: out of luck" in error and "log.txt" in error
    assert not (tmp_path / "results.json").exists()


def test_a_log_that_cannot_be_written_stops_no_worker(tmp_path, monkeypatch):
    """Its output is read on, or it would wait for ever when the pipe is full."""
    code = "print('$' * 100_000); print('last'); import sys; sys.exit(3)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    demo._follow(demo.TASKS[0], process, tmp_path / "no" / "folder.txt")
    assert process.wait(timeout=60) == 3
    process.stdout.close()


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


def test_negative_seed(tmp_path):
    with pytest.raises(UserError, match="--seed"):
        demo.run(demo_arguments("--seed=-1", "--out", str(tmp_path)))


def demo_arguments(*given):
    import argparse

    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return parser.parse_args(given)


def test_data_only(tmp_path, capsys):
    assert cli.main(["demo", "--quick", "--data-only", "--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [STAMP, "data"]
    assert str(tmp_path / "data") in capsys.readouterr().out


def test_progress_lines():
    head = "11/21 11:36:59 - mmengine - INFO - "
    train = (
        "Epoch(train) [2][ 50/150]  base_lr: 1.5e-03 lr: 1.5e-03  eta: 0:11:14  time: 1.4  grad_norm: 2.2  loss: 0.8028"
    )
    assert demo._progress(head + train) == "epoch 2,  50/150  loss 0.803  0:11:14 to go"
    val = "Epoch(val) [2][25/25]    coco/bbox_mAP: 0.6130  coco/bbox_mAP_50: 0.7850  time: 0.1"
    assert demo._progress(head + val) == "held out: coco/bbox_mAP_50: 0.7850"
    assert demo._progress(head + "load from local path") is None


def test_quick_demo_runs_every_step(tmp_path, capfd):
    assert cli.main(["demo", "--quick", "--out", str(tmp_path)]) == 0
    shown = capfd.readouterr().out
    for task in demo.TASKS:
        for command in ("train", "test", "predict", "export"):
            assert f"$ attnzoo {command} {task.config}" in shown
        assert (tmp_path / task.name / "epoch_1.pth").is_file()
        onnx.checker.check_model(str(tmp_path / task.name / "model.onnx"))
        with Image.open(tmp_path / task.sheet) as sheet:
            assert sheet.width > 1500
    assert "not asked (--quick)" in shown and "all goals reached" not in shown
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["quick"] and not results["reached"]
    assert set(results["seconds"]) >= {"data", "detector: train", "segmentor: export", "all"}
    assert results["machine"]["cpu"] and results["versions"]["torch"]


@pytest.mark.slow
def test_full_demo_reaches_its_goals(tmp_path):
    assert cli.main(["demo", "--out", str(tmp_path)]) == 0
    values = [goal["value"] for goal in json.loads((tmp_path / "results.json").read_text())["goals"]]
    assert values[0] >= 0.80 and values[1] >= 0.85 and values[2] <= 600
