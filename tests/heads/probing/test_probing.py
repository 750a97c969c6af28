"""The probe's parts: attentive pooling against its definition, frozen backbones of every kind, training, files."""

import copy
import json

import pytest
import safetensors.torch
import timm
import torch
import zoo
from torch import Tensor, nn

import attnzoo
from attnzoo.heads.probing import (
    EfficientProbing,
    FeatureBatches,
    FrozenBackbone,
    ProbeHead,
    accuracy,
    fit,
    largest_divisor,
    load_head,
    save_head,
)


def pooled_by_definition(pool: EfficientProbing, x: Tensor) -> Tensor:
    """Query by query and patch by patch."""
    batch, patches, dim = x.shape
    width = dim // pool.num_queries
    rows = []
    for b in range(batch):
        parts = []
        for q in range(pool.num_queries):
            scores = torch.stack([(pool.queries[q] * x[b, n]).sum() / dim**0.5 for n in range(patches)])
            weights = scores.exp() / scores.exp().sum()
            kernel = pool.value.weight[q * width : (q + 1) * width]
            parts.append(sum(weights[n] * (kernel @ x[b, n]) for n in range(patches)))
        rows.append(torch.cat(parts))
    return torch.stack(rows)


@pytest.mark.parametrize(("dim", "queries", "patches"), [(12, 4, 5), (6, 1, 3), (5, 5, 1)], ids=str)
def test_attentive_pooling_and_its_gradients_against_the_definition(dim, queries, patches):
    pool = EfficientProbing(dim, queries).double()
    nn.init.normal_(pool.queries)
    x = torch.randn(2, patches, dim, dtype=torch.float64, requires_grad=True)
    leaves, direction = [x, *pool.parameters()], torch.randn(2, dim, dtype=torch.float64)
    found, expected = pool(x), pooled_by_definition(pool, x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(output, leaves, direction) for output in (found, expected)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)
    maps = pool.attention(x)
    assert maps.shape == (2, queries, patches)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, queries, dtype=torch.float64))


@pytest.mark.parametrize(
    ("dim", "limit", "expected"), [(64, 32, 32), (320, 32, 32), (168, 32, 28), (37, 32, 1), (8, 32, 8)]
)
def test_largest_divisor(dim, limit, expected):
    assert largest_divisor(dim, limit) == expected


def test_bad_arguments():
    with pytest.raises(ValueError, match="num_queries=32: must divide dim=168, as 28 does"):
        EfficientProbing(168)
    with pytest.raises(ValueError, match="num_queries=0: must divide dim=8"):
        EfficientProbing(8, 0)
    with pytest.raises(ValueError, match="pooling='max': allowed are 'attentive', 'mean'"):
        ProbeHead(8, 2, pooling="max")
    with pytest.raises(ValueError, match="Linear has no forward_intermediates"):
        FrozenBackbone(nn.Linear(2, 2))


@pytest.mark.parametrize("pooling", ["attentive", "mean"])
def test_a_head_takes_rows_and_maps(pooling):
    head = ProbeHead(48, 3, pooling).eval()
    maps = torch.randn(4, 48, 5, 7)
    assert head(maps).shape == (4, 3)
    assert torch.equal(head(maps), head(maps.flatten(2).mT))
    # The order of the places does not matter.
    shuffled = maps.flatten(2)[..., torch.randperm(35)].mT
    torch.testing.assert_close(head(shuffled), head(maps))
    half = head.bfloat16()(maps.bfloat16())
    assert half.dtype == torch.bfloat16 and half.isfinite().all()


def test_the_mean_is_a_linear_probe():
    head = ProbeHead(6, 2, "mean").eval()
    head.norm.running_mean.uniform_()
    head.norm.running_var.uniform_(0.5, 2)
    x = torch.randn(3, 5, 6)
    normed = (x.mean(1) - head.norm.running_mean) / (head.norm.running_var + 1e-6).sqrt()
    torch.testing.assert_close(head(x), normed @ head.classifier.weight.T + head.classifier.bias)


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


