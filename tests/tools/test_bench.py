"""`attnzoo bench models`: what it measures, writes and refuses."""

import json

import pytest
import timm
import torch

from attnzoo.tools import cli
from attnzoo.tools.measuring import models

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """One small run with everything, through the command line."""
    folder = tmp_path_factory.mktemp("bench")
    command = ["bench", "models", "van_b0", "test_convnext", "--sizes", "64", "96", "--repeat", "3", "--backward"]
    assert cli.main([*command, "--json", str(folder / "x.json"), "--plot", str(folder / "x.png")]) == 0
    return json.loads((folder / "x.json").read_text()), (folder / "x.png").read_bytes()


def test_measures_every_model_at_every_size(figures):
    report, _ = figures
    rows = report["results"]
    assert [(row["model"], row["size"]) for row in rows] == [
        (name, size) for name in ("van_b0", "test_convnext") for size in (64, 96)
    ]
    for row in rows:
        assert row["parameters"] == sum(p.numel() for p in timm.create_model(row["model"]).parameters())
        for kind in ("forward", "backward"):
            took = row[kind]
            assert len(took["milliseconds"]) == 3
            assert 0 < min(took["milliseconds"]) <= took["q1"] <= took["median"] <= took["q3"]
            assert took["peak_bytes"] > 0
        assert row["forward"]["median"] < row["backward"]["median"]


def test_counts_multiply_adds_at_the_size(figures):
    small, large = (row["multiply_adds"] for row in figures[0]["results"][:2])
    assert 2 < large / small < 2.5  # pixels: 2.25


def test_records_the_conditions(figures):
    report, _ = figures
    assert report["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert (report["threads"], report["batch"], report["repeat"], report["clock"]) == (1, 1, 3, "wall")
    assert report["device"] and report["command"].startswith("attnzoo")


def test_draws_a_picture(figures):
    assert figures[1].startswith(b"\x89PNG")


def test_table_holds_the_figures(figures):
    rows = figures[0]["results"]
    lines = models.table(rows).splitlines()
    assert len({line.count("|") for line in lines[:6]}) == 1
    assert f"{rows[0]['forward']['median']:.1f}" in lines[2] and "64²" in lines[2]
    assert "growth of forward + backward" in lines[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["van_b9"], "no model 'van_b9'; did you mean van_b"),
        (["van_b0", "--device", "gpu"], "--device 'gpu'"),
        (["van_b0", "--device", "meta"], "--device must be cpu or cuda"),
        (["van_b0", "--device", "cuda:99"], "CUDA devices"),
        (["van_b0", "--plot", "x.txt"], "--plot must end in"),
        # The gradient of a batch norm over one value.
        (["van_b0", "--sizes", "32", "--repeat", "1", "--backward"], "van_b0 fails at 32 pixels"),
    ],
)
def test_mistakes_exit_with_2_and_one_line(arguments, message, capsys):
    assert cli.main(["bench", "models", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [["models", "--sizes", "0"], ["models", "--sizes", "1000000"], ["models", "--repeat", "x"], [], ["kernel"]],
)
def test_arguments_that_are_none(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", *arguments])
    assert stop.value.code == 2


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "models", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "what is measured:" in shown and "growth" in shown
