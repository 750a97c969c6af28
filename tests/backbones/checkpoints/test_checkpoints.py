"""Published checkpoints load by name, from classifiers, detectors and segmentors; anything else is refused."""

import sys

import golden_files
import pytest
import timm
import torch
from safetensors.torch import save_file

CASES = [
    ("van_b0", "van_b0"),
    ("mscan_t", "mscan_tiny"),
    ("biformer_tiny", "biformer_tiny"),
    ("litv2_small", "litv2_small"),
    ("coat_tiny", "coat_tiny"),
    ("coat_lite_tiny", "coat_lite_tiny"),
    ("agent_deit_tiny", "agent_deit_tiny"),
    ("agent_pvt_tiny", "agent_pvt_tiny"),
    ("agent_swin_tiny", "agent_swin_tiny"),
    ("inline_pvt_tiny", "inline_pvt_tiny"),
    ("dinat_mini", "dinat_mini"),
]


def convert(model, state_dict):
    return sys.modules[type(model).__module__].checkpoint_filter_fn(state_dict, model)


def published(file: str) -> dict[str, torch.Tensor]:
    return {key: value.float() for key, value in golden_files.checkpoint(golden_files.load(file)).items()}


@pytest.mark.parametrize(("file", "name"), CASES)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_loads_a_published_file_through_timm(file, name, suffix, tmp_path):
    weights = published(file)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"model": weights}, path)
    else:
        save_file(weights, path)
    kwargs = {} if "head.weight" in weights else {"num_classes": 0}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=dict(file=str(path)), **kwargs)
    reference = timm.create_model(name, **kwargs)
    reference.load_state_dict(convert(reference, weights))
    for key, value in reference.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


@pytest.mark.parametrize(("file", "name"), CASES)
def test_other_input_channels_and_classes(file, name, tmp_path):
    weights = published(file)
    weights.setdefault("head.weight", torch.randn(1000, 256))
    weights.setdefault("head.bias", torch.randn(1000))
    torch.save(weights, tmp_path / "weights.pth")
    overlay = dict(file=str(tmp_path / "weights.pth"))
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, in_chans=1, num_classes=7)
    assert model.eval()(torch.randn(1, 1, 64, 64)).shape == (1, 7)


@pytest.mark.parametrize(("file", "name"), CASES)
def test_own_layout_is_returned_untouched(file, name):
    model = timm.create_model(name)
    weights = model.state_dict()
    assert convert(model, weights) is weights


@pytest.mark.parametrize(("file", "name"), CASES)
def test_detector_checkpoint(file, name):
    """A detector's backbone has no classifier, and BiFormer's has per-stage norms; heads and necks are left out."""
    weights = published(file)
    dense = {f"backbone.{k}": v for k, v in weights.items() if not k.startswith(("head.", "norm."))}
    if name == "biformer_tiny":
        dense["backbone.extra_norms.0.weight"] = torch.ones(64)
    dense["neck.lateral_convs.0.conv.weight"] = torch.ones(1)
    model = timm.create_model(name)
    classifier = model.get_classifier().weight.clone()
    model.load_state_dict(convert(model, {"state_dict": dense, "meta": {}}), strict=True)
    assert torch.equal(model.get_classifier().weight, classifier)
    features = timm.create_model(name, num_classes=0)
    features.load_state_dict(convert(features, {k: v for k, v in weights.items() if not k.startswith("head.")}))
    model.eval(), features.eval()
    with torch.inference_mode():
        x = torch.randn(1, 3, 64, 64)
        maps = zip(model.forward_intermediates(x)[1], features.forward_intermediates(x)[1], strict=True)
        assert all(torch.equal(a, b) for a, b in maps)


@pytest.mark.parametrize(("file", "name"), CASES)
def test_missing_and_unexpected_keys_raise(file, name):
    model = timm.create_model(name, num_classes=1000 if "head.weight" in published(file) else 0)
    weights = published(file)
    lost = next(iter(weights))
    del weights[lost]
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(convert(model, weights))
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict(convert(model, {**published(file), "surprise": torch.ones(1)}))
