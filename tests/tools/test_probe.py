"""attnzoo probe: on scikit-learn's digits, on image folders, with weights, and what it refuses."""

import dataclasses
import json

import pytest
import timm
import torch
from tools_helpers import listing

from attnzoo.heads import probing
from attnzoo.tools import cli
from attnzoo.tools.data.labelled_images import digits, image_folder
from attnzoo.tools.probing.models import build
from attnzoo.tools.probing.probe import probe
from attnzoo.tools.probing.results import table
from attnzoo.tools.probing.settings import Settings
from attnzoo.tools.running.checkpoint import load_checkpoint

QUICK = Settings(size=64, epochs=15, lr=5e-3, seeds=(0,))


@pytest.fixture(scope="module")
def on_digits(tmp_path_factory):
    """What the command writes and prints for a backbone with random weights."""
    out = tmp_path_factory.mktemp("probe") / "out"
    arguments = ["probe", "test_resnet", "--digits", "--epochs", "15", "--lr", "5e-3", "--seeds", "0", "1"]
    assert cli.main([*arguments, "--out", str(out)]) == 0
    return out, json.loads((out / "result.json").read_text())


@pytest.mark.long
def test_attention_reads_digits_from_random_features(on_digits):
    """Ten classes. The mean over the places knows less, and no head at all a tenth: see the next test."""
    _, results = on_digits
    attentive, mean = results["rows"]
    assert (attentive["pooling"], mean["pooling"]) == ("attentive", "mean")
    assert attentive["mean"] > 0.8 and mean["mean"] > 0.5 and attentive["mean"] > mean["mean"] + 0.05
    assert len(attentive["top1"]) == 2 and attentive["mean"] == pytest.approx(sum(attentive["top1"]) / 2)
    assert attentive["spread"] > 0
    assert results["data"] | {"classes": None} == {
        "name": "scikit-learn's digits", "classes": None, "train": 1433, "val": 364
    }  # fmt: skip
    assert (attentive["places"], attentive["channels"], attentive["queries"], mean["queries"]) == (4, 96, 32, None)
    assert attentive["head_parameters"] == 32 * 96 + 96 * 96 + 97 * 10 and mean["head_parameters"] == 97 * 10


@pytest.mark.long
def test_a_dead_head_knows_a_tenth(monkeypatch, tmp_path):
    monkeypatch.setattr(probing.EfficientProbing, "forward", lambda self, x: 0 * self.value(x).mean(1))
    (row,) = probe(["test_resnet"], digits(), tmp_path, dataclasses.replace(QUICK, poolings=("attentive",)))["rows"]
    assert row["mean"] < 0.2


@pytest.mark.long
def test_a_written_head_has_the_accuracy_that_was_told(on_digits):
    out, results = on_digits
    data = digits()
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["result.json", *(head for row in results["rows"] for head in row["heads"])]
    )
    head, facts = probing.load_head(out / results["rows"][0]["heads"][1])
    assert facts["model"] == "test_resnet" and tuple(facts["classes"]) == data.classes and facts["size"] == 64
    backbone = probing.FrozenBackbone(build("test_resnet"))
    cfg = timm.data.resolve_model_data_config(backbone.model) | dict(input_size=(3, 64, 64), crop_pct=1.0)
    transform = timm.data.create_transform(**cfg)
    images = torch.stack([transform(data.read(scan)) for scan, _ in data.items["val"]])
    labels = torch.tensor([label for _, label in data.items["val"]])
    right = (head(backbone(images)).argmax(1) == labels).float().mean().item()
    assert right == pytest.approx(results["rows"][0]["top1"][1], abs=0.003) == pytest.approx(facts["top1"], abs=0.003)


@pytest.mark.long
def test_the_same_seed_gives_the_same_accuracy(on_digits, tmp_path):
    settings = dataclasses.replace(QUICK, poolings=("mean",))
    torch.manual_seed(7)  # the state of the global generator does not matter, and is kept
    state = torch.get_rng_state()
    (row,) = probe(["test_resnet"], digits(), tmp_path, settings)["rows"]
    assert row["top1"][0] == on_digits[1]["rows"][1]["top1"][0]
    assert torch.equal(torch.get_rng_state(), state)


