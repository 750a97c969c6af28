"""attnzoo probe: on scikit-learn's digits, on image folders, with weights, and what it refuses."""

import argparse
import dataclasses
import json

import golden_files
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from tools_helpers import listing

from attnzoo.heads import probing
from attnzoo.tools import cli
from attnzoo.tools.common.errors import UserError
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


def test_a_dead_head_knows_a_tenth(monkeypatch, tmp_path):
    monkeypatch.setattr(probing.EfficientProbing, "forward", lambda self, x: 0 * self.value(x).mean(1))
    (row,) = probe(["test_resnet"], digits(), tmp_path, dataclasses.replace(QUICK, poolings=("attentive",)))["rows"]
    assert row["mean"] < 0.2


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


def test_the_same_seed_gives_the_same_accuracy(on_digits, tmp_path):
    settings = dataclasses.replace(QUICK, poolings=("mean",))
    torch.manual_seed(7)  # the state of the global generator does not matter, and is kept
    state = torch.get_rng_state()
    (row,) = probe(["test_resnet"], digits(), tmp_path, settings)["rows"]
    assert row["top1"][0] == on_digits[1]["rows"][1]["top1"][0]
    assert torch.equal(torch.get_rng_state(), state)


def paint(path, hue: tuple[int, int, int], count: int, seed: int) -> None:
    """Noisy pictures of one colour and of odd sizes."""
    path.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        size = (*rng.integers(33, 70, 2), 3)
        pixels = (np.array(hue) + rng.integers(-60, 60, size)).clip(0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(path / f"{i:02d}.{'png' if i % 2 else 'jpg'}")


COLOURS = {"blue": (60, 60, 200), "green": (60, 180, 60), "red": (200, 60, 60)}


@pytest.fixture
def folder(tmp_path):
    for seed, (name, hue) in enumerate(COLOURS.items()):
        paint(tmp_path / "images" / name, hue, 10, seed)
    return tmp_path / "images"


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


@pytest.mark.parametrize("val", ["val", "test"])
def test_folders_of_the_splits_are_taken(folder, tmp_path, val):
    root = tmp_path / "split"
    for seed, (name, hue) in enumerate(COLOURS.items()):
        paint(root / val / name, hue, 3, 10 + seed)
    folder.rename(root / "train")
    data = image_folder(root)
    assert [path.parent.parent.name for path, _ in data.items["val"]] == [val] * 9
    assert len(data.items["train"]) == 30


def test_a_class_may_be_called_train(folder, tmp_path):
    (folder / "blue").rename(folder / "train")
    assert image_folder(folder).classes == ("green", "red", "train")


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


def test_a_checkpoint_of_the_published_layout(tmp_path):
    published = golden_files.checkpoint(golden_files.load("van_b0"))
    counters = [key.replace("running_mean", "num_batches_tracked") for key in published if "running_mean" in key]
    published |= {key: torch.tensor(1) for key in counters}
    torch.save({"state_dict": published}, tmp_path / "van.pth")
    ours, theirs = build("van_b0", tmp_path / "van.pth"), timm.create_model("van_b0").eval()
    convert = __import__("attnzoo.backbones.van", fromlist=["x"]).checkpoint_filter_fn
    theirs.load_state_dict(convert(published, theirs))
    images = torch.rand(1, 3, 40, 56)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval().forward_features(images), theirs.forward_features(images))


def test_a_classifier_of_other_classes_is_left_out(tmp_path):
    state = timm.create_model("test_resnet", num_classes=7).state_dict()
    torch.save(state, tmp_path / "seven.pth")
    model = build("test_resnet", tmp_path / "seven.pth")
    assert torch.equal(model.layer1[0].conv1.weight, state["layer1.0.conv1.weight"]) and model.num_classes == 1000
    del state["layer1.0.conv1.weight"]
    torch.save(state, tmp_path / "torn.pth")
    with pytest.raises(UserError, match=r"torn\.pth: not a checkpoint of this ResNet.*layer1\.0\.conv1\.weight"):
        build("test_resnet", tmp_path / "torn.pth")


@pytest.mark.parametrize("shape", [(), (3,), (0, 0, 0, 0)])
@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "convnext_atto", "swin_tiny_patch4_window7_224", "levit_128s"]
)
def test_shapes_that_timm_does_not_expect(name, shape, tmp_path):
    with torch.device("meta"):
        keys = timm.create_model(name).state_dict()
    torch.save({"state_dict": dict.fromkeys(keys, torch.zeros(shape))}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=r"odd\.pth: not (a checkpoint of this|weights of) "):
        build(name, tmp_path / "odd.pth")


def test_timms_own_weights(monkeypatch, tmp_path):
    state = timm.create_model("test_resnet").state_dict()
    torch.save(state, tmp_path / "weights.pth")
    registry = timm.models._registry._model_pretrained_cfgs
    cfg = dataclasses.replace(registry["test_resnet"], file=str(tmp_path / "weights.pth"), hf_hub_id=None)
    monkeypatch.setitem(registry, "test_resnet", cfg)
    assert torch.equal(build("test_resnet", pretrained=True).state_dict()["conv1.0.weight"], state["conv1.0.weight"])
    with pytest.raises(UserError, match=r"van_b0: no weights of timm's can be had .*; --checkpoint takes a file"):
        build("van_b0", pretrained=True)


def test_the_official_release_of_van_is_read(tmp_path):
    """It pickles its `argparse.Namespace`."""
    weights = timm.create_model("van_b0").state_dict()
    torch.save({"state_dict": weights, "args": argparse.Namespace(model="van_b0")}, tmp_path / "van.pth")
    model = build("van_b0", tmp_path / "van.pth")
    names = [key for key in weights if not key.startswith("head.")]
    assert all(torch.equal(model.state_dict()[key], weights[key]) for key in names)


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


def test_scikit_learn_missing_is_named(monkeypatch):
    from attnzoo.tools.data import labelled_images

    monkeypatch.setattr(labelled_images, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--digits needs scikit-learn: pip install scikit-learn"):
        digits()


def test_bad_folders(folder):
    with pytest.raises(UserError, match="--val-share must be between 0 and 1"):
        image_folder(folder, 1.5)
    with pytest.raises(UserError, match="has 0 folders with images, and two classes are needed"):
        image_folder(folder / "red")
    paint(folder / "white", (250, 250, 250), 1, 5)
    with pytest.raises(UserError, match="class 'white' has one image"):
        image_folder(folder)
    for name in ("red", "blue"):
        paint(folder / "train" / name, COLOURS[name], 2, 0)
        paint(folder / "val" / (name if name == "red" else "grey"), (9, 9, 9), 2, 0)
    with pytest.raises(UserError, match="train/ and val/ have other classes: blue, grey"):
        image_folder(folder)
