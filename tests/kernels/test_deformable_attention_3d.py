"""Deformable attention in three dimensions against published figures, its definition and its other forms."""

import golden_files
import operator_definitions
import pytest
import torch

from attnzoo.kernels import deformable_attention, deformable_attention_3d
from attnzoo.kernels.deformable_attention_3d import naive

GOLDEN = golden_files.load("dfa3d_op")
LEVELS, STARTS = [(3, 4), (2, 5)], [0, 12]


def noise(seed, *shape):
    return golden_files.noise(shape, seed)


@pytest.mark.parametrize("function", [deformable_attention_3d, naive.deformable_attention_3d])
@pytest.mark.parametrize(("number", "name"), enumerate(GOLDEN["kwargs"]["cases"]))
def test_published_result_and_every_gradient(number, name, function):
    """Made by the published rule: inputs from the notes of the golden file."""
    sizes = GOLDEN["kwargs"]["cases"][name]["spatial_shapes_HWD"]
    levels, bins, base = [size[:2] for size in sizes], sizes[0][2], 100 * number
    starts = [sum(h * w for h, w in levels[:i]) for i in range(len(levels))]
    positions, samples = sum(h * w for h, w in levels), (2, 10, 2, len(levels), 4)
    generator = torch.Generator().manual_seed(base + 2)
    leaves = {
        "value": noise(base, 2, positions, 2, 8),
        "dist": noise(base + 1, 2, positions, 2, bins).softmax(-1),
        "loc": 1.4 * torch.rand((*samples, 3), generator=generator).double() - 0.2,
        "weights": noise(base + 3, 2, 10, 2, len(levels) * 4).softmax(-1).view(samples),
    }
    value, depth, places, weights = (x.requires_grad_() for x in leaves.values())
    out = function(value, depth, levels, starts, places, weights)
    out.backward(noise(base + 4, 2, 10, 16))
    assert golden_files.error(out, GOLDEN["outputs"][f"{name}/out"]) < 1e-12
    for leaf, x in leaves.items():
        assert golden_files.error(x.grad, GOLDEN["outputs"][f"{name}/grad_{leaf}"]) < 1e-12, leaf


def arguments(bins=4, groups=2, dtype=torch.float64, queries=3):
    value = torch.randn(2, 22, 2, 3, dtype=dtype)
    depth = torch.rand(2, 22, groups, bins, dtype=dtype)
    places = torch.rand(2, queries, 2, 2, 2, 3, dtype=dtype) * 1.6 - 0.3
    return value, depth, LEVELS, STARTS, places, torch.rand(2, queries, 2, 2, 2, dtype=dtype)


@pytest.mark.parametrize("groups", [1, 2])
def test_equals_the_definition(groups):
    given = arguments(groups=groups)
    torch.testing.assert_close(deformable_attention_3d(*given), naive.deformable_attention_3d(*given))


@pytest.mark.parametrize("groups", [1, 2])
def test_definition_equals_the_dense_one(groups):
    given = arguments(groups=groups)
    want = operator_definitions.deformable_attention_3d(*given)
    torch.testing.assert_close(naive.deformable_attention_3d(*given), want)


def test_gradients():
    value, depth, levels, starts, places, weights = arguments(groups=1, queries=1)
    leaves = [x.requires_grad_() for x in (value, depth, places, weights)]
    assert torch.autograd.gradcheck(
        lambda value, depth, places, weights: deformable_attention_3d(value, depth, levels, starts, places, weights),
        leaves,
    )


def test_a_single_bin_is_the_two_dimensional_operator():
    value, depth, levels, starts, places, weights = arguments(bins=1, groups=1)
    places[..., 2] = 0.5
    flat = deformable_attention(value, levels, starts, places[..., :2], weights)
    torch.testing.assert_close(
        deformable_attention_3d(value, torch.ones_like(depth), levels, starts, places, weights), flat
    )


def test_half_precision_and_autocast():
    given = arguments(dtype=torch.float32)
    want = deformable_attention_3d(*given)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(deformable_attention_3d(*given), want)
    half = [x.bfloat16() if isinstance(x, torch.Tensor) else x for x in given]
    exact = deformable_attention_3d(*(x.double() if isinstance(x, torch.Tensor) else x for x in half))
    out = deformable_attention_3d(*half)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), exact, rtol=0.01, atol=0.01)


def test_errors():
    value, depth, levels, starts, places, weights = arguments()
    with pytest.raises(ValueError, match=r"depth must be \(B=2, K=22, M=2 or 1, D\)"):
        deformable_attention_3d(value, depth[:, :20], levels, starts, places, weights)
    with pytest.raises(ValueError, match=r"depth must be .* got shape \(2, 22, 3, 4\)"):
        deformable_attention_3d(value, depth[:, :, [0, 1, 0]], levels, starts, places, weights)
    with pytest.raises(ValueError, match=r"L=2, P, 3\), got shape"):
        deformable_attention_3d(value, depth, levels, starts, places[..., :2], weights)
    with pytest.raises(ValueError, match=r"levels of .* overlap"):
        deformable_attention_3d(value, depth, levels, [0, 11], places, weights)
    with pytest.raises(ValueError, match="backend must be one of"):
        deformable_attention_3d(value, depth, levels, starts, places, weights, backend="cuda")
