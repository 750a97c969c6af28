"""Triton's kernels against the definition, in the interpreter where there is no GPU."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_helpers import DEVICE, assert_near
from torch._dynamo.testing import CompileCounterWithBackend

from attnzoo.kernels import can_run, use_backend, window_attention
from attnzoo.kernels.window_attention import naive
from attnzoo.kernels.window_attention.operator import attention

pytest.importorskip("triton")
kernels = pytest.importorskip("attnzoo.kernels.window_attention.triton")

TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


def inputs(b, h, w, heads, head_dim, window, overlap=0, dtype=torch.float32):
    """q, k and v as parts of one tensor, and a table that is not contiguous."""
    qkv = torch.randn(b, h, w, 3 * heads * head_dim, dtype=dtype, device=DEVICE)
    rows = (2 * window[0] - 1 + overlap) * (2 * window[1] - 1 + overlap)
    table = torch.randn(heads, rows, dtype=dtype, device=DEVICE)
    return qkv.requires_grad_(), table.requires_grad_()


def results(qkv, table, grad, heads, window, shift, overlap, backend):
    """Output and gradients by name, of a backend or of the "definition"."""
    function = naive.window_attention if backend == "definition" else partial(window_attention, backend=backend)
    q, k, v = qkv.chunk(3, -1)
    bias = None if table is None else table.t()
    out = function(q, k, v, heads, window, shift, overlap, bias, 0.3)
    given = [qkv] if table is None else [qkv, table]
    grads = torch.autograd.grad(out, given, grad.to(out.dtype))
    names = ("grad_q", "grad_k", "grad_v")
    found = {"out": out.detach(), **dict(zip(names, grads[0].chunk(3, -1), strict=True))}
    return found if table is None else {**found, "grad_bias": grads[1]}


def compare(b, h, w, heads, head_dim, window, shift=(0, 0), overlap=0, bias=True, dtype=torch.float32):
    qkv, table = inputs(b, h, w, heads, head_dim, window, overlap, dtype)
    table = table if bias else None
    # Not contiguous.
    grad = torch.randn(b, w, h, heads * head_dim, device=DEVICE).transpose(1, 2)
    got = results(qkv, table, grad, heads, window, shift, overlap, "triton")
    double = [None if x is None else x.detach().double().requires_grad_() for x in (qkv, table)]
    want = results(*double, grad.double(), heads, window, shift, overlap, "definition")
    # Gradients that cancel out to nothing are as exact as what they are sums of.
    magnitude = max(x.abs().max() for x in want.values())
    assert got.keys() == want.keys()
    for name, value in got.items():
        assert value.dtype == dtype
        if want[name].abs().max() < 1e-6 * magnitude:
            assert value.abs().max() < TOLERANCE[dtype] * magnitude, name
        else:
            assert_near(name, value, want[name], TOLERANCE[dtype])


CASES = {
    "two heads, two images": dict(b=2, h=3, w=8, heads=2, head_dim=5, window=(3, 4), shift=(1, 2)),
    # The last row of the window sees nothing in its first tile of keys.
    "several tiles, shifted": dict(b=1, h=6, w=6, heads=1, head_dim=16, window=(6, 6), shift=(1, 2)),
    # Windows of which a tile holds three, or one.
    "packed, shifted": dict(b=1, h=3, w=12, heads=1, head_dim=5, window=(3, 3), shift=(2, 0), bias=False),
    "overlap": dict(b=1, h=8, w=8, heads=1, head_dim=20, window=(4, 4), overlap=2),
    "overlap, several tiles": dict(b=1, h=5, w=10, heads=1, head_dim=8, window=(5, 5), overlap=4),
    "overlap wider than a window": dict(b=1, h=2, w=6, heads=1, head_dim=3, window=(2, 2), overlap=6),
    "overlap without a bias": dict(b=1, h=6, w=3, heads=1, head_dim=5, window=(2, 3), overlap=4, bias=False),
}


@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients(name, poisoned):
    compare(**CASES[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, poisoned):
    compare(1, 4, 8, 1, 16, (4, 4), (2, 1), dtype=dtype)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 2),
    cols=st.integers(1, 2),
    window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    overlap=st.sampled_from([0, 2]),
    head_dim=st.integers(1, 18),
    bias=st.booleans(),
    data=st.data(),
)
def test_drawn_shapes(rows, cols, window, overlap, head_dim, bias, data):
    torch.manual_seed(0)
    shift = (0, 0)
    if overlap == 0:
        shift = data.draw(st.tuples(st.integers(0, window[0] - 1), st.integers(0, window[1] - 1)))
    compare(1, rows * window[0], cols * window[1], 1, head_dim, window, shift, overlap, bias)


def test_inputs_of_different_strides():
    q, k, v = (x.detach() for x in inputs(1, 4, 4, 1, 8, (4, 4))[0].chunk(3, -1))
    want = window_attention(q, k, v, 1, 4, backend="torch")
    for others in ((q.contiguous(), k, v), (q, k.transpose(1, 2).contiguous().transpose(1, 2), v)):
        assert_near("out", window_attention(*others, 1, 4, backend="triton"), want, 1e-5)
    channels_first = [x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) for x in (q, k, v)]
    assert_near("out", window_attention(*channels_first, 1, 4, backend="triton"), want, 1e-5)


def test_two_runs_give_the_same_bits():
    qkv, table = inputs(1, 4, 4, 1, 8, (4, 2))
    grad = torch.randn(1, 4, 4, 8, device=DEVICE)
    first, second = (results(qkv, table, grad, 1, (4, 2), (1, 1), 0, "triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_gradient_of_a_sum():
    """Its strides are all zero."""
    qkv, table = inputs(1, 4, 4, 1, 8, (4, 4))
    grad = torch.ones(1, device=DEVICE).expand(1, 4, 4, 8)
    got, want = (results(qkv, table, grad, 1, (4, 4), (0, 0), 0, backend) for backend in ("triton", "torch"))
    assert_near("grad_v", got["grad_v"], want["grad_v"], 1e-5)


def test_no_image():
    qkv, table = inputs(0, 4, 4, 1, 8, (4, 4))
    got = results(qkv, table, torch.zeros(0, 4, 4, 8, device=DEVICE), 1, (4, 4), (0, 0), 0, "triton")
    assert got["out"].shape == (0, 4, 4, 8) and got["grad_bias"].eq(0).all()


def test_only_what_asks_gets_a_gradient():
    qkv, table = inputs(1, 2, 2, 1, 8, (2, 2))
    q, k, v = qkv.detach().chunk(3, -1)
    window_attention(q, k, v, 1, 2, 0, 0, table.t(), backend="triton").sum().backward()
    assert qkv.grad is None and table.grad.shape == table.shape
    window_attention(q.requires_grad_(), k, v, 1, 2, 0, 0, table.detach().t(), backend="triton").sum().backward()
    assert q.grad.shape == q.shape


def test_table_of_another_dtype():
    """As under autocast: q, k and v in half precision, the parameter in float32."""
    qkv, table = inputs(1, 4, 4, 1, 8, (4, 4), dtype=torch.float16)
    table = table.detach().float().requires_grad_()
    grad = torch.randn(1, 4, 4, 8, device=DEVICE)
    got, want = (results(qkv, table, grad, 1, (4, 4), (1, 1), 0, backend) for backend in ("triton", "torch"))
    assert got["grad_bias"].dtype == torch.float32
    for name, value in got.items():
        assert_near(name, value, want[name], 5e-3)


def test_memory_of_the_table_gradient_is_bounded(monkeypatch):
    """Six windows in shares of two, and their gradients added up."""
    made = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: made.append(empty(*args, **kwargs)) or made[-1])
    monkeypatch.setattr(kernels, "_BIAS_PROGRAMS", 3)
    qkv, table = inputs(1, 4, 6, 1, 8, (2, 2))
    grad = torch.randn(1, 4, 6, 8, device=DEVICE)
    got = results(qkv, table, grad, 1, (2, 2), (0, 1), 0, "triton")
    assert [x.shape for x in made if x.shape[2:] == (4, 4)] == [(3, 1, 4, 4)]
    want = results(qkv, table, grad, 1, (2, 2), (0, 1), 0, "torch")
    assert_near("grad_bias", got["grad_bias"], want["grad_bias"], 1e-5)


def test_can_run():
    q = torch.zeros(1, 4, 4, 120, device=DEVICE)
    assert can_run("window_attention", q, q, q, 2, 4)
    half = q.half()
    assert can_run("window_attention", half, half, half, 1, 4)
    for heads, key, table, reason in (
        (1, q, None, "a head has 120 channels, in torch.float32 it takes up to 64"),
        (2, q.half(), None, "k must be torch.float32 as q is, got torch.float16"),
        (2, q, torch.zeros(49, 2, device=DEVICE).double(), "float64"),
        (2, q, torch.zeros(49, 2, device="meta"), "meta"),
    ):
        args = (q, key, q, heads, 4, 0, 0, table)
        assert not can_run("window_attention", *args)
        with pytest.raises(RuntimeError, match=f"window_attention: Triton cannot run: .*{reason}"):
            can_run("window_attention", *args, raise_error=True)
    with pytest.raises(RuntimeError, match="120 channels"):
        window_attention(q, q, q, 1, 4, backend="triton")
    with pytest.raises(ValueError, match="backend must be one of"):
        window_attention(q, q, q, 2, 4, backend="cuda")


class Layer(torch.nn.Module):
    def __init__(self, backend: str = "auto"):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(9, 1))
        self.backend = backend

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = x.chunk(3, -1)
        return window_attention(q, k, v, 1, 2, 1, 0, self.table, backend=self.backend)


def test_operator_obeys_pytorch():
    qkv, table = inputs(1, 2, 2, 1, 16, (2, 2))
    q, k, v = (x.detach().requires_grad_() for x in qkv.chunk(3, -1))
    torch.library.opcheck(attention, (q, k, v, table.t().detach().requires_grad_(), 1, [2, 2], [1, 0], 0, 0.3))


@pytest.mark.long
def test_compiles_to_one_graph_for_every_size():
    torch.compiler.reset()
    layer = Layer("triton").to(DEVICE)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True)
    # A batch of one is a graph of its own, as ever.
    for n, size in enumerate([(2, 4, 6), (3, 2, 8)]):
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
    assert sum("window_attention_triton" in target for target in targets) == 1


def test_exports_plain_operators():
    x = torch.randn(1, 4, 6, 12, device=DEVICE)
    layer = Layer("triton").to(DEVICE)
    program = torch.export.export(layer, (x,))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert all(target.startswith("aten.") or "getitem" in target for target in targets)
    torch.testing.assert_close(program.module()(x), layer(x), rtol=1e-5, atol=1e-5)


def test_backend_by_context(monkeypatch):
    called = []
    forward = kernels.window_attention_forward
    monkeypatch.setattr(kernels, "window_attention_forward", lambda *args: called.append(1) or forward(*args))
    layer, x = Layer().to(DEVICE), torch.randn(1, 2, 2, 12, device=DEVICE)
    with use_backend("torch"):
        layer(x)
    assert called == []
    with use_backend("triton"):
        layer(x)
    assert called == [1]
