"""The heads of probes: attentive pooling against its definition, and what a head takes."""

import pytest
import torch
from torch import Tensor, nn

from attnzoo.heads.probing import EfficientProbing, ProbeHead, largest_divisor


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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EfficientProbing(168), "num_queries=32: must divide dim=168, as 28 does"),
        (lambda: EfficientProbing(8, 0), "num_queries=0: must divide dim=8"),
        (lambda: EfficientProbing(0), r"dim=0: must be 1 or more"),
        (lambda: EfficientProbing(8, num_queries=2.0), r"num_queries=2\.0: must be a whole number, got float"),
        (lambda: ProbeHead(8, 2, pooling="max"), "pooling='max': allowed are 'attentive', 'mean'"),
        (lambda: ProbeHead(8, 0), r"num_classes=0: must be 1 or more"),
        (lambda: ProbeHead("8", 2), r"channels='8': must be a whole number, got str"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
