"""Modules that take the place of those that would freeze the traced size."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from attnzoo.heads.deploy.replacements import AveragePool, make_traceable


@pytest.mark.parametrize("bins", [(2, 3), (6, 6), (7, 1)], ids=str)
@pytest.mark.parametrize("size", [(6, 9), (7, 5), (13, 31), (2, 3)], ids=str)
def test_average_pool_is_adaptive_pooling(size, bins):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(AveragePool(bins)(x), F.adaptive_avg_pool2d(x, bins), rtol=1e-12, atol=1e-12)


def test_make_traceable_replaces_nested_pools_and_leaves_global_ones():
    model = nn.Sequential(nn.Sequential(nn.AdaptiveAvgPool2d((3, 2))), nn.AdaptiveAvgPool2d(1))
    x = torch.randn(1, 4, 9, 11)
    expected = model(x)
    torch.testing.assert_close(make_traceable(model)(x), expected)
    assert type(model[0][0]) is AveragePool and type(model[1]) is nn.AdaptiveAvgPool2d


def test_make_traceable_replaces_a_pool_under_each_of_its_names_and_by_itself():
    pool = nn.AdaptiveAvgPool2d(2)
    model = make_traceable(nn.ModuleDict({"a": pool, "b": pool}))
    assert type(model["a"]) is type(model["b"]) is AveragePool
    assert type(make_traceable(pool)) is AveragePool
