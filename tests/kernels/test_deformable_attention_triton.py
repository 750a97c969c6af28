"""Triton's deformable attention, in two and in three dimensions, against its definition."""

from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_helpers import DEVICE, assert_near

from attnzoo import kernels
from attnzoo.kernels import _dispatch, deformable_attention, deformable_attention_3d
from attnzoo.kernels.deformable_attention import naive, operator
from attnzoo.kernels.deformable_attention_3d import naive as naive_3d

LEVELS = [(2, 3), (3, 1)]
STARTS = [0, 6]


F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


def tensors(levels=LEVELS, batch=1, queries=3, heads=2, channels=3, points=2, bins=0, groups=1, dtype=torch.float32):
    """Locations within and around the maps; positions of value beyond the last level, which nothing reads."""
    positions = sum(h * w for h, w in levels) + 1
    depth = torch.randn(batch, positions, groups, bins).softmax(-1) if bins else None
    places = torch.rand(batch, queries, heads, len(levels), points, 3 if bins else 2) * 1.6 - 0.3
    given = {
        "value": torch.randn(batch, positions, heads, channels).to(dtype),
        "depth": None if depth is None else depth.to(dtype),
        "locations": places,
        "weights": torch.rand(batch, queries, heads, len(levels), points),
    }
    return {name: x.to(DEVICE) for name, x in given.items() if x is not None}


def run(given, backend, levels=LEVELS):
    """The result and every gradient, by name, of a backend or of the "definition"."""
    starts = [sum(h * w for h, w in levels[:i]) for i in range(len(levels))]
    leaves = {name: x.detach().requires_grad_() for name, x in given.items()}
    value, *depth, places, weights = leaves.values()
    if backend == "definition":
        function = naive_3d.deformable_attention_3d if depth else naive.deformable_attention
    else:
        function = partial(deformable_attention_3d if depth else deformable_attention, backend=backend)
    out = function(value, *depth, levels, starts, places, weights)
    shares = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out).sin()
    grads = torch.autograd.grad((out.float() * shares).sum(), list(leaves.values()))
    return {"out": out.detach()} | {f"gradient of {name}": x for name, x in zip(leaves, grads, strict=True)}


def compare(given, levels=LEVELS, tolerance=1e-5):
    exact = {name: x.double() for name, x in given.items()}
    got, want = run(given, "triton", levels), run(exact, "definition", levels)
    for name in want:
        assert_near(name, got[name], want[name], tolerance)


@pytest.fixture(params=[False, True], ids=["atomic", "sorted"])
def deterministic(request):
    torch.use_deterministic_algorithms(request.param)
    yield
    torch.use_deterministic_algorithms(False)


SHAPES = [
    pytest.param(dict(batch=2), id="2d"),
    pytest.param(dict(bins=5, groups=2), id="3d"),
    pytest.param(dict(bins=4, heads=3, channels=6), id="3d-shared-depth"),
    pytest.param(dict(levels=[(4, 3)], batch=2, heads=1, channels=17, queries=66, points=1), id="2d-one-level"),
    # More points than are unrolled.
    pytest.param(dict(levels=[(4, 3)], heads=1, channels=5, points=8, queries=2), id="2d-points"),
    pytest.param(dict(levels=[(4, 3)], heads=1, channels=5, points=6, queries=2, bins=2), id="3d-points"),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_result_and_every_gradient(shape, deterministic, poisoned):
    compare(tensors(**shape), shape.get("levels", LEVELS))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bins", [0, 4])
def test_half_precision(dtype, bins):
    given = tensors([(2, 2)], bins=bins, queries=2, dtype=dtype)
    got = run(given, "triton", [(2, 2)])
    assert got["out"].dtype == got["gradient of value"].dtype == dtype
    assert got["gradient of locations"].dtype == torch.float32
    # The result is rounded once, its gradient as it comes in once more.
    compare(given, [(2, 2)], 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("value", "depth", "locations", "weights"),
    [(BF16, F32, F32, BF16), (F16, BF16, BF16, F32), (F32, F16, F16, BF16), (F32, F32, BF16, F32)],
    ids=str,
)
@pytest.mark.parametrize("bins", [0, 4])
def test_every_tensor_in_its_own_dtype(bins, value, depth, locations, weights, deterministic):
    dtypes = dict(value=value, depth=depth, locations=locations, weights=weights)
    given = {name: x.to(dtypes[name]) for name, x in tensors([(3, 4)], bins=bins, queries=2, points=1).items()}
    assert kernels.can_run(
        "deformable_attention_3d" if bins else "deformable_attention",
        *list(given.values())[: 2 if bins else 1],
        [(3, 4)],
        [0],
        given["locations"],
        given["weights"],
    )
    got = run(given, "triton", [(3, 4)])
    want = run({name: x.double() for name, x in given.items()}, "definition", [(3, 4)])
    assert got["out"].dtype == value
    for name, x in given.items():
        assert got[f"gradient of {name}"].dtype == x.dtype
    for name, exact in want.items():
        # What comes in for the backward pass is of the result's dtype.
        eps = max(torch.finfo(dtype).eps for dtype in (got[name].dtype, value))
        assert_near(name, got[name], exact, max(4 * eps, 1e-5))


@settings(max_examples=3, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    levels=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), min_size=1, max_size=3),
    heads=st.integers(1, 3),
    channels=st.integers(1, 9),
    points=st.integers(1, 3),
    queries=st.integers(1, 4),
    bins=st.sampled_from([0, 1, 3]),
    shared=st.booleans(),
)
def test_any_shape(levels, heads, channels, points, queries, bins, shared):
    groups = 1 if shared else heads
    given = tensors(levels, 1, queries, heads, channels, points, bins, groups)
    compare(given, levels)


