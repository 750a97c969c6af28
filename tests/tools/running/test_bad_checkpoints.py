"""Checkpoints that cannot be used: one line that says what, and not a file written or changed."""

import shutil

import pytest
import torch
from loopback import served
from tools_helpers import MakesFolder, listing, refused

from attnzoo.tools import cli
from attnzoo.tools.running.checkpoint import load_checkpoint


@pytest.mark.parametrize("command", ["train", "test", "predict"])
@pytest.mark.parametrize("fault", ["truncated", "hostile", "other"])
def test_bad_checkpoints(trained, place, capsys, command, fault):
    path, mark = place / "bad.pth", place / "ran"
    honest = trained["segmentor"][1]
    expected = {"truncated": "truncated", "hostile": "mkdir", "other": "not a checkpoint of this RetinaNet"}[fault]
    if fault == "truncated":
        path.write_bytes(honest.read_bytes()[:-1000])
    elif fault == "hostile":
        torch.save({**load_checkpoint(honest), "extra": MakesFolder(mark)}, path)
    else:
        shutil.copy(honest, path)
    arguments = {
        "train": ["train", "detector.py", "--resume", path],
        "test": ["test", "detector.py", path, "--out", "metrics.json"],
        "predict": ["predict", "detector.py", path, "data/images"],
    }[command]
    message = refused(capsys, *arguments, folder=place)
    assert expected in message
    assert "bad.pth" in message
    assert not mark.exists()


def test_hostile_start_weights(place, capsys):
    torch.save({"state_dict": {"a": torch.ones(1)}, "extra": MakesFolder(place / "ran")}, place / "bad.pth")
    message = refused(capsys, "train", "detector.py", "--cfg-options", "load_from=bad.pth", folder=place)
    assert "bad.pth: refused" in message
    assert not (place / "ran").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda state: {f"net.{key}": value for key, value in state.items()}, "not one of its"),
        (lambda state: {key: value.to(torch.int32) for key, value in state.items()}, "is int32, where the model has"),
        (lambda state: {key: value * torch.nan for key, value in state.items()}, "weights must be finite"),
    ],
    ids=["nothing fits", "whole numbers", "nan"],
)
def test_start_weights_that_do_not_serve(trained, place, capsys, change, expected):
    state = load_checkpoint(trained["detector"][1])["state_dict"]
    torch.save({"state_dict": change(state)}, place / "bad.pth")
    message = refused(capsys, "train", "detector.py", "--cfg-options", "load_from=bad.pth", folder=place)
    assert message.startswith("attnzoo: error: bad.pth: ") and expected in message


def test_start_weights_may_fit_in_part(trained, place):
    state = load_checkpoint(trained["detector"][1])["state_dict"]
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items() if "backbone" in key}}, "a.pth")
    options = ["load_from=a.pth", "train_cfg.max_epochs=1", "optim_wrapper.optimizer.lr=0."]
    assert cli.main(["train", "detector.py", "--work-dir", "a", "--cfg-options", *options]) == 0
    after = load_checkpoint(place / "a" / "epoch_1.pth")["state_dict"]
    same = [torch.equal(after[key], state[key]) for key in state if key.endswith("weight")]
    assert any(same) and not all(same)


@pytest.fixture
def site(place, tmp_path_factory, monkeypatch):
    """A server's folder and its address; PyTorch's folder of checkpoints is empty and not in `place`."""
    folder = tmp_path_factory.mktemp("site")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("home")))
    with served(folder) as address:
        yield folder, address
    assert not (place / "ran").exists(), "a checkpoint ran code"


@pytest.mark.parametrize("fault", ["hostile", "truncated", "absent"])
@pytest.mark.parametrize("command", ["load_from", "resume", "init_cfg", "test", "predict"])
def test_bad_checkpoints_at_an_address(trained, place, site, capsys, command, fault):
    folder, address = site
    honest = trained["detector"][1]
    if fault == "hostile":
        torch.save({**load_checkpoint(honest), "extra": MakesFolder(place / "ran")}, folder / "bad.pth")
    elif fault == "truncated":
        (folder / "bad.pth").write_bytes(honest.read_bytes()[:-1000])
    url = f"{address}/bad.pth"
    arguments = {
        "load_from": ["train", "detector.py", "--cfg-options", f"load_from={url}"],
        "resume": ["train", "detector.py", "--resume", url],
        "init_cfg": [
            "train", "detector.py", "--cfg-options",
            "model.init_cfg.type=Pretrained", f"model.init_cfg.checkpoint={url}",
        ],
        "test": ["test", "detector.py", url],
        "predict": ["predict", "detector.py", url, "data/images"],
    }[command]  # fmt: skip
    message = refused(capsys, *arguments, folder=place)
    assert url in message
    assert {"hostile": "mkdir", "truncated": "truncated", "absent": "404"}[fault] in message


def test_good_checkpoints_at_an_address(trained, place, site):
    folder, address = site
    shutil.copy(trained["detector"][1], folder / "good.pth")
    url = f"{address}/good.pth"
    options = ["--cfg-options", "train_cfg.max_epochs=9", "val_evaluator=None", "val_dataloader=None", "val_cfg=None"]
    assert cli.main(["train", "detector.py", "--work-dir", "a", "--resume", url, *options]) == 0
    assert load_checkpoint(place / "a" / "epoch_9.pth")["meta"]["epoch"] == 9
    assert cli.main(["test", "detector.py", url, "--work-dir", "b", "--out", "metrics.json"]) == 0


@pytest.mark.parametrize("command", ["test", "predict", "export"])
def test_weights_of_nan(trained, place, capsys, command):
    content = load_checkpoint(trained["detector"][1])
    key = next(key for key in content["state_dict"] if key.endswith("weight"))
    content["state_dict"][key].fill_(torch.nan)
    torch.save(content, place / "bad.pth")
    arguments = {
        "test": ["test", "detector.py", "bad.pth"],
        "predict": ["predict", "detector.py", "bad.pth", "data/images"],
        "export": ["export", "detector.py", "bad.pth", "--out", "a.onnx"],
    }[command]
    before = listing(place)
    assert cli.main(arguments) == 2
    # The steps of an export are told before.
    message = capsys.readouterr().err.splitlines()[-1]
    assert message == f"attnzoo: error: bad.pth: {key!r} holds NaN: weights must be finite"
    assert listing(place) == before


@pytest.mark.parametrize(
    "stored", [{"classes": {"a"}}, {"classes": torch.zeros(2)}, {"classes": "redblue"}], ids=lambda one: str(one)[:20]
)
@pytest.mark.parametrize("command", ["predict", "export"])
def test_names_of_classes_in_a_checkpoint_that_are_none(trained, place, capsys, command, stored):
    state = load_checkpoint(trained["detector"][1])["state_dict"]
    torch.save({"state_dict": state, "meta": {"dataset_meta": stored}}, "odd.pth")
    more = ["data/images"] if command == "predict" else ["--out", "a.onnx"]
    assert cli.main([command, "detector.py", "odd.pth", *more]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("attnzoo: error: odd.pth: the classes of its data must be a list of names, got ")


def test_a_palette_in_a_checkpoint_that_is_none(trained, place):
    content = load_checkpoint(trained["detector"][1])
    meta = {"classes": ["red", "blue"], "palette": [(float("inf"), 0, 0), (0, 0, 0)]}
    torch.save({"state_dict": content["state_dict"], "meta": {"dataset_meta": meta}}, "odd.pth")
    assert cli.main(["predict", "detector.py", "odd.pth", "data/images/0.jpg", "--score", "0"]) == 0
