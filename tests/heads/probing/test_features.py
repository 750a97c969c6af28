"""Features of frozen backbones of every kind, and their batches."""

import copy

import pytest
import timm
import torch
import zoo
from torch import nn

import attnzoo
from attnzoo.heads.probing import FeatureBatches, FrozenBackbone, ProbeHead

KINDS = [
    *zoo.one_of_a_kind(),
    *timm.list_models("test_*"),
    "swin_tiny_patch4_window7_224",
    "hiera_tiny_224",
    "resnet18",
]


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_backbone_gives_features(name):
    ours = name in attnzoo.list_models()
    model = zoo.shallow(name) if ours else timm.create_model(name)
    if not hasattr(model, "forward_intermediates"):
        assert not ours
        with pytest.raises(ValueError, match=f"{type(model).__name__} has no forward_intermediates"):
            FrozenBackbone(model)
        return
    backbone = FrozenBackbone(model)
    side = 64 if ours else model.default_cfg["input_size"][-1]
    features = backbone(torch.rand(1, 3, side, side))
    # No class token among the places.
    assert features.shape[0] == 1 and features.shape[1] ** 0.5 % 1 == 0
    assert features.shape[2] == backbone.channels and features.is_contiguous() and features.isfinite().all()


def test_features_are_the_normed_patches():
    model = timm.create_model("test_vit").eval()
    images = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        tokens = model.forward_features(images)
    torch.testing.assert_close(FrozenBackbone(model)(images), tokens[:, model.num_prefix_tokens :])


def test_a_backbone_stays_frozen():
    model = timm.create_model("resnet18", drop_path_rate=0.5)
    before = copy.deepcopy(model.state_dict())
    backbone = FrozenBackbone(model)
    images = torch.rand(3, 3, 33, 65)
    first = backbone(images)
    probe = nn.Sequential(backbone, ProbeHead(backbone.channels, 2)).train()
    assert not any(module.training for module in backbone.modules()) and probe[1].training
    optimizer = torch.optim.SGD([p for p in probe.parameters() if p.requires_grad], lr=1.0)
    probe(images).square().sum().backward()
    optimizer.step()
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(backbone(images), first) and not first.requires_grad


def test_batches_of_features():
    features, labels = torch.arange(10.0).view(10, 1, 1), torch.arange(10)
    in_order = FeatureBatches(features, labels, 4)
    assert [label.tolist() for _, label in in_order] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]] and len(in_order) == 3
    shuffled, again = FeatureBatches(features, labels, 4, seed=1), FeatureBatches(features, labels, 4, seed=1)
    walks = [[label.tolist() for _, label in batches] for batches in (shuffled, again, shuffled)]
    assert walks[0] == walks[1] != walks[2]
    for walk in walks:
        assert [len(label) for label in walk] == [4, 4] and len({*walk[0], *walk[1]}) == 8 and len(shuffled) == 2
    for x, label in shuffled:
        assert torch.equal(x[:, 0, 0].long(), label)
    # Smaller than a batch: all at once, or there would be none.
    assert [len(label) for _, label in FeatureBatches(features, labels, 64, seed=0)] == [10]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FrozenBackbone(nn.Linear(2, 2)), "Linear has no forward_intermediates"),
        (lambda: FeatureBatches(torch.rand(3, 4), torch.zeros(3), 2), r"features and labels must be .* got \(3, 4\)"),
        (lambda: FeatureBatches(torch.rand(3, 4, 8), torch.zeros(2), 2), r"got \(3, 4, 8\) and \(2,\)"),
        (lambda: FeatureBatches(torch.rand(0, 4, 8), torch.zeros(0), 2), r"of a sample or more"),
        (lambda: FeatureBatches(torch.rand(3, 4, 8), torch.zeros(3), 0), r"batch_size=0: must be 1 or more"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