def test_strided_arguments():
    given = tensors(batch=2)
    strided = {name: x.transpose(0, 1).contiguous().transpose(0, 1) for name, x in given.items()}
    assert not strided["value"].is_contiguous()
    expected = run(given, "torch")
    for name, x in run(strided, "triton").items():
        assert_near(name, x, expected[name], 1e-5)


@pytest.mark.parametrize("bins", [0, 4])
def test_levels_in_any_order(bins, deterministic):
    given = tensors(bins=bins)
    value, *depth, places, weights = given.values()
    levels = torch.tensor(LEVELS[::-1], device=DEVICE), torch.tensor(STARTS[::-1], device=DEVICE)
    function = deformable_attention_3d if bins else deformable_attention
    outs = []
    for backend in ("triton", "torch"):
        leaf = value.clone().requires_grad_()
        out = function(leaf, *depth, *levels, places, weights, backend=backend)
        outs.append((out.detach(), *torch.autograd.grad(out.square().sum(), leaf)))
    for name, got, want in zip(("out", "gradient"), *outs, strict=True):
        assert_near(name, got, want, 1e-5)


@pytest.mark.parametrize("bins", [0, 4])
def test_places_that_no_map_has_count_for_nothing(bins, deterministic):
    """Far out, infinite and not a number, and exactly where samples begin to fade, one pixel before the map."""
    given = tensors([(3, 4)], queries=6, heads=1, points=1, bins=bins)
    places = given["locations"].fill_(0.5)
    edge = torch.tensor([-0.5 / 4, -0.5 / 3, -0.5 / max(bins, 1)][: places.shape[-1]])
    for query, (axis, place) in enumerate(
        [(0, edge[0]), (1, edge[1]), (-1, edge[-1]), (0, 1e30), (1, -torch.inf), (0, torch.nan)]
    ):
        places[0, query, 0, 0, 0, axis] = place
    for backend, tolerance in (("triton", 0), ("torch", 1e-6)):
        got = run(given, backend, [(3, 4)])
        for name in ("out", "gradient of value", "gradient of weights"):
            # At the edge `grid_sample` rounds.
            assert got[name].abs().max() <= tolerance, (backend, name)
        assert not got["gradient of locations"].any(), backend


@pytest.mark.parametrize("channels", [3, 40])
def test_tiles_without_a_sample_within_reach(channels, deterministic, poisoned):
    """They are skipped in three dimensions, where whole images see nothing of many queries."""
    given = tensors([(3, 2)], queries=70, heads=1, channels=channels, points=2, bins=3)
    given["locations"][:, :65] += 3
    given["locations"][:, 2, 0, 0, 1] = 0.4
    compare(given, [(3, 2)])


def test_levels_that_do_not_fit_have_no_pixels():
    """On a GPU nobody reads them before the kernels do."""
    from attnzoo.kernels.deformable_attention import triton

    given = tensors([(2, 3)] * 4, dtype=torch.float32)
    value, places, weights = given["value"][:, :7], given["locations"], given["weights"]
    sizes = torch.tensor([(2, 3), (2, 3), (2, 0), (70000, 70000)], device=DEVICE)
    starts = torch.tensor([-1, 1, 0, 0], device=DEVICE)
    want = naive.deformable_attention(value, [(2, 3)], [1], places[:, :, :, 1:2], weights[:, :, :, 1:2])
    out = triton.deformable_attention_forward(value, None, sizes, starts, places, weights)
    assert_near("out", out, want, 1e-5)
    grads = triton.deformable_attention_backward(torch.ones_like(out), value, None, sizes, starts, places, weights)
    assert grads[2][:, :, :, 1].any() and not grads[2][:, :, :, [0, 2, 3]].any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the interpreter adds in order anyway")