def marked_patches(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """One of 49 patches carries a mark, and of which kind it is; all others are loud noise."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(samples, 49, 16, generator=generator)
    labels = torch.randint(0, 4, (samples,), generator=generator)
    place = torch.randint(0, 49, (samples,), generator=generator)
    features[torch.arange(samples), place] = 3 * nn.functional.one_hot(labels, 16).float()
    features[torch.arange(samples), place, 15] = 8.0
    return features, labels


def test_attention_finds_what_the_mean_drowns():
    train, val = marked_patches(1500, 0), marked_patches(500, 1)
    results, losses = {}, []
    for pooling in ("attentive", "mean"):
        torch.manual_seed(0)
        head = ProbeHead(16, 4, pooling, num_queries=4)
        fit(head, FeatureBatches(*train, 100, seed=0), epochs=30, lr=1e-2, on_epoch=losses.append)
        results[pooling] = accuracy(head, FeatureBatches(*val, 100))
        assert not head.training
    assert results["attentive"] > 0.95 > 0.75 > results["mean"] > 0.25, results
    assert len(losses) == 60 and losses[29] < 0.3 * losses[0]


def test_accuracy_counts_every_sample_once():
    head = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    nn.init.constant_(head[1].weight, 0)
    head[1].bias.data = torch.tensor([0.0, 1.0])
    features, labels = torch.zeros(7, 1, 1), torch.tensor([1, 0, 1, 0, 0, 0, 1])
    assert accuracy(head, FeatureBatches(features, labels, 2)) == 3 / 7


@pytest.mark.parametrize("pooling", ["attentive", "mean"])
def test_a_head_survives_its_file(pooling, tmp_path):
    head = ProbeHead(48, 3, pooling).train()
    head(torch.randn(4, 5, 48))
    save_head(head, tmp_path / "head.safetensors", model="van_b0", classes=["a", "b", "c"])
    loaded, facts = load_head(tmp_path / "head.safetensors")
    assert facts == {"model": "van_b0", "classes": ["a", "b", "c"]} and not loaded.training
    x = torch.randn(4, 5, 48)
    assert torch.equal(loaded(x), head.eval()(x))


def test_a_head_on_a_full_disk():
    with pytest.raises(OSError, match="No space left"):
        save_head(ProbeHead(48, 3), "/dev/full")


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (dict(channels=2**40), {}),
        (dict(num_classes=2**40), {}),
        (dict(num_queries=2**40), {}),
        (dict(num_queries=0), {}),
        (dict(pooling="max"), {}),
        ({}, {"classifier.weight": torch.full((3, 48), torch.nan)}),
        ({}, {"classifier.bias": torch.ones(3, dtype=torch.int64)}),
    ],
    ids=str,
)
def test_a_head_that_lies_is_refused(config, change, tmp_path):
    head = ProbeHead(48, 3)
    state = {**head.state_dict(), **change}
    facts = {"head": json.dumps({**head.config, **config}), "facts": "{}"}
    safetensors.torch.save_file(state, tmp_path / "head.safetensors", facts)
    with pytest.raises(ValueError, match=r"head\.safetensors: not a head written by attnzoo probe"):
        load_head(tmp_path / "head.safetensors")


def test_a_file_that_is_no_head_is_named(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match="no head"):
        load_head(tmp_path / "nothing")
    (tmp_path / "torn").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    save_file({"a": torch.zeros(1)}, tmp_path / "other")
    for name in ("torn", "other"):
        with pytest.raises(ValueError, match=f"{name}: not a head written by attnzoo probe"):
            load_head(tmp_path / name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EfficientProbing(0), r"dim=0: must be 1 or more"),
        (lambda: EfficientProbing(8, num_queries=2.0), r"num_queries=2\.0: must be a whole number, got float"),
        (lambda: ProbeHead(8, 0), r"num_classes=0: must be 1 or more"),
        (lambda: ProbeHead("8", 2), r"channels='8': must be a whole number, got str"),
        (lambda: accuracy(ProbeHead(8, 3), []), "no sample to be right about"),
        (lambda: fit(ProbeHead(8, 3), [(torch.rand(1, 4, 8), torch.zeros(1).long())], 1), "norms over two or more"),
        (lambda: FeatureBatches(torch.rand(3, 4), torch.zeros(3), 2), r"features and labels must be .* got \(3, 4\)"),
        (lambda: FeatureBatches(torch.rand(3, 4, 8), torch.zeros(2), 2), r"got \(3, 4, 8\) and \(2,\)"),
        (lambda: FeatureBatches(torch.rand(0, 4, 8), torch.zeros(0), 2), r"of a sample or more"),
        (lambda: FeatureBatches(torch.rand(3, 4, 8), torch.zeros(3), 0), r"batch_size=0: must be 1 or more"),
        (lambda: fit(ProbeHead(8, 2), [], 1), r"batches: there are none"),
        (lambda: fit(ProbeHead(8, 2), [], 0), r"epochs=0: must be 1 or more"),
        (lambda: fit(ProbeHead(8, 2), [], 1, lr=0), r"lr=0: must be above 0"),
    ],
)
def test_arguments_of_another_kind(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
