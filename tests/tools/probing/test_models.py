"""Weights of the models that are probed: published, of timm, of other classes."""

import argparse
import dataclasses

import golden_files
import pytest
import timm
import torch

from attnzoo.tools.common.errors import UserError
from attnzoo.tools.probing.models import build


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