def test_atomic_gradients_agree_with_sorted_ones_at_real_sizes():
    levels = [(100, 167), (50, 84), (25, 42), (13, 21)]
    given = tensors(levels, 2, 22223, 8, 32, 4, dtype=torch.bfloat16)
    atomic = run(given, "triton", levels)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (run(given, "triton", levels) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    for name, x in first.items():
        assert torch.equal(x, second[name]), name
        assert_near(name, atomic[name], x, 2e-2)


def test_sorted_gradients_are_the_same_in_every_run():
    given = tensors([(2, 2)], bins=3)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (run(given, "triton", [(2, 2)]) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("empty", [dict(batch=0), dict(queries=0)], ids=str)
def test_empty(empty, deterministic):
    got = run(tensors(**empty), "triton")
    assert got["out"].numel() == 0 and not got["gradient of value"].any()


def test_can_run():
    given = tensors(bins=4)
    levels = (LEVELS, STARTS)

    def arguments(**replaced):
        value, depth, places, weights = {**given, **replaced}.values()
        return value, depth, *levels, places, weights

    can_run = kernels.can_run
    assert can_run("deformable_attention_3d", *arguments())
    assert not can_run("deformable_attention_3d", *arguments(value=given["value"].double()))
    wide = given["value"].repeat(1, 1, 1, 100)
    with pytest.raises(RuntimeError, match="300 channels, it needs 256 at most"):
        can_run("deformable_attention_3d", *arguments(value=wide), raise_error=True)
    with pytest.raises(RuntimeError, match="400 bins, it needs 256 at most"):
        can_run("deformable_attention_3d", *arguments(depth=given["depth"].repeat(1, 1, 1, 100)), raise_error=True)
    with pytest.raises(RuntimeError, match="Triton cannot run: dtype is torch"):
        deformable_attention_3d(*arguments(locations=given["locations"].double()), backend="triton")
    assert not can_run("deformable_attention", given["value"].to("meta"), *levels, *list(given.values())[2:])


class Sampler(torch.nn.Module):
    """Levels as tensors, as mmdet's models pass them."""

    def __init__(self, backend="triton"):
        super().__init__()
        self.backend = backend
        self.register_buffer("sizes", torch.tensor(LEVELS))
        self.register_buffer("starts", torch.tensor(STARTS))

    def forward(self, value, *rest):
        *depth, places, weights = rest
        function = deformable_attention_3d if depth else deformable_attention
        return function(value, *depth, self.sizes, self.starts, places, weights, backend=self.backend)


@pytest.mark.parametrize("bins", [0, 4])
def test_compiles_to_one_graph_for_every_batch(bins):
    torch._dynamo.reset()
    compiled = torch.compile(Sampler().to(DEVICE), fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (2, 3):
            given = list(tensors(batch=batch, queries=1, points=1, bins=bins).values())
            for x in given:
                torch._dynamo.mark_dynamic(x, 0)
                x.requires_grad_()
            out = compiled(*given)
            grads = torch.autograd.grad(out.sum(), given)
            want = Sampler("torch").to(DEVICE)(*given)
            assert_near("out", out, want, 1e-5)
            for got, exact in zip(grads, torch.autograd.grad(want.sum(), given), strict=True):
                assert_near("gradient", got, exact, 1e-5)


def test_exports_plain_pytorch():
    class Fixed(torch.nn.Module):
        def forward(self, value, places, weights):
            return deformable_attention(value, LEVELS, STARTS, places, weights, backend="triton")

    given = tuple(tensors().values())
    program = torch.export.export(Fixed(), given)
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert names and all(name.startswith("aten.") or "getitem" in name for name in names)
    assert_near("out", program.module()(*given), Fixed()(*given), 1e-5)


@pytest.mark.parametrize("bins", [0, 3])
def test_operator_is_registered_well(bins):
    value, *depth, places, weights = (x.requires_grad_() for x in tensors(queries=1, points=1, bins=bins).values())
    levels = operator.levels_of(LEVELS, STARTS, value)
    arguments = (value, depth[0] if depth else None, *levels, places, weights)
    torch.library.opcheck(torch.ops.attnzoo.deformable_attention.default, arguments)


def test_the_context_chooses():
    value, places, weights = tensors(queries=1).values()
    with _dispatch.use_backend("triton"), pytest.raises(RuntimeError, match="deformable_attention: Triton cannot run"):
        deformable_attention(value.double(), LEVELS, STARTS, places, weights)
    with _dispatch.use_backend("torch"):
        deformable_attention(value.double(), LEVELS, STARTS, places, weights)
