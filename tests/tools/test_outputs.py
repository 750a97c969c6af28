"""No command replaces or removes what is not its own: neither files that it reads nor files that it finds."""

import json
import os
import shutil

import pytest
from tools_helpers import SEGMENTOR, contents, refused, write_config

from attnzoo.tools import card, cli
from attnzoo.tools.common import files, locks
from attnzoo.tools.common.errors import UserError
from attnzoo.tools.comparing import processes as comparing
from attnzoo.tools.comparing.comparison import compare
from attnzoo.tools.data import digits
from attnzoo.tools.demonstration import processes as demonstration
from attnzoo.tools.demonstration.demo import demo
from attnzoo.tools.measuring import models


@pytest.fixture
def place(data, tmp_path, monkeypatch):
    write_config(tmp_path / "config.py", SEGMENTOR, data)
    (tmp_path / "model.pth").write_text("weights")
    for name in ("mine.onnx", "mine.json", "mine.png", "result.json"):
        (tmp_path / name).write_text("years of work")
    (tmp_path / "alias.onnx").symlink_to("model.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "config.py", "model.pth", "--out", "mine.onnx"], "mine.onnx: is there already"),
        (["export", "config.py", "model.pth", "--out", "alias.onnx", "--overwrite"], "alias.onnx: is read by"),
        (["export", "config.py", "model.pth", "--out", "a.onnx", "--image", "a.onnx"], "a.onnx: is read by"),
        (["test", "config.py", "model.pth", "--out", "mine.json"], "mine.json: is there already"),
        (["test", "config.py", "model.pth", "--out", "model.pth", "--overwrite"], "model.pth: is read by"),
        (["bench", "models", "van_b0", "--json", "mine.json"], "mine.json: is there already"),
        (["bench", "models", "van_b0", "--plot", "mine.png"], "mine.png: is there already"),
        (["bench", "kernels", "--json", "mine.json"], "mine.json: is there already"),
        (["probe", "test_resnet", "--digits", "--out", "."], "result.json: is there already"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_files_that_are_there_or_read(place, capsys, arguments, said):
    assert said in refused(capsys, *arguments, folder=place)


@pytest.mark.long
def test_probing_with_overwrite_replaces_its_own_names(place):
    arguments = ["probe", "test_resnet", "--digits", "--out", ".", "--epochs", "1", "--seeds", "0", "--overwrite"]
    assert cli.main([*arguments, "--pooling", "mean"]) == 0
    assert json.loads((place / "result.json").read_text())["rows"]
    assert (place / "mine.json").read_text() == "years of work"


def test_bench_with_overwrite(place, monkeypatch, capsys):
    monkeypatch.setattr(models, "measure", lambda names, args: [])
    monkeypatch.setattr(models, "table", lambda rows: "")
    assert cli.main(["bench", "models", "van_b0", "--json", "mine.json", "--overwrite"]) == 0
    assert json.loads((place / "mine.json").read_text())["results"] == []


@pytest.mark.long
def test_a_card_that_is_not_ours(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(card, "CARD_ROOT", tmp_path)
    monkeypatch.setattr(models, "multiply_adds", lambda *_: 0)
    (tmp_path / "van.md").write_text("# my van")
    assert "van.md: was not written by this command" in refused(capsys, "card", "van", "--write", folder=tmp_path)
    (tmp_path / "van.md").write_text(f"# van\n\n{card.STAMP}\n")
    assert cli.main(["card", "van", "--write"]) == 0
    assert "van_b0" in (tmp_path / "van.md").read_text()


@pytest.mark.parametrize("command", ["demo", "compare"])
def test_folders_that_hold_something_else(tmp_path, capsys, command):
    (tmp_path / "results.json").write_text("mine")
    said = refused(capsys, command, "--out", tmp_path, folder=tmp_path)
    assert f"holds 'results.json', and nothing says that 'attnzoo {command}' wrote it" in said


@pytest.mark.parametrize("arguments", [["demo", "--quick"], ["demo", "--quick", "--data-only"], ["compare"]])
def test_a_data_set_of_the_users_own(tmp_path, capsys, arguments):
    for name in ("data/train/a.jpg", "data/val/b.jpg", "data/annotations/instances_train.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    before = contents(tmp_path)
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 2
    assert "data" in capsys.readouterr().err
    assert {name: content for name, content in contents(tmp_path).items() if name != files.STAMP} == before


@pytest.mark.parametrize(("command", "run"), [("demo", demo), ("compare", compare)])
def test_two_at_once(tmp_path, command, run):
    with locks.locked(tmp_path / locks.LOCK, "it"), pytest.raises(UserError, match=f"process {os.getpid()} on"):
        run(tmp_path)
    assert contents(tmp_path) == {}


def test_the_demo_can_be_repeated_in_its_folder(tmp_path, monkeypatch, capsys):
    """What the user has put beside its files stays."""
    monkeypatch.setattr(demonstration, "_WORKER", "raise SystemExit('out of luck')")
    for _ in range(2):
        assert cli.main(["demo", "--quick", "--out", str(tmp_path)]) == 2
        assert "out of luck" in capsys.readouterr().err
        (tmp_path / "detector" / "notes.txt").write_text("mine")
        (tmp_path / "notes.txt").write_text("mine")
    assert (tmp_path / "detector" / "notes.txt").read_text() == (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / locks.LOCK).exists()


@pytest.mark.slow
def test_the_quick_demo_twice(tmp_path):
    assert cli.main(["demo", "--quick", "--out", str(tmp_path)]) == 0
    assert cli.main(["demo", "--quick", "--out", str(tmp_path), "--overwrite"]) == 0
    assert len([path for path in (tmp_path / "detector").iterdir() if path.is_dir() and path.name[0].isdigit()]) == 2


def test_a_run_of_other_settings_loses_nothing_of_the_users(tmp_path, monkeypatch):
    monkeypatch.setattr(comparing, "_WORKER", "import sys; sys.exit('no luck')")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "epoch_1.pth").write_text("of another program")
    with pytest.raises(UserError, match="run: holds something else than a run of this comparison"):
        comparing._run_one("ela", 3, folder, tmp_path, {"options": {"a": 1}})
    assert contents(tmp_path) == {"run/epoch_1.pth": b"of another program"}

    files.write_json(folder / "settings.json", {"options": {"old": 1}})
    (folder / "my_model.pth").write_text("mine")
    with pytest.raises(UserError, match="no luck"):
        comparing._run_one("ela", 3, folder, tmp_path, {"options": {"a": 1}})
    assert sorted(contents(folder)) == ["log.txt", "my_model.pth", "settings.json"]


def test_data_of_the_demo_is_replaced_by_that_of_another_seed(tmp_path):
    """As it was written by the demo itself."""
    digits.build(tmp_path / "data", train_images=3, val_images=1)
    assert cli.main(["demo", "--quick", "--data-only", "--out", str(tmp_path), "--seed", "1"]) == 0
    shutil.copy(tmp_path / "data" / "train" / "000000.png", tmp_path / "data" / "train" / "copy.png")
    before = contents(tmp_path)
    assert cli.main(["demo", "--quick", "--data-only", "--out", str(tmp_path), "--seed", "2"]) == 2
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["best_mine_epoch_50.pth", "epoch_1.pth", "model.onnx"])
def test_the_demo_removes_no_model_unasked(tmp_path, capsys, name):
    files.claim(tmp_path, "attnzoo demo")
    (tmp_path / "detector").mkdir()
    (tmp_path / "detector" / name).write_text("mine")
    before = contents(tmp_path)
    assert cli.main(["demo", "--quick", "--out", str(tmp_path)]) == 2
    assert f"detector: holds {name}: --overwrite removes it" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_data_alone_are_built_in_no_folder_of_others(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert cli.main(["demo", "--quick", "--data-only", "--out", str(tmp_path)]) == 2
    assert "holds 'notes.txt', and nothing says that 'attnzoo demo' wrote it" in capsys.readouterr().err
    assert contents(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.long
def test_commands_look_at_what_their_metrics_write(trained, place, capsys):
    """Before a model is built or a file is written."""
    config, checkpoint = trained["detector"]
    (place / "mine.bbox.json").write_text("years of work")
    for command, arguments in (("train", [config]), ("test", [config, checkpoint])):
        options = ["--cfg-options", "val_evaluator.outfile_prefix=mine", "test_evaluator.outfile_prefix=mine"]
        said = refused(capsys, command, *arguments, "--work-dir", "work", *options, folder=place)
        assert "mine.bbox.json: is there already" in said
