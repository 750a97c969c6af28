"""Triton's kernels against the definition, in the interpreter where there is no GPU."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_helpers import DEVICE, assert_near
from torch._dynamo.testing import CompileCounterWithBackend

from attnzoo.kernels import can_run, neighborhood_attention, neighborhood_attention_packed, use_backend
from attnzoo.kernels.neighborhood_attention import naive
from attnzoo.kernels.neighborhood_attention.operator import attention, attention_packed

triton = pytest.importorskip("triton")
tl = triton.language
kernels = pytest.importorskip("attnzoo.kernels.neighborhood_attention.triton")
backward = pytest.importorskip("attnzoo.kernels.neighborhood_attention.triton_backward")

TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


def inputs(b, h, w, heads, head_dim, kernel_size, dtype=torch.float32):
    """q, k and v as parts of one tensor, and a table that is not contiguous either."""
    qkv = torch.randn(b, h, w, 3 * heads * head_dim, dtype=dtype, device=DEVICE)
    side = 2 * kernel_size - 1
    table = torch.randn(side, side, heads, dtype=dtype, device=DEVICE)
    return qkv.requires_grad_(), table.requires_grad_()


def results(qkv, table, grad, heads, kernel_size, dilation, backend, packed=False):
    """Output and gradients by name, of a backend or of the "definition"."""
    public = neighborhood_attention_packed if packed else neighborhood_attention
    function = naive.neighborhood_attention if backend == "definition" else partial(public, backend=backend)
    bias = None if table is None else table.permute(2, 0, 1)
    out = function(*([qkv] if packed else qkv.chunk(3, -1)), heads, kernel_size, dilation, bias)
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


# B, H, W, heads, head_dim, kernel_size, dilation: tiles at every border and between them; classes of two lengths; axes
# shorter than the window, than the dilation; both tilings of the table's gradient.
CASES = [
    (2, 5, 6, 2, 8, 3, 1),
    (1, 2, 21, 1, 16, 3, 1),
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
    for length in (*range(1, 9), 15, 17, 31, 32):
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
            for i, related in enumerate((keys, queries)):
                begin, number = out[2 * i : 2 * i + 2, n].tolist()
                assert related == set(range(begin, begin + number))
                # In tables of classes of this length, or of a longer one too.
                for longest in (length, length + 1):
                    assert number <= kernels._extent(longest, tile, kernel_size, bool(i))


@triton.jit
def examples(out, length, longest, TILE: tl.constexpr, BORDER: tl.constexpr, COUNT: tl.constexpr):
    tile = tl.arange(0, COUNT)
    pattern = kernels._pattern(tile * TILE, length, longest, TILE, BORDER)
    first, example_length = kernels._example(pattern, longest, TILE, BORDER)
    tl.store(out + tile, pattern)
    tl.store(out + COUNT + tile, first)
    tl.store(out + 2 * COUNT + tile, example_length)


@pytest.mark.parametrize("of_keys", [False, True])
@pytest.mark.parametrize("kernel_size", [3, 7, 15])
@pytest.mark.parametrize("tile", [4, 8])
def test_tiles_of_one_pattern_are_alike(kernel_size, tile, of_keys):
    """Which pixel of a tile sees which, or is seen, from the tile on: against windows drawn one by one."""
    options = {"TILE_H": tile, "TILE_W": tile}
    border = kernels.constants(options, kernel_size, 16, of_keys)["BORDER_W"]
    out = torch.empty(3, 32, dtype=torch.int32, device=DEVICE)

    def relation(first, length):
        start = [min(max(query - kernel_size // 2, 0), max(length - kernel_size, 0)) for query in range(length)]
        pairs = {(i, j) for i in range(length) for j in range(start[i], min(start[i] + kernel_size, length))}
        pairs = {(j, i) for i, j in pairs} if of_keys else pairs
        return {(i - first, j - first) for i, j in pairs if first <= i < first + tile}

    for longest in (1, 5, 9, 16, 33, 70):
        seen, patterns = {}, set()
        for length in (longest, longest - 1) if longest > 1 else (longest,):
            examples[(1,)](out, length, longest, tile, border, 32)
            for first, pattern, example, example_length in zip(range(0, length, tile), *out.tolist(), strict=False):
                assert (example_length == length) and 0 <= example < length
                if pattern not in seen:
                    seen[pattern] = relation(example, length)
                assert relation(first, length) == seen[pattern]
                patterns.add(pattern)
        size, dilation = (2 * longest - 1, 2) if longest > 1 else (1, 1)
        assert max(patterns) < kernels._patterns_of(size, dilation, tile, border) <= 2 * (2 * border + 2)


def test_tiles_are_free(monkeypatch):
    """What a sweep may do: tiles, steps and warps of each kernel."""
    for module, name in (
        (kernels, "_forward_options"),
        (backward, "_grad_query_options"),
        (backward, "_grad_key_value_options"),
    ):
        options = dict(TILE_H=8, TILE_W=8, BLOCK_N=32, num_warps=4, num_stages=3)
        monkeypatch.setattr(module, name, lambda *given, options=options: options)
    monkeypatch.setattr(backward, "_grad_bias_options", lambda *given: dict(TILE_W=32, BLOCK_N=64, num_warps=4))
    compare(1, 9, 10, 1, 8, 3, 1)


def test_offsets_of_64_bits(monkeypatch):
    """As images of more than 2 ** 31 numbers need them."""
    wide = []
    monkeypatch.setattr(kernels, "_LARGEST", 0)
    monkeypatch.setattr(backward, "is_wide", lambda *given: wide.append(kernels.is_wide(*given)) or wide[-1])
    compare(1, 3, 6, 1, 8, 3, 2)
    assert wide == [True]
    monkeypatch.undo()
    x = torch.empty(1, 2**16, 2**16, 1, device="meta")
    assert kernels.is_wide(1, x) and not kernels.is_wide(1, x[:, : 2**14])
    # Steps of the dilation, even where the axis has one pixel.
    assert kernels.is_wide(2**16, torch.empty(1, 1, 2**15, 1, device="meta"))


def test_a_table_that_hides_keys():
    """Minus infinity in the user's table is a mask."""
    qkv, table = inputs(1, 4, 9, 1, 16, 3)
    table = table.detach()
    table[:, 2] = -torch.inf
    q, k, v = qkv.detach().chunk(3, -1)
    given = (1, 3, 1, table.permute(2, 0, 1))
    got = neighborhood_attention(q, k, v, *given, backend="triton")
    want = naive.neighborhood_attention(q.double(), k.double(), v.double(), *given[:3], given[3].double())
    assert_near("out", got, want, 1e-5)


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


