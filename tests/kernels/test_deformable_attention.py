"""Multi-scale deformable attention against its definition, and its operators in mmcv's clothes."""

import functools
import itertools
import math

import operator_definitions
import pytest
import torch

from attnzoo.kernels.deformable_attention import deformable_attention, naive
from attnzoo.kernels.deformable_attention.cpu import attend_gathered

SHAPES = [(3, 4), (2, 5), (1, 1)]
STARTS = [0, 12, 22]


def arguments(dtype=torch.float64, batch=2, queries=3, heads=2, channels=3, points=2):
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(batch, 23, heads, channels, generator=generator, dtype=torch.float64)
    places = torch.rand(batch, queries, heads, 3, points, 2, generator=generator, dtype=torch.float64) * 1.6 - 0.3
    weights = torch.rand(batch, queries, heads, 3, points, generator=generator, dtype=torch.float64)
    return value.to(dtype), torch.tensor(SHAPES), torch.tensor(STARTS), places.to(dtype), weights.to(dtype)


def by_definition(value, shapes, starts, places, weights):
    return naive.deformable_attention(value, SHAPES, STARTS, places, weights)


def test_definition_equals_the_dense_one():
    value, _, _, places, weights = arguments()
    want = operator_definitions.deformable_attention(value, SHAPES, STARTS, places, weights)
    torch.testing.assert_close(naive.deformable_attention(value, SHAPES, STARTS, places, weights), want)


def test_definition_and_gradient():
    value, shapes, starts, places, weights = arguments()
    torch.testing.assert_close(
        deformable_attention(value, shapes, starts, places, weights),
        by_definition(value, shapes, starts, places, weights),
    )
    leaves = [tensor.requires_grad_() for tensor in (value, places, weights)]
    assert torch.autograd.gradcheck(
        lambda value, places, weights: deformable_attention(value, SHAPES, STARTS, places, weights), leaves
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype):
    tensors = arguments(dtype)
    exact = by_definition(*(tensor.double() for tensor in tensors))
    output = deformable_attention(*tensors)
    tolerance = 8 * torch.finfo(dtype).eps
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), exact, rtol=tolerance, atol=tolerance)


def test_autocast_keeps_float32():
    tensors = arguments(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = deformable_attention(*tensors)
    assert torch.equal(output, deformable_attention(*tensors))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("way", ["eager", "gathered", "compiled"])
def test_places_out_of_all_reach_count_for_nothing(way, dtype):
    """As samples beyond the map, of which nothing is left in any derivative; the others are what they were."""
    value, _, _, places, weights = arguments(dtype)
    call = functools.partial(deformable_attention, backend="torch")
    if way == "gathered":
        sizes, starts = torch.tensor(SHAPES), torch.tensor(STARTS)
        call = lambda value, _, __, *rest: attend_gathered(value, None, sizes, starts, *rest)  # noqa: E731
    elif way == "compiled":
        torch.compiler.reset()
        call = torch.compile(call, backend="aot_eager")
    far = torch.zeros(places.shape[:5], dtype=torch.bool)
    far[0, 0, 0, :, 0] = far[1, 2, 1, 1, 1] = True
    out_of_reach = (math.nan, math.inf, -math.inf, 3e38, -3e38, 1e10, -70000.0)
    for place, axis in itertools.product(out_of_reach, (0, 1)):
        lost, kept = places.clone(), weights.clone()
        lost[..., axis][far], kept[far] = place, 0
        inputs = [x.clone().requires_grad_() for x in (value, lost, weights)]
        others = [x.clone().requires_grad_() for x in (value, places, kept)]
        out, want = call(inputs[0], SHAPES, STARTS, *inputs[1:]), call(others[0], SHAPES, STARTS, *others[1:])
        assert torch.equal(out, want)
        with torch.no_grad():
            torch.testing.assert_close(call(inputs[0], SHAPES, STARTS, *inputs[1:]), out)
        again = way != "compiled"
        grads = torch.autograd.grad(out.float().square().sum(), inputs, create_graph=again)
        wanted = torch.autograd.grad(want.float().square().sum(), others, create_graph=again)
        torch.testing.assert_close(grads[0], wanted[0])
        assert not grads[1][far].any() and not grads[2][far].any()
        for got, expected in zip(grads[1:], wanted[1:], strict=True):
            torch.testing.assert_close(got[~far], expected[~far])
        if again:
            seconds = torch.autograd.grad(sum(x.float().square().sum() for x in grads), inputs)
            assert all(x.isfinite().all() for x in seconds) and not seconds[1][far].any()


@pytest.mark.parametrize("empty", [dict(batch=0), dict(queries=0)], ids=str)
def test_empty(empty):
    tensors = arguments(**empty)
    assert deformable_attention(*tensors).shape == (*tensors[3].shape[:2], 6)


def test_errors():
    value, shapes, starts, places, weights = arguments()
    with pytest.raises(ValueError, match="value must be"):
        deformable_attention(value[0], shapes, starts, places, weights)
    with pytest.raises(ValueError, match="level_start_index has 2 levels"):
        deformable_attention(value, shapes, starts[:2], places, weights)
    with pytest.raises(ValueError, match="does not fit the 22 positions"):
        deformable_attention(value[:, :22], shapes, starts, places, weights)
    with pytest.raises(ValueError, match="sampling_locations must be"):
        deformable_attention(value, shapes, starts, places[..., 0], weights)
    with pytest.raises(ValueError, match="attention_weights must have shape"):
        deformable_attention(value, shapes, starts, places, weights[:, :1])


def test_mmcv_function():
    pytest.importorskip("mmcv")
    from attnzoo.heads.mm import ops

    # mmcv's operators import their compiled extension, which this serves.
    ops.install()
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    value, shapes, starts, places, weights = arguments()
    leaves = [tensor.requires_grad_() for tensor in (value, places, weights)]

    def function(value, places, weights):
        return MultiScaleDeformableAttnFunction.apply(value, shapes, starts, places, weights, 64)

    torch.testing.assert_close(function(*leaves), by_definition(value, shapes, starts, places, weights))
    assert torch.autograd.gradcheck(function, leaves)
