"""The comparison of plug-in attention: what is run, what is kept, and what the table says."""

import json
from functools import partial

import interpreters
import pytest

from attnzoo.tools import cli
from attnzoo.tools.common.errors import UserError
from attnzoo.tools.common.files import write_json
from attnzoo.tools.comparing import processes
from attnzoo.tools.comparing.comparison import compare
from attnzoo.tools.comparing.results import table
from attnzoo.tools.comparing.settings import CONFIG, METRIC, STAGES
from attnzoo.tools.config.loading import load_config
from attnzoo.tools.data import digits


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Runs that need no training: a seed's score, 0.01 better with ELA, and one of them may fail."""
    done = []

    def worker(name, seed, folder, data_root, settings):
        if not processes.has_settings(folder, settings):
            write_json(folder / "settings.json", settings)
        if (name, seed) == getattr(worker, "broken", None):
            raise UserError(f"{name}, seed {seed}, failed")
        done.append((name, seed))
        score = 0.5 + 0.1 * seed + (0.01 if name == "ela" else 0.0)
        result = {"metric": score, "metrics": {METRIC: score}, "parameters": 1000}
        result |= {"attention_parameters": 10 * (name == "ela"), "cpu_seconds_of_training": 3.0}
        write_json(folder / "result.json", result)
        return result

    monkeypatch.setattr(processes, "_run_one", worker)
    monkeypatch.setattr(digits, "build", lambda root: type("Data", (), {"root": root}))
    worker.done = done
    return worker


def test_mean_spread_and_difference(fake, tmp_path, capsys):
    assert cli.main(["compare", "--out", str(tmp_path), "--modules", "ela", "--jobs", "1"]) == 0
    results = json.loads((tmp_path / "comparison.json").read_text())
    none, ela = results["rows"]
    assert none["values"] == pytest.approx([0.5, 0.6, 0.7]) and none["difference"] == 0
    assert (none["mean"], none["spread"]) == (pytest.approx(0.6), pytest.approx(0.1))
    # The seeds differ by far more than the modules: seed by seed, the difference has no spread.
    assert (ela["difference"], ela["difference_spread"]) == (pytest.approx(0.01), pytest.approx(0, abs=1e-9))
    assert len(results["runs"]) == 6 and results["machine"]["cpu"] and results["versions"]["torch"]
    printed = capsys.readouterr().out
    assert "ela         0.610 ± 0.100    +0.010 ± 0.000" in printed and "0.510 0.610 0.710" in printed


def test_finished_runs_are_kept(fake, tmp_path):
    fake.broken = ("ela", 1)
    with pytest.raises(UserError, match="ela, seed 1"):
        compare(tmp_path, ["ela"], [0, 1])
    assert not (tmp_path / "comparison.json").exists()
    first, fake.broken = list(fake.done), None
    compare(tmp_path, ["ela"], [0, 1])
    assert sorted(fake.done) == [("ela", 0), ("ela", 1), ("none", 0), ("none", 1)] and len(first) < 4
    compare(tmp_path, ["ela"], [0, 1])
    assert len(fake.done) == 4
    with pytest.raises(UserError, match=r"none/seed_0: holds a run of other settings: --overwrite removes it"):
        compare(tmp_path, ["ela"], [0, 1], options={"train_cfg.max_epochs": 3})
    assert len(fake.done) == 4
    more = ["--seeds", "0", "1", "--jobs", "1", "--overwrite", "--cfg-options", "train_cfg.max_epochs=3"]
    assert cli.main(["compare", "--out", str(tmp_path), "--modules", "ela", *more]) == 0
    assert len(fake.done) == 8, "other settings are other runs"


def test_a_half_finished_run_of_other_settings_is_removed(monkeypatch, tmp_path):
    monkeypatch.setattr(processes, "_WORKER", "import sys; print(sys.argv[1]); sys.exit('no luck')")
    folder = tmp_path / "run"
    write_json(folder / "settings.json", {"options": {"old": 1}})
    (folder / "epoch_1.pth").write_text("weights of another schedule")
    with pytest.raises(UserError, match=r"ela, seed 3, failed: no luck; .*log\.txt"):
        processes._run_one("ela", 3, folder, tmp_path, {"options": {"a": 1}})
    assert not (folder / "epoch_1.pth").exists()
    given = json.loads((folder / "log.txt").read_text().splitlines()[0])
    assert (given["module"], given["seed"], given["options"]) == ("ela", 3, {"a": 1})
    (folder / "epoch_1.pth").write_text("weights of this one")
    with pytest.raises(UserError, match="no luck"):
        processes._run_one("ela", 3, folder, tmp_path, {"options": {"a": 1}})
    assert (folder / "epoch_1.pth").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--modules", "elo"], "no module 'elo'; did you mean ela"),
        (["--modules", "ela", "ela"], "given twice"),
        (["--seeds", "0", "0"], "given twice"),
        (["--seeds", "-1"], "not negative"),
        (["--jobs", "-1"], "--jobs must be positive"),
        (["--cfg-options", "nonsense"], "key=value"),
    ],
)
def test_bad_arguments(fake, tmp_path, capsys, arguments, message):
    assert cli.main(["compare", "--out", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not fake.done


def test_the_config_is_the_detector_without_attention():
    backbone = load_config(CONFIG).model.backbone
    assert backbone.type == "attnzoo.Backbone" and "attention" not in backbone
    assert tuple(backbone.out_indices) == STAGES


def forked(command, *, stdin, stdout, stderr, env):
    """As `subprocess.run` starts a worker, in a process that has the libraries at hand."""
    _, _, code, given = command
    code = f"import sys; sys.argv[1:] = [{given!r}]\n{code}"
    done = interpreters.run(code, env=env, imports=interpreters.TRAINING)
    stdout.write(done.stdout + done.stderr)
    return done


@pytest.mark.long
def test_two_runs_of_one_iteration(tmp_path, monkeypatch):
    monkeypatch.setattr(processes.subprocess, "run", forked)
    monkeypatch.setattr(digits, "build", partial(digits.build, train_images=8, val_images=2))
    results = compare(tmp_path, ["ela"], [0], options={"train_cfg.max_epochs": 1})
    none, ela = results["rows"]
    assert 0 <= none["mean"] <= 1 and none["spread"] is None
    # 7 taps and 2 numbers of the norm for each channel.
    assert ela["attention_parameters"] == ela["parameters"] - none["parameters"] == 9 * (32 + 64 + 128)
    assert "±" not in table(results).split("\n", 1)[1]
    assert not list(tmp_path.rglob("*.pth"))
