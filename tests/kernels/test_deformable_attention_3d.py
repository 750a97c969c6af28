"""Deformable attention in three dimensions against published figures, its definition and its other forms."""

import golden_files
import operator_definitions
import pytest
import torch

from attnzoo.kernels import deformable_attention, deformable_attention_3d
from attnzoo.kernels.deformable_attention.cpu import attend_gathered
from attnzoo.kernels.deformable_attention_3d import cpu, naive

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


def result_and_gradients(function, given, needed=(True, True, True, True)):
    value, depth, levels, starts, places, weights = given
    leaves = [x.detach().requires_grad_(need) for x, need in zip((value, depth, places, weights), needed, strict=True)]
    out = function(leaves[0], leaves[1], levels, starts, *leaves[2:])
    shares = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out).sin()
    return [out.detach(), *torch.autograd.grad((out * shares).sum(), [x for x in leaves if x.requires_grad])]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("steps_of", [1, 2, 4])
def test_steps_of_queries(groups, steps_of, monkeypatch):
    """Steps end within an image and go across two; the last is a shorter one."""
    given = arguments(groups=groups)
    # A query has 2 heads of 3 channels, 2 levels of 2 points, and 4 pixels for each.
    monkeypatch.setitem(cpu._NUMBERS, "cpu", steps_of * 2 * 3 * 2 * 2 * 4)
    got = result_and_gradients(deformable_attention_3d, given)
    for x, want in zip(got, result_and_gradients(naive.deformable_attention_3d, given), strict=True):
        torch.testing.assert_close(x, want)


@pytest.mark.parametrize("only", range(4))
def test_gradient_of_one_tensor(only):
    needed, given = [i == only for i in range(4)], arguments()
    _, got = result_and_gradients(deformable_attention_3d, given, needed)
    torch.testing.assert_close(got, result_and_gradients(deformable_attention_3d, given)[1 + only], rtol=0, atol=0)


@pytest.mark.parametrize("way", ["steps", "gathered"])
def test_gradients_at_centres_of_pixels_and_bins(way):
    """Where the derivative has a step, it is the definition's: references at such centres are usual."""
    value, depth, _, _, _, weights = arguments()
    cells = torch.tensor([(x, y, z) for x in range(4) for y in range(4) for z in range(4)])
    places = ((cells + 0.5) / 4).double()[torch.randperm(64)[:48]].view(2, 3, 2, 2, 2, 3)
    given = value[:, :16], depth[:, :16], [(4, 4), (4, 4)], [0, 0], places, weights

    def gathered(value, depth, levels, starts, places, weights):
        return attend_gathered(value, depth, torch.tensor(levels), torch.tensor(starts), places, weights)

    got = result_and_gradients(cpu.attend if way == "steps" else gathered, given)
    for x, want in zip(got, result_and_gradients(naive.deformable_attention_3d, given), strict=True):
        torch.testing.assert_close(x, want)


@pytest.mark.parametrize("name", ["value", "depth", "weights"])
def test_infinities_reach_what_samples_them(name):
    """And nothing else: pixels and bins that only stand for such beyond the map count for nothing."""
    value, depth, levels, starts, places, weights = arguments()
    given = {"value": value, "depth": depth, "weights": weights}
    given[name].view(-1)[::7] = torch.inf
    value, depth, weights = given.values()
    got = deformable_attention_3d(value, depth, levels, starts, places, weights)
    want = attend_gathered(value, depth, torch.tensor(levels), torch.tensor(starts), places, weights)
    assert not want.isfinite().all()
    torch.testing.assert_close(got, want, equal_nan=True)


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
