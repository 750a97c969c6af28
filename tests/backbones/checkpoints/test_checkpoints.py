"""Published checkpoints load by name, from classifiers, detectors and segmentors; anything else is refused."""

import golden_files
import pytest
import timm
import torch
from safetensors.torch import save_file

from attnzoo.backbones.contract.facts import convert_checkpoint, families, group_of


def _cases() -> list[tuple[str, str]]:
    """Of each group of classifiers the first golden file and its model."""
    first = {}
    for names in families().values():
        for name in names:
            group = group_of(name)
            if group.variants[name].golden and not group.facts.restores:
                first.setdefault(id(group), (group.variants[name].golden[0], name))
    return list(first.values())


CASES = _cases()
CLASSIFIER = ("head.", "fc.")


def published(file: str) -> dict[str, torch.Tensor]:
    return {key: value.float() for key, value in golden_files.checkpoint(golden_files.load(file)).items()}


def has_classifier(weights: dict[str, torch.Tensor]) -> bool:
    return any(key.startswith(CLASSIFIER) for key in weights)


@pytest.mark.parametrize(("file", "name"), CASES)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_loads_a_published_file_through_timm(file, name, suffix, tmp_path):
    weights = published(file)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"model": weights}, path)
    else:
        save_file(weights, path)
    kwargs = {} if has_classifier(weights) else {"num_classes": 0}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=dict(file=str(path)), **kwargs)
    reference = timm.create_model(name, **kwargs)
    reference.load_state_dict(convert_checkpoint(weights, reference))
    state = model.state_dict()
    for key, value in reference.state_dict().items():
        assert torch.equal(state[key], value), key


@pytest.mark.parametrize(("file", "name"), CASES)
def test_other_input_channels_and_classes(file, name, tmp_path):
    weights = published(file)
    if not has_classifier(weights):
        weights |= {"head.weight": torch.randn(1000, 256), "head.bias": torch.randn(1000)}
    torch.save(weights, tmp_path / "weights.pth")
    overlay = dict(file=str(tmp_path / "weights.pth"))
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, in_chans=1, num_classes=7)
    assert model.eval()(torch.randn(1, 1, 64, 64)).shape == (1, 7)


@pytest.mark.parametrize(("file", "name"), CASES)
def test_own_layout_is_returned_untouched(file, name):
    model = timm.create_model(name)
    weights = model.state_dict()
    assert convert_checkpoint(weights, model) is weights


@pytest.mark.parametrize(("file", "name"), CASES)
def test_detector_checkpoint(file, name):
    """A detector's backbone has no classifier, and some have norms of levels; heads and necks are left out."""
    weights = published(file)
    dense = {f"backbone.{k}": v for k, v in weights.items() if not k.startswith((*CLASSIFIER, "norm."))}
    if group_of(name).facts.stage_norms is not None:
        dense[f"backbone.{group_of(name).facts.stage_norms}0.weight"] = torch.ones(64)
    dense["neck.lateral_convs.0.conv.weight"] = torch.ones(1)
    model = timm.create_model(name)
    classifier = model.get_classifier().weight.clone()
    model.load_state_dict(convert_checkpoint({"state_dict": dense, "meta": {}}, model), strict=True)
    assert torch.equal(model.get_classifier().weight, classifier)
    features = timm.create_model(name, num_classes=0)
    features.load_state_dict(
        convert_checkpoint({k: v for k, v in weights.items() if not k.startswith(CLASSIFIER)}, features)
    )
    model.eval(), features.eval()
    with torch.inference_mode():
        x = torch.randn(1, 3, 64, 64)
        maps = zip(model.forward_intermediates(x)[1], features.forward_intermediates(x)[1], strict=True)
        assert all(torch.equal(a, b) for a, b in maps)


@pytest.mark.parametrize(("file", "name"), CASES)
def test_missing_and_unexpected_keys_raise(file, name):
    model = timm.create_model(name, num_classes=1000 if has_classifier(published(file)) else 0)
    weights = published(file)
    lost = next(iter(weights))
    del weights[lost]
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(convert_checkpoint(weights, model))
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict(convert_checkpoint({**published(file), "surprise": torch.ones(1)}, model))
