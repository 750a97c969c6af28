"""Triton's kernels against the definition, in the interpreter where there is no GPU."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_helpers import DEVICE, assert_near
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from attnzoo.kernels import can_run, use_backend, window_attention, window_attention_packed
from attnzoo.kernels.window_attention import naive
from attnzoo.kernels.window_attention.operator import attention, attention_packed

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


def geometry(dtype, head_dim, window=(2, 2), shifted=False, overlap=0, bias=True):
    return kernels._Geometry(dtype, head_dim, window, shifted, overlap, bias)


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


# Of windows that a tile holds: cut by no border, by the right one, the lower one and both; many and few in a program.
TILE = {
    "two heads, two images": dict(b=2, h=9, w=8, heads=2, head_dim=5, window=(3, 4), shift=(1, 2)),
    "moved down alone": dict(b=1, h=6, w=6, heads=1, head_dim=16, window=(3, 3), shift=(2, 0)),
    "one window, cut twice": dict(b=2, h=3, w=4, heads=1, head_dim=3, window=(3, 4), shift=(2, 1)),
    "a full tile": dict(b=1, h=8, w=8, heads=1, head_dim=20, window=(8, 8)),
    # Windows of which a tile holds two, four or five, the last of a row alone.
    "packed": dict(b=1, h=4, w=15, heads=2, head_dim=5, window=(2, 3), shift=(1, 2)),
    "packed, without a bias": dict(b=1, h=2, w=10, heads=1, head_dim=5, window=(2, 2), shift=(0, 1), bias=False),
    "packed beyond the border": dict(b=1, h=6, w=1, heads=1, head_dim=5, window=(3, 1), shift=(1, 0)),
    "without a bias": dict(b=1, h=5, w=7, heads=1, head_dim=5, window=(5, 7), bias=False),
}
# Of windows that no tile holds, as tiles of 4 pixels make them, and of those that overlap.
LARGE = {
    "two heads, two images": dict(b=2, h=3, w=8, heads=2, head_dim=5, window=(3, 4), shift=(1, 2)),
    # The last row of the window sees nothing in its first tile of keys.
    "several tiles, shifted": dict(b=1, h=5, w=4, heads=1, head_dim=16, window=(5, 4), shift=(1, 2)),
    "without a bias, shifted": dict(b=1, h=3, w=12, heads=1, head_dim=5, window=(3, 3), shift=(2, 0), bias=False),
    "overlap": dict(b=1, h=6, w=4, heads=1, head_dim=20, window=(3, 2), overlap=2),
    "overlap, several tiles": dict(b=1, h=4, w=10, heads=1, head_dim=8, window=(4, 5), overlap=2),
    "overlap wider than a window": dict(b=1, h=2, w=6, heads=1, head_dim=3, window=(2, 2), overlap=6),
    "overlap without a bias": dict(b=1, h=6, w=3, heads=1, head_dim=5, window=(2, 3), overlap=4, bias=False),
}


@pytest.mark.parametrize("name", TILE)
def test_windows_in_a_tile(name, poisoned, monkeypatch):
    # Programs for several windows, or of which some begin amid a row.
    warps = 100 if "packed" in name else 6
    monkeypatch.setattr(kernels, "_FORWARD_WARPS", warps)
    monkeypatch.setattr(kernels, "_BACKWARD_WARPS", warps)
    compare(**TILE[name])


def change(monkeypatch, names, **changes):
    """Functions that choose tiles choose these."""
    for name in names:
        options = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda x, options=options: options(x) | changes)


@pytest.mark.parametrize("name", LARGE)
def test_larger_windows(name, poisoned, monkeypatch):
    monkeypatch.setattr(kernels, "_TILE", 4)
    if "several tiles" in name:
        names = ("_forward_options", "_grad_query_options", "_grad_key_options", "_grad_bias_options")
        change(monkeypatch, names, BLOCK_M=16, BLOCK_N=16)
    compare(**LARGE[name])


@pytest.mark.parametrize("head_dim", [16, 40])
def test_channels_beyond_a_chunk(head_dim, poisoned):
    """On tensor cores the backward pass takes 16 channels of wide heads at a time."""
    compare(1, 2, 4, 1, head_dim, (2, 2), dtype=torch.float16)
    assert kernels._tile_backward_options(geometry(torch.float16, head_dim))["CHUNK"] == 16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tile", [64, 8])
def test_half_precision(dtype, tile, poisoned, monkeypatch):
    monkeypatch.setattr(kernels, "_TILE", tile)
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
    for others in ((q.contiguous(), k, v), (q, k.transpose(1, 2).contiguous().transpose(1, 2), v), (q, k, v.clone())):
        assert_near("out", window_attention(*others, 1, 4, backend="triton"), want, 1e-5)
    channels_first = [x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) for x in (q, k, v)]
    assert_near("out", window_attention(*channels_first, 1, 4, backend="triton"), want, 1e-5)


class Recorded(TorchDispatchMode):
    """Names of the operators that run within it."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("shift", "overlap"), [(1, 0), (0, 2)])
