"""`attnzoo bench models`: what it measures, writes and refuses."""

import json
import math

import pytest
import timm
import torch
from torch import nn

from attnzoo.tools import bench, cli


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
    lines = bench.table(rows).splitlines()
    assert len({line.count("|") for line in lines[:6]}) == 1
    assert f"{rows[0]['forward']['median']:.1f}" in lines[2] and "64²" in lines[2]
    assert "growth of forward + backward" in lines[-1]


def test_memory_grows_with_what_a_pass_keeps():
    """The backward pass needs maps that the forward pass lets go."""

    def peaks(backward):
        with bench.fresh_processes() as processes:
            return [
                processes.submit(bench.peak_memory, "test_convnext", True, 1, size, backward, 1, "cpu").result()
                for size in (128, 512)
            ]

    forward, backward = peaks(False), peaks(True)
    # Activations grow with the pixels, libraries do not.
    assert forward[1] > forward[0] and backward[1] > 2 * backward[0]
    assert backward[1] > 2 * forward[1]


def test_spread_of_known_values():
    assert bench.spread([4.0, 1.0, 2.0, 3.0, 5.0]) == {"q1": 2.0, "median": 3.0, "q3": 4.0}
    assert bench.spread([7.0]) == {"q1": 7.0, "median": 7.0, "q3": 7.0}


def test_growth_of_known_times():
    rows = [
        {"model": name, "size": size, "forward": {"median": size ** (2 * e)}}
        for name, e in (("linear", 1.0), ("quadratic", 2.0))
        for size in (512, 224, 1024)
    ]
    found = bench.growth([*rows, {"model": "one", "size": 224, "forward": {"median": 1.0}}], "forward")
    assert found.keys() == {"linear", "quadratic"}
    assert math.isclose(found["linear"], 1.0) and math.isclose(found["quadratic"], 2.0)


class Restorer(nn.Module):
    def __init__(self, reductions):
        super().__init__()
        self.feature_info = [{"reduction": reduction} for reduction in reductions]


@pytest.mark.parametrize(("reductions", "sizes"), [((1, 1), [48]), ((4, 8), [224, 512])])
def test_restoration_models_have_their_own_size(reductions, sizes):
    assert bench.sizes_of(Restorer(reductions), {"input_size": (3, 48, 48)}, [224, 512]) == sizes


def test_models_bound_to_a_size_are_freed():
    with torch.inference_mode():
        assert bench.build("swin_tiny_patch4_window7_224", True).eval()(torch.randn(1, 3, 64, 96))[0].shape[1] == 16


def test_default_models_are_near_swin_tiny_in_size(monkeypatch):
    """28.3 M parameters; of VAN 26.6 M is nearer than 13.9 M and 44.8 M."""
    some = {"van": ["van_b1", "van_b2", "van_b3"], "biformer": ["biformer_tiny", "biformer_stl"]}
    monkeypatch.setattr(bench, "families", lambda: some)
    assert bench.default_models() == ["van_b2", "biformer_stl", *bench.NEIGHBOURS]


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