@pytest.mark.parametrize(("dtype", "dense"), [(torch.float32, True), (torch.float16, False)])
def test_packed_is_the_same(dtype, dense, poisoned):
    qkv, table = inputs(1, 2, 5, 2, 8, 3, dtype)
    if not dense:
        # Channels are not adjacent.
        qkv = qkv.detach().permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0).requires_grad_()
    grad = torch.randn(1, 2, 5, 16, device=DEVICE)
    got, want = (results(qkv, table, grad, 2, 3, 1, "triton", packed) for packed in (True, False))
    for name, value in want.items():
        assert_near(name, got[name], value, 2 * torch.finfo(dtype).eps)


def test_packed_has_one_gradient(monkeypatch):
    """No parts that are joined: the kernels write into one tensor."""
    written = []
    differentiate = backward.neighborhood_attention_backward

    def record(grad_out, maps, bias, out, lse, grads, *settings):
        written.extend(grads)
        return differentiate(grad_out, maps, bias, out, lse, grads, *settings)

    monkeypatch.setattr(backward, "neighborhood_attention_backward", record)
    qkv = torch.randn(1, 3, 4, 24, device=DEVICE, requires_grad=True)
    out = neighborhood_attention_packed(qkv, 1, 3, backend="triton")
    (grad,) = torch.autograd.grad(out.sum(), qkv)
    assert grad.is_contiguous() and [x.data_ptr() for x in written] == [x.data_ptr() for x in grad.chunk(3, -1)]
    # From the result the graph leads to the tensor itself.
    (leaf,) = [node for node, _ in out.grad_fn.next_functions if node is not None]
    assert leaf.variable is qkv