def test_packed_is_the_same_without_copies(shift, overlap, poisoned):
    qkv, table = inputs(1, 2, 2, 2, 3, (2, 2), overlap)
    weight = torch.randn(1, 2, 2, 6, device=DEVICE)
    args = 2, 2, shift, overlap, table.t(), 0.3, "triton"
    out = window_attention(*qkv.chunk(3, -1), *args)
    want = out, *torch.autograd.grad(out, (qkv, table), weight)
    with Recorded() as recorded:
        out = window_attention_packed(qkv, *args)
        got = out, *torch.autograd.grad(out, (qkv, table), weight)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert got[1].is_contiguous()
    names = {name for name in recorded.names if "detach" not in name and name != "aten::t"}
    assert names == {"attnzoo::window_attention_triton_packed", "attnzoo::window_attention_triton_packed_backward"}


def test_packed_in_any_strides(poisoned):
    wide = torch.randn(2, 3, 5, 13, device=DEVICE)
    for qkv in (wide[:, :2, 1:, 1:], wide.transpose(1, 2)[:, :4, :2, :12], wide[:1, :2, 1:, :12].expand(2, -1, -1, -1)):
        qkv = qkv.requires_grad_()
        got, want = (
            (
                out := window_attention_packed(qkv, 2, 2, 1, backend=backend),
                torch.autograd.grad(out.square().sum(), qkv)[0],
            )
            for backend in ("triton", "torch")
        )
        for name, a, b in zip(("out", "grad"), got, want, strict=True):
            assert_near(name, a, b, 1e-5)


@pytest.mark.parametrize(("window", "tile"), [((2, 2), 64), ((2, 3), 1)])
def test_addresses_of_64_bits(window, tile, monkeypatch):
    """As in images of a gigabyte."""
    monkeypatch.setattr(kernels, "_INT32", 0)
    monkeypatch.setattr(kernels, "_TILE", tile)
    compare(2, 4, 6, 1, 5, window, (1, 1))


@pytest.mark.parametrize(("shift", "overlap"), [((1, 2), 0), ((0, 0), 2)])
def test_bias_that_would_be_too_large(shift, overlap, poisoned, monkeypatch):
    """It is computed from the table then, place by place."""
    monkeypatch.setattr(kernels, "_TILE", 4)
    monkeypatch.setattr(kernels, "_DENSE_BYTES", 0)
    monkeypatch.setattr(kernels, "dense_bias", None)
    compare(1, 2, 6, 2, 5, (2, 3), shift, overlap)


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


@pytest.mark.parametrize(
    ("limit", "value", "tile", "size", "window", "shift", "shape"),
    [
        # For two programs of two warps each: in four groups of at most four windows, two side by side in each.
        ("_BACKWARD_WARPS", 4, 64, (4, 6), (2, 2), (0, 1), (2, 1, 16, 16)),
        # For two programs of each of four tiles: two whole windows, and one that the border cuts.
        ("_BIAS_PROGRAMS", 8, 1, (15, 4), (5, 4), (1, 0), (2, 1, 20, 20)),
    ],
)
def test_memory_of_the_table_gradient_is_bounded(limit, value, tile, size, window, shift, shape, monkeypatch):
    made = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: made.append(empty(*args, **kwargs)) or made[-1])
    monkeypatch.setattr(kernels, limit, value)
    monkeypatch.setattr(kernels, "_TILE", tile)
    change(monkeypatch, ("_grad_bias_options",), BLOCK_M=16, BLOCK_N=16)
    qkv, table = inputs(1, *size, 1, 8, window)
    grad = torch.randn(1, *size, 8, device=DEVICE)
    got = results(qkv, table, grad, 1, window, shift, 0, "triton")
    # Not the bias itself, one of which is for each kind of window.
    assert [x.shape for x in made if x.shape[2:] == shape[2:] and x.shape[0] != 4] == [shape]
    want = results(qkv, table, grad, 1, window, shift, 0, "torch")
    assert_near("grad_bias", got["grad_bias"], want["grad_bias"], 1e-5)


def test_tiles_may_be_larger(monkeypatch):
    """As a search for the fastest makes them: more windows in one."""
    change(monkeypatch, ("_tile_forward_options", "_tile_backward_options"), BLOCK=32, num_warps=2)
    compare(1, 2, 15, 1, 5, (2, 3), (1, 2))


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
        out = window_attention(q, k, v, 1, 2, 1, 0, self.table, backend=self.backend)
        return out + window_attention_packed(x, 1, 2, 1, 0, self.table, backend=self.backend)


def test_operator_obeys_pytorch():
    qkv, table = inputs(1, 2, 2, 1, 16, (2, 2))
    q, k, v = (x.detach().requires_grad_() for x in qkv.chunk(3, -1))
    settings = table.t().detach().requires_grad_(), 1, [2, 2], [1, 0], 0, 0.3
    torch.library.opcheck(attention, (q, k, v, *settings))
    # That graphs hold it, the next test shows.
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(attention_packed, (qkv.detach().requires_grad_(), *settings), test_utils=tests)


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
    assert sum("window_attention_triton" in target for target in targets) == 2


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
    assert called == [1, 1]
