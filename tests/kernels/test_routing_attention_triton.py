"""Triton's kernels against the definition; without a GPU in Triton's interpreter, hence the small maps."""

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_helpers import DEVICE, assert_near
from torch.utils._python_dispatch import TorchDispatchMode

from attnzoo.kernels import can_run, routing_attention, routing_attention_packed
from attnzoo.kernels.routing_attention import cpu, naive, operator

jit, tl = pytest.importorskip("triton").jit, pytest.importorskip("triton.language")
triton = pytest.importorskip("attnzoo.kernels.routing_attention.triton")
triton_places = pytest.importorskip("attnzoo.kernels.routing_attention.triton_places")
triton_routing = pytest.importorskip("attnzoo.kernels.routing_attention.triton_routing")
pytestmark = pytest.mark.skipif(
    not can_run("routing_attention", *[torch.zeros(1, 1, 1, 1, device=DEVICE)] * 3, 1, (1, 1), 1, 1.0),
    reason="neither a GPU nor Triton's interpreter",
)


def qkv(b, h, w, c, dtype=torch.float32):
    """Views of one tensor, as a projection gives them; contiguous they are not."""
    return torch.randn(b, h, w, 3 * c, device=DEVICE).to(dtype).chunk(3, -1)


def chosen(q, k, regions, topk):
    inside = naive.to_regions(q.new_ones(1, *q.shape[1:3], 1), regions)
    return naive.route(naive.to_regions(q, regions), naive.to_regions(k, regions), inside, topk)


def outputs_and_gradients(function, q, k, v, *args):
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = function(*leaves, *args)
    weight = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape).to(out.dtype)
    return {"out": out, **dict(zip("qkv", torch.autograd.grad((out * weight).sum(), leaves), strict=True))}


def check(q, k, v, heads, regions, topk, scale, tolerance=1e-5):
    args = heads, regions, topk, scale
    want = outputs_and_gradients(naive.routing_attention, *(x.double() for x in (q, k, v)), *args)
    got = outputs_and_gradients(routing_attention, q, k, v, *args, "triton")
    for name in want:
        assert got[name].dtype == q.dtype
        if want[name].any():
            assert_near(name, got[name], want[name], tolerance)
        else:
            # Of a single key the weight is 1 whatever its score.
            assert got[name].abs().max() <= tolerance, name


@pytest.mark.long
@pytest.mark.parametrize(
    ("b", "h", "w", "c", "heads", "regions", "topk"),
    [
        # Regions smaller than a tile share it.
        (2, 6, 4, 6, 2, (3, 2), 4),
        # Tiles and a bit, of queries and of keys.
        (1, 11, 14, 5, 1, (2, 1), 1),
        # Smaller last regions; heads of more than a tile's least channels.
        (1, 7, 8, 34, 2, (2, 3), 3),
        # Empty ones: no key region, and no query region, is left for some.
        (1, 4, 2, 4, 1, (3, 3), 7),
        (2, 1, 1, 4, 1, (2, 2), 3),
    ],
)
def test_equals_the_definition(b, h, w, c, heads, regions, topk, poisoned):
    check(*qkv(b, h, w, c), heads, regions, topk, 0.4)


def test_any_strides(poisoned):
    q = torch.randn(1, 4, 6, 5, device=DEVICE).transpose(1, 3)
    k = torch.randn(2, 6, 4, 10, device=DEVICE)[:1, ::1, :, ::2].transpose(1, 2).reshape(1, 5, 6, 4)
    v = torch.randn(1, 1, 6, 4, device=DEVICE).expand(1, 5, 6, 4)
    check(q, k, v, 2, (2, 2), 2, 0.4)


