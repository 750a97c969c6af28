"""Triton's kernels against the definition, in the interpreter where there is no GPU."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_helpers import DEVICE, assert_near
from torch._dynamo.testing import CompileCounterWithBackend

from attnzoo.kernels import can_run, neighborhood_attention, use_backend
from attnzoo.kernels.neighborhood_attention import naive
from attnzoo.kernels.neighborhood_attention.operator import attention

triton = pytest.importorskip("triton")
tl = triton.language
kernels = pytest.importorskip("attnzoo.kernels.neighborhood_attention.triton")

TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


def inputs(b, h, w, heads, head_dim, kernel_size, dtype=torch.float32):
    """q, k and v as parts of one tensor, and a table that is not contiguous either."""
    qkv = torch.randn(b, h, w, 3 * heads * head_dim, dtype=dtype, device=DEVICE)
    side = 2 * kernel_size - 1
    table = torch.randn(side, side, heads, dtype=dtype, device=DEVICE)
    return qkv.requires_grad_(), table.requires_grad_()


def results(qkv, table, grad, heads, kernel_size, dilation, backend, scale=None):
    """Output and gradients by name, of a backend or of the "definition"."""
    public = partial(neighborhood_attention, backend=backend)
    function = naive.neighborhood_attention if backend == "definition" else public
    q, k, v = qkv.chunk(3, -1)
    bias = None if table is None else table.permute(2, 0, 1)
    out = function(q, k, v, heads, kernel_size, dilation, bias, scale)
    given = [qkv] if table is None else [qkv, table]
    grads = torch.autograd.grad(out, given, grad.to(out.dtype))
    names = ("grad_q", "grad_k", "grad_v")
    return {"out": out.detach(), **dict(zip(names, grads[0].chunk(3, -1), strict=True)), "grad_bias": grads[-1]}


def compare(b, h, w, heads, head_dim, kernel_size, dilation, bias=True, dtype=torch.float32):
    qkv, table = inputs(b, h, w, heads, head_dim, kernel_size, dtype)
    if not bias:
        table = None
    # Neither contiguous.
    grad = torch.randn(b, w, h, heads * head_dim, device=DEVICE).transpose(1, 2)
    got = results(qkv, table, grad, heads, kernel_size, dilation, "triton")
    double = [None if x is None else x.detach().double().requires_grad_() for x in (qkv, table)]
    want = results(*double, grad.double(), heads, kernel_size, dilation, "definition")
    # Gradients that cancel out to nothing are as exact as what they are sums of.
    magnitude = max(x.abs().max() for x in want.values())
    for name, value in got.items():
        assert value.dtype == dtype
        if want[name].abs().max() < 1e-6 * magnitude:
            assert value.abs().max() < TOLERANCE[dtype] * magnitude, name
        else:
            assert_near(name, value, want[name], TOLERANCE[dtype])


# B, H, W, heads, head_dim, kernel_size, dilation: tiles at every border; classes of two lengths; axes shorter than the
# window, than the dilation; both tilings of the table's gradient.
CASES = [
    (2, 5, 9, 2, 8, 3, 1),
    (1, 7, 11, 1, 20, 5, 2),
    (1, 4, 18, 1, 16, 7, 1),
    (1, 7, 5, 1, 16, 3, 3),
    (1, 3, 2, 1, 5, 3, 4),
    (1, 5, 12, 1, 16, 11, 1),
]


@pytest.mark.long
@pytest.mark.parametrize("case", CASES, ids=lambda case: "B{}-H{}-W{}-N{}-D{}-K{}-d{}".format(*case))
def test_output_and_gradients(case, poisoned):
    compare(*case)


def test_without_bias(poisoned):
    compare(1, 6, 9, 2, 16, 3, 1, bias=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, poisoned):
    compare(1, 9, 11, 1, 16, 3, 1, dtype=dtype)


@pytest.mark.long
@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    b=st.integers(1, 2),
    h=st.integers(1, 7),
    w=st.integers(1, 7),
    head_dim=st.integers(1, 18),
    kernel_size=st.sampled_from([3, 5, 7]),
    dilation=st.integers(1, 4),
    bias=st.booleans(),
)
def test_drawn_shapes(b, h, w, head_dim, kernel_size, dilation, bias):
    torch.manual_seed(0)
    compare(b, h, w, 1, head_dim, kernel_size, dilation, bias)


@triton.jit
def rectangles(out, length, TILE: tl.constexpr, KERNEL: tl.constexpr, COUNT: tl.constexpr):
    first = tl.arange(0, COUNT) * TILE
    begin, number = kernels._keys_of(first, length, TILE, KERNEL)
    tl.store(out + tl.arange(0, COUNT), begin)
    tl.store(out + COUNT + tl.arange(0, COUNT), number)
    begin, number = kernels._queries_of(first, length, TILE, KERNEL)
    tl.store(out + 2 * COUNT + tl.arange(0, COUNT), begin)
    tl.store(out + 3 * COUNT + tl.arange(0, COUNT), number)


@pytest.mark.parametrize("kernel_size", [3, 5, 15])
@pytest.mark.parametrize("tile", [1, 3, 4])
def test_rectangles_hold_what_a_tile_needs_and_no_more(kernel_size, tile):
    """The rule of the borders, both ways, against windows drawn one by one."""
    for length in (*range(1, 9), 15, 17, 31):
        windows = []
        for query in range(length):
            first = min(max(query - kernel_size // 2, 0), max(length - kernel_size, 0))
            windows.append(set(range(first, min(first + kernel_size, length))))
        out = torch.empty(4, 32, dtype=torch.int32, device=DEVICE)
        rectangles[(1,)](out, length, tile, kernel_size, 32)
        for n, first in enumerate(range(0, length, tile)):
            members = set(range(first, min(first + tile, length)))
            keys = set().union(*(windows[query] for query in members))
            queries = {query for query, window in enumerate(windows) if window & members}
            for related, begin, number in ((keys, *out[:2, n].tolist()), (queries, *out[2:, n].tolist())):
                assert related == set(range(begin, begin + number))


def test_two_runs_give_the_same_bits():
    qkv, table = inputs(1, 4, 5, 1, 16, 3)
    grad = torch.randn(1, 4, 5, 16, device=DEVICE)
    first, second = (results(qkv, table, grad, 1, 3, 1, "triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_gradient_of_a_sum():
    """Its strides are all zero."""
    qkv, table = inputs(1, 4, 5, 1, 16, 3)
    grad = torch.ones(1, device=DEVICE).expand(1, 4, 5, 16)
    got, want = (results(qkv, table, grad, 1, 3, 1, backend) for backend in ("triton", "torch"))
    assert_near("grad_v", got["grad_v"], want["grad_v"], 1e-5)


def test_no_image():
    qkv, table = inputs(0, 4, 5, 1, 16, 3)
    got = results(qkv, table, torch.zeros(0, 4, 5, 16, device=DEVICE), 1, 3, 1, "triton")
    assert got["out"].shape == (0, 4, 5, 16) and got["grad_bias"].eq(0).all()


def test_only_what_asks_gets_a_gradient():
    qkv, table = inputs(1, 3, 4, 1, 16, 3)
    q, k, v = qkv.detach().chunk(3, -1)
    neighborhood_attention(q, k, v, 1, 3, 1, table.permute(2, 0, 1), backend="triton").sum().backward()
    assert qkv.grad is None and table.grad.shape == table.shape
    bias = table.detach().permute(2, 0, 1)
    neighborhood_attention(q.requires_grad_(), k, v, 1, 3, 1, bias, backend="triton").sum().backward()
    assert q.grad.shape == q.shape


def test_table_of_another_dtype():
    """As under autocast: q, k and v in half precision, the parameter in float32."""
    qkv, table = inputs(1, 4, 5, 1, 16, 3, torch.float16)
    table = table.detach().float().requires_grad_()
    grad = torch.randn(1, 4, 5, 16, device=DEVICE)
    got, want = (results(qkv, table, grad, 1, 3, 1, backend) for backend in ("triton", "torch"))
    assert got["grad_bias"].dtype == torch.float32
    for name, value in got.items():
        assert_near(name, value, want[name], 5e-3)


def test_can_run():
    q = torch.zeros(1, 4, 4, 160, device=DEVICE)
    assert can_run("neighborhood_attention", q, q, q, 2, 3)
    for heads, key, table, reason in (
        (1, q, None, "a head has 160 channels, it takes up to 128"),
        (2, q.half(), None, "k must be torch.float32 as q is, got torch.float16"),
        (2, q, torch.zeros(2, 5, 5, device=DEVICE).double(), "float64"),
        (2, q, torch.zeros(2, 5, 5, device="meta"), "meta"),
    ):
        args = (q, key, q, heads, 3, 1, table)
        assert not can_run("neighborhood_attention", *args)
        with pytest.raises(RuntimeError, match=f"neighborhood_attention: Triton cannot run: .*{reason}"):
            can_run("neighborhood_attention", *args, raise_error=True)
    with pytest.raises(RuntimeError, match="160 channels"):
        neighborhood_attention(q, q, q, 1, 3, backend="triton")
    with pytest.raises(ValueError, match="backend must be one of"):
        neighborhood_attention(q, q, q, 2, 3, backend="cuda")


class Layer(torch.nn.Module):
    def __init__(self, backend: str = "auto"):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(1, 5, 5))
        self.backend = backend

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = x.chunk(3, -1)
        return neighborhood_attention(q, k, v, 1, 3, 1, self.table, backend=self.backend)


@pytest.mark.long
def test_operator_obeys_pytorch():
    qkv, table = inputs(1, 3, 5, 1, 16, 3)
    q, k, v = (x.detach().requires_grad_() for x in qkv.chunk(3, -1))
    for bias, scale in ((table.permute(2, 0, 1).detach().requires_grad_(), 0.25), (None, 0.5)):
        torch.library.opcheck(attention, (q, k, v, bias, 1, 3, 1, scale))


@pytest.mark.long
def test_compiles_to_one_graph_for_every_size():
    torch.compiler.reset()
    layer = Layer("triton").to(DEVICE)
    # A batch of one is a graph of its own, as ever.
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True)
    for n, size in enumerate([(2, 3, 4), (3, 2, 5)]):
        x = torch.randn(*size, 12, device=DEVICE, requires_grad=True)
        with torch._dynamo.config.patch(error_on_recompile=n > 0):
            out = compiled(x)
        got = torch.autograd.grad(out.square().sum(), [x, layer.table])
        want_out = layer(x)
        want = torch.autograd.grad(want_out.square().sum(), [x, layer.table])
        torch.testing.assert_close(out, want_out)
        torch.testing.assert_close(got, want)
    assert counter.frame_count == 1
    targets = [str(node.target) for node in counter.graphs[0].graph.nodes if node.op == "call_function"]
    assert sum("neighborhood_attention" in target for target in targets) == 1
    assert not [target for target in targets if "index_select" in target]


def test_exports_plain_operators():
    x = torch.randn(1, 4, 6, 12, device=DEVICE)
    layer = Layer("triton").to(DEVICE)
    program = torch.export.export(layer, (x,))
    targets = {node.target for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}
    assert {target.namespace for target in targets} == {"aten"}
    torch.testing.assert_close(program.module()(x), layer(x), rtol=1e-5, atol=1e-5)


def test_backend_by_context():
    layer, x = Layer().to(DEVICE), torch.randn(1, 3, 4, 12, device=DEVICE)
    with use_backend("triton"):
        assert "NeighborhoodAttention" in type(layer(x).grad_fn).__name__ or "neighborhood" in layer(x).grad_fn.name()
    with use_backend("torch"):
        assert "neighborhood" not in layer(x).grad_fn.name()


@pytest.mark.long
def test_memory_of_the_table_gradient_is_bounded(monkeypatch):
    """Six stretches of queries, of which four programs a row of the table take their share."""
    made = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: made.append(empty(*args, **kwargs)) or made[-1])
    monkeypatch.setattr(kernels, "_BIAS_PROGRAMS", 20)
    qkv, table = inputs(3, 2, 17, 1, 8, 3)
    grad = torch.randn(3, 2, 17, 8, device=DEVICE)
    got = results(qkv, table, grad, 1, 3, 1, "triton")
    assert [x.shape for x in made if x.shape[2:] == (5, 5)] == [(4, 1, 5, 5)]
    assert_near("grad_bias", got["grad_bias"], results(qkv, table, grad, 1, 3, 1, "torch")["grad_bias"], 1e-5)