class Layer(torch.nn.Module):
    """Of either entry, or the sum of both."""

    def __init__(self, backend: str = "auto", entries: tuple[str, ...] = ("unpacked",)):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(1, 5, 5))
        self.backend = backend
        self.entries = entries

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outs = []
        if "packed" in self.entries:
            outs.append(neighborhood_attention_packed(x, 1, 3, 1, self.table, backend=self.backend))
        if "unpacked" in self.entries:
            q, k, v = x.chunk(3, -1)
            outs.append(neighborhood_attention(q, k, v, 1, 3, 1, self.table, backend=self.backend))
        return outs[0] if len(outs) == 1 else outs[0] + outs[1]


@pytest.mark.long
def test_operator_obeys_pytorch():
    qkv, table = inputs(1, 3, 5, 1, 16, 3)
    q, k, v = (x.detach().requires_grad_() for x in qkv.chunk(3, -1))
    bias = table.permute(2, 0, 1).detach().requires_grad_()
    torch.library.opcheck(attention, (q, k, v, bias, 1, 3, 1, 0.25))
    torch.library.opcheck(attention_packed, (qkv.detach().requires_grad_(), None, 1, 3, 1, 0.5))


@pytest.mark.long
def test_compiles_to_one_graph_for_every_size():
    torch.compiler.reset()
    layer = Layer("triton", ("packed", "unpacked")).to(DEVICE)
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
    called = {str(node.target): node for node in counter.graphs[0].graph.nodes if node.op == "call_function"}
    for name in ("neighborhood_attention", "neighborhood_attention_packed"):
        assert sum(target.endswith(f"{name}.default") for target in called) == 1
    # It takes the layer's own input.
    assert called["attnzoo.neighborhood_attention_packed.default"].args[0].op == "placeholder"
    assert not [target for target in called if "index_select" in target]


@pytest.mark.parametrize("entry", ["packed", "unpacked"])
def test_exports_plain_operators(entry):
    x = torch.randn(1, 4, 6, 12, device=DEVICE)
    layer = Layer("triton", (entry,)).to(DEVICE)
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


def test_heads_take_turns(monkeypatch, poisoned):
    """Where the tables of mask and bias of all of them take too much memory."""
    made = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: made.append(empty(*args, **kwargs)) or made[-1])
    qkv, table = inputs(1, 3, 9, 3, 8, 3)
    grad = torch.randn(1, 3, 9, 24, device=DEVICE)
    want = results(qkv, table, grad, 3, 3, 2, "triton")
    largest = max(x[:1].nbytes for x in made if x.dim() == 5)
    monkeypatch.setattr(kernels, "_TABLE_BYTES", 2 * largest)
    made.clear()
    got = results(qkv, table, grad, 3, 3, 2, "triton")
    tables = [x for x in made if x.dim() == 5]
    assert len(tables) == 3 and max(x.nbytes for x in tables) == 2 * largest
    assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.long
def test_memory_of_the_table_gradient_is_bounded(monkeypatch):
    """Six stretches of queries, of which four programs a row of the table take their share."""
    made = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: made.append(empty(*args, **kwargs)) or made[-1])
    monkeypatch.setattr(backward, "_BIAS_PROGRAMS", 20)
    qkv, table = inputs(3, 2, 17, 1, 8, 3)
    grad = torch.randn(3, 2, 17, 8, device=DEVICE)
    got = results(qkv, table, grad, 1, 3, 1, "triton")
    assert [x.shape for x in made if x.shape[2:] == (5, 5)] == [(4, 1, 5, 5)]
    assert_near("grad_bias", got["grad_bias"], results(qkv, table, grad, 1, 3, 1, "torch")["grad_bias"], 1e-5)
