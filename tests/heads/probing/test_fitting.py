"""Training of heads, and their accuracy."""

import pytest
import torch
from torch import Tensor, nn

from attnzoo.heads.probing import FeatureBatches, ProbeHead, accuracy, fit


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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: accuracy(ProbeHead(8, 3), []), "no sample to be right about"),
        (lambda: fit(ProbeHead(8, 3), [(torch.rand(1, 4, 8), torch.zeros(1).long())], 1), "norms over two or more"),
        (lambda: fit(ProbeHead(8, 2), [], 1), r"batches: there are none"),
        (lambda: fit(ProbeHead(8, 2), [], 0), r"epochs=0: must be 1 or more"),
        (lambda: fit(ProbeHead(8, 2), [], 1, lr=0), r"lr=0: must be above 0"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
