"""`attnzoo gpu`: its phases on a CPU, and what it does with those that die or take too long."""

import json
import sys
import time
from types import SimpleNamespace

import interpreters
import pytest
import quick_interpreter

from attnzoo.kernels import _measured
from attnzoo.tools import cli, gpu_check
from attnzoo.tools.measuring.gpu.results import Results
from attnzoo.tools.measuring.operators import OPERATORS


@pytest.mark.long
def test_dry_run_walks_through_every_phase(tmp_path):
    out = tmp_path / "gpu"
    code = f"""
import runpy, sys
runpy.run_path({quick_interpreter.__file__!r})["replace"]()
from attnzoo.tools.cli import main
sys.exit(main(["gpu", "--dry-run", "--deadline", "900", "--out", {str(out)!r}]))
"""
    done = interpreters.run(code)
    log = (out / "log.txt").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + log
    results = Results(out)
    assert {row["phase"] for row in results.read("phase")} == {phase.name for phase in gpu_check.PHASES}
    assert not [row for row in results.read() if row.get("failed") or "unfinished" in row], log
    # What needs a GPU says that it was passed over.
    assert [row["kind"] for row in results.read() if "skipped" in row and row["kind"] != "tests"] == [
        "mmcv",
        "counters",
    ]
    (tests,) = results.read("tests")
    assert tests["passed"] == 1 and tests["failed"] == {}
    for kind in ("error", "time"):
        rows = results.read(kind)
        assert {row["dtype"] for row in rows} == {"float16", "float32"}
    assert {row["operator"] for row in results.read("error")} == set(OPERATORS)
    assert all(row["runs_alike"] for row in results.read("error"))
    assert {row["form"] for row in results.read("time")} == {
        "triton",
        "twin",
        "sdpa",
        "definition",
        "compiled definition",
    }
    assert len(results.read("sweep")) == 2 and len(results.read("step")) == 3
    (card,) = _measured.read(out / "measured.json")
    kinds = {(record.operator, record.dtype, record.pass_) for record in card.records}
    # One of each folder: of large-kernel attention the depth-wise convolution.
    assert len(kinds) == 6 * 2 * 2 == len(card.records)
    table = (out / "table.txt").read_text()
    assert table.strip() in done.stdout and "1 passed, 0 failed" in table and "BiFormer-S stage 1" in table


@pytest.fixture
def phases(monkeypatch, tmp_path):
    """Runs functions as phases, which fork this process: they compute nothing."""

    def run(deadline, **functions):
        made = [gpu_check.Phase(name, 100, f"made:{name}") for name in functions]
        monkeypatch.setattr(gpu_check, "PHASES", tuple(made))
        monkeypatch.setitem(sys.modules, "attnzoo.tools.measuring.gpu.made", SimpleNamespace(**functions))
        code = cli.main(["gpu", "--dry-run", "--out", str(tmp_path / "out"), "--deadline", str(deadline)])
        return code, Results(tmp_path / "out")

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return run


def _crash(context):
    import os
    import signal

    context.results.add("before", value=1)
    os.kill(os.getpid(), signal.SIGKILL)


def _fail(context):
    raise RuntimeError("out of luck")


def _hang(context):
    import subprocess

    subprocess.Popen(["sleep", "1000"])
    time.sleep(1000)


def _work(context):
    context.results.add("after", left=context.left)


def test_a_phase_that_dies_or_hangs_is_told_and_the_next_one_starts(phases, capfd):
    begin = time.monotonic()
    code, results = phases(4, crash=_crash, fail=_fail, hang=_hang, work=_work)
    assert time.monotonic() - begin < 30
    assert results.read("before") and 0 < results.read("after")[0]["left"] <= 1
    told = [(row["phase"], row.get("failed", "")) for row in results.read("phase")]
    assert told == [
        ("crash", "ended with -9: see log.txt"),
        ("fail", "RuntimeError: out of luck"),
        ("fail", "ended with 1: see log.txt"),
        ("hang", "out of time"),
        ("work", ""),
    ]
    assert "out of luck" in (results.folder / "log.txt").read_text()
    # Nothing was measured, and nothing is claimed.
    assert code == 0 and not (results.folder / "measured.json").exists()
    assert "hang: out of time" in capfd.readouterr().out


def test_a_test_that_failed_is_the_exit_code(phases):
    def tests(context):
        context.results.add("tests", tests=3, skipped=1, passed=1, failed={"a::b": "why"})

    code, results = phases(1000, tests=tests)
    assert code == 1
    assert "tests: 1 passed, 1 failed, 1 skipped\n  a::b: why" in (results.folder / "table.txt").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "full"], "holds files: name a new folder"),
        (["--out", "new", "--deadline", "0"], "--deadline must be above 0, got 0"),
        (["--out", "new", "--phases", "nap"], "invalid choice: 'nap'"),
        (["--out", "new"], "this machine has no GPU that PyTorch can use; --dry-run"),
    ],
)
def test_wrong_arguments(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu_check, "_has_gpu", lambda: False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    try:
        code = cli.main(["gpu", *arguments])
    except SystemExit as stop:
        code = stop.code
    assert code == 2 and said in capsys.readouterr().err
    assert (tmp_path / "full" / "mine.txt").read_text() == "kept" and not (tmp_path / "new").exists()


def test_results_outlive_a_line_that_was_cut_off(tmp_path):
    results = Results(tmp_path)
    assert results.read() == []
    results.add("time", ms=1.5)
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "time", "ms": 2})[:-3])
    assert results.read("time") == [{"kind": "time", "ms": 1.5}]