FAST = dict(size=32, epochs=40, lr=1e-2, seeds=(0,), batch=8, poolings=("attentive",))


def test_a_share_of_each_class_is_held_out(folder, tmp_path):
    data = image_folder(folder, 0.3)
    assert data.classes == ("blue", "green", "red")
    paths = {split: {path for path, _ in items} for split, items in data.items.items()}
    assert not paths["train"] & paths["val"] and len(paths["train"]) == 21
    assert [sum(label == i for _, label in data.items["val"]) for i in range(3)] == [3, 3, 3]
    assert image_folder(folder, 0.3) == data and image_folder(folder, 0.01).items["val"] != []
    (row,) = probe(["test_resnet"], data, tmp_path / "out", Settings(**FAST))["rows"]
    assert row["mean"] > 0.8


def test_features_that_do_not_fit_are_computed_anew(folder, tmp_path, capsys):
    settings = Settings(**{**FAST, "memory": 1e-9, "epochs": 12})
    (row,) = probe(["test_resnet"], image_folder(folder), tmp_path / "out", settings)["rows"]
    assert "larger than --memory" in capsys.readouterr().err
    assert row["mean"] > 0.8


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named(folder, tmp_path, capsys, workers):
    (folder / "red" / "03.png").write_bytes(b"no image")
    out = tmp_path / "out"
    command = ["probe", "test_resnet", "--data", str(folder), "--size", "32", "--workers", str(workers)]
    assert cli.main([*command, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "03.png: not an image that can be read" in error and "Traceback" not in error and error.count("\n") == 1
    assert not out.exists()


def test_several_backbones_make_a_table(folder, tmp_path, capsys):
    settings = Settings(**{**FAST, "epochs": 2, "poolings": ("attentive", "mean"), "seeds": (0, 1)})
    results = probe(["test_resnet", "agent_deit_tiny"], image_folder(folder), tmp_path, settings)
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(results))
    lines = table(results).splitlines()
    assert "24 to train" in lines[0] and "6 held-out" in lines[0]
    assert [line.split()[:2] for line in lines[3:7]] == [
        [name, pooling] for name in ("test_resnet", "agent_deit_tiny") for pooling in ("attentive", "mean")
    ]
    assert all("±" in line and line.endswith("random") for line in lines[3:7])
    weights = load_checkpoint(tmp_path / "agent_deit_tiny_mean_seed_1.safetensors")["state_dict"]
    assert weights["classifier.weight"].shape == (3, 192)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["van_b00", "--digits"], "no model 'van_b00'; did you mean van_b0"),
        (["van_b0", "van_b0", "--digits"], "named twice"),
        (["van_b0", "--data", "nowhere"], "--data: no folder 'nowhere'"),
        (["van_b0", "van_b1", "--digits", "--checkpoint", "a.pth"], "2 models need as many files, not 1"),
        (["van_b0", "--digits", "--checkpoint", "a.pth"], "no checkpoint 'a.pth'"),
        (
            ["test_resnet", "--digits", "--queries", "7"],
            "--queries: test_resnet: num_queries=7: must divide dim=96, as 6",
        ),
        (["test_vit", "--digits", "--size", "50"], "test_vit does not take images of 50 x 50"),
        (["test_resnet", "--digits", "--epochs", "0"], "--epochs must be positive, got 0"),
        (["test_resnet", "--digits", "--size", "-1"], "--size must be positive, got -1"),
        (["test_resnet", "--digits", "--size", "1000000"], "--size must be at most 16384, got 1000000"),
        (["test_resnet", "--digits", "--lr", "nan"], "--lr must be positive, got nan"),
        (["test_resnet", "--digits", "--lr", "inf"], "--lr must be positive and finite, got inf"),
        (["test_resnet", "--digits", "--seeds", "1", str(10**20)], f"--seeds must be at most {2**63 - 1}, got 1000"),
        (["test_resnet", "--digits", "--batch", "1"], "--batch must be 2 or more"),
        (["test_resnet", "--digits", "--seeds", "1", "1"], "no seed given twice"),
    ],
)
def test_bad_arguments(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["probe", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert listing(tmp_path) == {}