@pytest.mark.long
@settings(max_examples=5, deadline=None, derandomize=True)
@given(data=st.data())
def test_drawn_shapes(data):
    rows, cols = data.draw(st.integers(1, 3), "rows"), data.draw(st.integers(1, 3), "columns")
    topk = data.draw(st.integers(1, max(rows * cols - 1, 1)), "topk")
    height, width = data.draw(st.integers(1, 9), "height"), data.draw(st.integers(1, 9), "width")
    heads, dim = data.draw(st.integers(1, 2), "heads"), data.draw(st.integers(1, 20), "head dimension")
    torch.manual_seed(0)
    check(*qkv(1, height, width, heads * dim), heads, (rows, cols), topk, dim**-0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """Regions far apart, lest rounding choose others than the definition in float64."""
    q, k, v = qkv(1, 4, 6, 16)
    for region, (i, j) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        for x in (q, k):
            x[:, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3, region] += 2 + region
    check(*(x.to(dtype) for x in (q, k, v)), 2, (2, 2), 2, 0.25, 6 * torch.finfo(dtype).eps)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_large_scores_overflow_nothing(poisoned):
    """Keys off the map score zero, far above or below all others; what overflows there is not stored."""
    for sign in (1, -1):
        q, k, v = qkv(1, 3, 3, 16)
        q, k = q.abs() * 30, k.abs() * 30 * sign
        got = outputs_and_gradients(routing_attention, q, k, v, 1, (2, 2), 2, 1.0, "triton")
        assert all(x.isfinite().all() for x in got.values())
        assert_near("out", got["out"], naive.routing_attention(q, k, v, 1, (2, 2), 2, 1.0), 1e-4)


def test_same_bits_again():
    q, k, v = qkv(1, 5, 6, 8)
    first, second = (outputs_and_gradients(routing_attention, q, k, v, 1, (2, 2), 3, 0.4, "triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("h", "w", "regions", "topk"),
    [
        (6, 9, (3, 3), 4),
        (5, 7, (3, 2), 3),
        # Empty regions, some of which are chosen.
        (4, 3, (3, 2), 5),
        # More than a tile of query regions; of channels there always is.
        (10, 10, (5, 5), 25),
    ],
)
def test_routing(h, w, regions, topk, poisoned):
    q, k, _ = qkv(2, h, w, 70)
    index = triton_routing.route(q, k, regions, topk)
    assert index.dtype == torch.int32
    # Of an empty query region all scores are equal.
    filled = naive.to_regions(torch.ones(1, h, w, 1, device=DEVICE), regions).any(2).flatten()
    number = min(topk, int(filled.sum()))
    assert torch.equal(index[:, filled, :number].long(), chosen(q, k, regions, number)[:, filled])
    assert all(len(row.unique()) == topk for row in index.flatten(0, 1))


def test_routing_of_more_regions_than_a_program_holds(monkeypatch):
    q, k, _ = qkv(2, 5, 7, 6)
    monkeypatch.setattr(triton_routing, "MAX_REGIONS", 5)
    assert torch.equal(triton_routing.route(q, k, (3, 2), 3).long(), chosen(q, k, (3, 2), 3))


def test_of_equal_scores_the_first_regions_are_chosen():
    q, k, _ = (torch.ones(1, 4, 7, 8, device=DEVICE) for _ in range(3))
    assert torch.equal(triton_routing.route(q, k, (2, 3), 4).cpu(), torch.arange(4).int().expand(1, 6, 4))
    # The last column of five is empty.
    assert triton_routing.route(q, k, (1, 5), 5)[0, 0].tolist() == [0, 1, 2, 3, 4]
    assert triton_routing.route(q, -k, (2, 5), 9)[0, 0].tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 4]


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_scores_that_are_no_numbers_choose_regions_that_exist():
    q, k, _ = qkv(1, 4, 6, 4)
    k[:, 2:, 4:] = float("nan")
    k[:, :2, :2] = float("inf")
    index = triton_routing.route(q.abs(), k, (2, 3), 5)
    assert all(len(row.unique()) == 5 and 0 <= row.min() <= row.max() < 6 for row in index[0])
    assert torch.equal(index[0, :, :2].cpu(), torch.tensor([5, 0]).int().expand(6, 2))


def test_means_are_summed_in_float32():
    x = torch.full((1, 64, 64, 1), 1.0, device=DEVICE, dtype=torch.float16)
    x[:, ::2] = 60000
    for mean in triton_routing.region_means(x, x, (1, 1)):
        assert mean.item() == pytest.approx(30000.5, rel=1e-3)


@jit
def _divide_kernel(x, quotients, rests, divisor, inverse, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    quotient, rest = triton_places.divide(tl.load(x + at), divisor, inverse)
    tl.store(quotients + at, quotient)
    tl.store(rests + at, rest)


@pytest.mark.parametrize("divisor", [1, 2, 3, 49, 1369, 2**15 + 1, 2**30, 2**30 + 1, 2**31 - 1])
def test_division(divisor):
    edges = [n * divisor + d for n in (0, 1, 2, 3, 1000, (2**31 - 1) // divisor) for d in (-1, 0, 1)]
    edges = [x for x in edges if 0 <= x < 2**31] + [2**31 - 1]
    x = torch.tensor(edges + torch.randint(2**31 - 1, (64 - len(edges),)).tolist(), device=DEVICE)
    quotients, rests = (torch.empty(64, dtype=torch.int32, device=DEVICE) for _ in range(2))
    _divide_kernel[(1,)](x.int(), quotients, rests, divisor, triton_places.inverse(divisor), COUNT=64)
    assert torch.equal(quotients.long(), x // divisor) and torch.equal(rests.long(), x % divisor)


def test_inverted_index(poisoned):
    index = torch.stack([torch.randperm(66)[:2] for _ in range(2 * 66)]).view(2, 66, 2).int().to(DEVICE)
    lists, numbers = triton_routing.inverted_index(index)
    for n in range(2):
        for key in range(66):
            want = [query for query in range(66) if key in index[n, query].tolist()]
            assert lists[n, key, : numbers[n, key]].tolist() == want


class Recorded(TorchDispatchMode):
    """Names of the operators that run within it."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("h", "w"), [(4, 6), (3, 5)])
def test_packed_is_the_same_without_copies(h, w, poisoned):
    qkv = torch.randn(2, h, w, 24, device=DEVICE, requires_grad=True)
    args = 2, (2, 2), 3, 0.4
    want = routing_attention(*qkv.chunk(3, -1), *args, "triton")
    weight = torch.linspace(-1, 1, want.numel(), device=DEVICE).view(want.shape)
    want_grad = torch.autograd.grad(want, qkv, weight)[0]
    with Recorded() as recorded:
        out = routing_attention_packed(qkv, *args, backend="triton")
        grad = torch.autograd.grad(out, qkv, weight)[0]
    assert torch.equal(out, want) and torch.equal(grad, want_grad)
    assert grad.is_contiguous()
    names = {name for name in recorded.names if "detach" not in name}
    assert names == {"attnzoo::routing_attention_packed", "attnzoo::routing_attention_packed_backward"}


def test_packed_in_any_strides(poisoned):
    wide = torch.randn(2, 5, 7, 25, device=DEVICE)
    local = torch.randn(8, 1, 3, 5, device=DEVICE), torch.randn(8, device=DEVICE)
    for qkv in (wide[:, :4, 1:, 1:], wide.transpose(1, 2)[..., :24], wide[:1, :, :, :24].expand(2, -1, -1, -1)):
        tensors = [x.requires_grad_() for x in (qkv, *local)]
        results = []
        for backend in ("triton", "torch"):
            out = routing_attention_packed(qkv, 2, (2, 2), 3, 0.4, *local, backend=backend)
            results.append((out, *torch.autograd.grad(out.square().sum(), tensors)))
        for name, got, want in zip(("out", "qkv", "weight", "bias"), *results, strict=True):
            assert_near(name, got, want, 1e-5)


def test_local_term_without_copies(poisoned, monkeypatch):
    """The values and their gradient are read and written where they lie, and one kernel adds the term."""
    depthwise = importlib.import_module("attnzoo.kernels.large_kernel_attention.triton")
    rows, seen = depthwise._rows, []

    def view(x):
        seen.append(rows(x).data_ptr() == x.data_ptr())
        return rows(x)

    monkeypatch.setattr(depthwise, "_rows", view)
    qkv, weight, bias = (torch.randn(x, device=DEVICE).requires_grad_() for x in ((2, 4, 6, 24), (8, 1, 5, 3), (8,)))
    with Recorded() as recorded:
        out = routing_attention_packed(qkv, 2, (2, 2), 3, 0.4, weight, bias, "triton")
        grads = torch.autograd.grad(out, (qkv, weight, bias), torch.ones_like(out))
    assert out.is_contiguous() and all(x.is_contiguous() for x in grads)
    names = {name for name in recorded.names if name.startswith("attnzoo")}
    assert names == {"attnzoo::routing_attention_packed", "attnzoo::routing_attention_packed_backward"}
    assert not {"aten::clone", "aten::cat", "aten::add.Tensor"}.intersection(recorded.names)
    assert seen and all(seen)


def test_refusals():
    q = torch.zeros(1, 4, 4, 130, device=DEVICE)
    assert can_run("routing_attention", q, q, q, 5, (2, 2), 2, 1.0)
    for x, heads, message in (
        (q, 2, "head dimension is 65, it takes up to 64"),
        (q.double(), 5, "dtype is torch.float64"),
        (q.to("meta"), 5, "tensors are on meta"),
    ):
        assert not can_run("routing_attention", x, x, x, heads, (2, 2), 2, 1.0)
        with pytest.raises(RuntimeError, match=message):
            routing_attention(x, x, x, heads, (2, 2), 2, 1.0, "triton")


@pytest.mark.long
def test_operator_is_well_formed():
    q, k, v = (x.contiguous().requires_grad_() for x in qkv(1, 3, 2, 4))
    torch.library.opcheck(operator.forward, (q, k, v, 2, [2, 2], 2, 0.4))
    packed = torch.cat([q, k, v], -1).detach().requires_grad_()
    torch.library.opcheck(operator.packed_forward, (packed, None, None, 2, [2, 2], 2, 0.4))
    weight, bias = (torch.randn(x, device=DEVICE).requires_grad_() for x in ((4, 1, 3, 1), (4,)))
    torch.library.opcheck(operator.packed_forward, (packed, weight, bias, 2, [2, 2], 2, 0.4))


@pytest.mark.long
def test_compiles_once_for_all_batches():
    compiled = torch.compile(routing_attention, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 3):
        with torch._dynamo.config.patch(error_on_recompile=batch == 3):
            q, k, v = qkv(batch, 3, 4, 4)
            got = outputs_and_gradients(compiled, q, k, v, 1, (2, 2), 2, 0.4, "triton")
        want = outputs_and_gradients(naive.routing_attention, q, k, v, 1, (2, 2), 2, 0.4)
        for name in want:
            assert_near(name, got[name], want[name], 1e-5)


class Routed(torch.nn.Module):
    def forward(self, q, k, v):
        return routing_attention(q, k, v, 2, (2, 2), 2, 0.4, "triton")


def test_export_holds_plain_operators():
    program = torch.export.export(Routed(), tuple(qkv(2, 4, 5, 4)))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert any("scaled_dot_product_attention" in target for target in targets)
    assert not any("attnzoo" in target for target in targets)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("size", "c", "heads", "topk"), [(133, 64, 2, 1), (64, 128, 4, 4), (35, 256, 8, 16)])
def test_real_sizes(dtype, size, c, heads, topk):
    """Against the definition for the same choice of regions, in memory for inputs, outputs and gradients."""
    q, k, v = (x.requires_grad_() for x in qkv(4, size, size, c, dtype))
    regions, scale = (7, 7), c**-0.5
    index = triton_routing.route(q, k, regions, topk)
    grad = torch.ones(q.shape, device=DEVICE, dtype=dtype)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    out, lse = triton.attention_forward(q, k, v, index, heads, regions, scale)
    grads = [torch.empty_like(out) for _ in range(3)]
    triton.attention_backward(grad, q, k, v, index, out, lse, heads, regions, scale, grads)
    assert torch.cuda.max_memory_allocated() - before <= 1.2 * 4 * out.numel() * out.element_size() + 2**20
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    want = cpu.attend_to_chosen(*exact, index.long(), heads, regions, scale)
    want_grads = torch.autograd.grad(want.sum(), exact)
    tolerance = 1e-4 if dtype == torch.float32 else 6 * torch.finfo(dtype).eps
    for name, got, expected in zip(["out", *"qkv"], [out, *grads], [want, *want_grads], strict=True):
        assert_near(name, got, expected, tolerance)
