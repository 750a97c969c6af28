import operator_definitions
import pytest
import torch

from attnzoo.kernels import window_attention, window_attention_packed
from attnzoo.kernels.window_attention import cpu, naive, windows


def qkv(b, h, w, c, dtype=torch.float64):
    return torch.randn(b, h, w, 3 * c, dtype=dtype).chunk(3, -1)


def table_for(window, overlap, heads, dtype=torch.float64):
    return torch.randn((2 * window[0] - 1 + overlap) * (2 * window[1] - 1 + overlap), heads, dtype=dtype)


def keeps_attention(out):
    """Whether its graph holds the function that keeps the attention."""
    nodes = [out.grad_fn]
    for node in nodes:
        nodes += [following for following, _ in node.next_functions if following is not None]
    return any("_Keeping" in node.name() for node in nodes)


GEOMETRIES = [
    dict(size=(6, 9), window=(3, 3)),
    dict(size=(4, 10), window=(2, 5)),
    dict(size=(6, 8), window=(3, 4), shift=(1, 2)),
    dict(size=(7, 14), window=(7, 7), shift=(3, 3)),
    dict(size=(8, 4), window=(4, 4), shift=(2, 0)),
    dict(size=(4, 4), window=(4, 4), shift=(3, 1)),
    dict(size=(8, 12), window=(4, 4), overlap=2),
    dict(size=(4, 6), window=(2, 2), overlap=6),
    dict(size=(6, 3), window=(2, 3), overlap=4),
    dict(size=(3, 5), window=(1, 1)),
]
NAMES = ["-".join(f"{key}{value}" for key, value in geometry.items()).replace(" ", "") for geometry in GEOMETRIES]


@pytest.fixture(params=GEOMETRIES, ids=NAMES)
def geometry(request):
    return {"shift": (0, 0), "overlap": 0, **request.param}


@pytest.mark.parametrize("biased", [True, False])
def test_definition_equals_the_dense_one(geometry, biased):
    window, shift, overlap = geometry["window"], geometry["shift"], geometry["overlap"]
    table = table_for(window, overlap, 3) if biased else None
    given = (*qkv(2, *geometry["size"], 6), 3, window, shift, overlap, table)
    want = operator_definitions.window_attention(*given)
    torch.testing.assert_close(naive.window_attention(*given), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_equals_the_definition(geometry, biased, grad):
    window, shift, overlap = geometry["window"], geometry["shift"], geometry["overlap"]
    q, k, v = qkv(2, *geometry["size"], 6)
    table = table_for(window, overlap, 3) if biased else None
    want = naive.window_attention(q, k, v, 3, window, shift, overlap, table)
    with torch.set_grad_enabled(grad):
        got = window_attention(q, k, v, 3, window, shift, overlap, table)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("autocast", [False, True])
def test_packed_is_the_same(geometry, autocast):
    window, shift, overlap = geometry["window"], geometry["shift"], geometry["overlap"]
    qkv = torch.randn(2, *geometry["size"], 18, requires_grad=True)
    table = table_for(window, overlap, 3, torch.float32).requires_grad_()
    results = []
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for out in (
            window_attention(*qkv.chunk(3, -1), 3, window, shift, overlap, table),
            window_attention_packed(qkv, 3, window, shift, overlap, table),
        ):
            assert out.dtype == (torch.bfloat16 if autocast else torch.float32)
            results.append((out, *torch.autograd.grad(out.float().square().sum(), (qkv, table))))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_gradients(geometry):
    window, shift, overlap = geometry["window"], geometry["shift"], geometry["overlap"]
    inputs = [*qkv(2, *geometry["size"], 4), table_for(window, overlap, 2)]
    inputs = [x.clone().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(
        lambda q, k, v, table: window_attention(q, k, v, 2, window, shift, overlap, table, 0.4), inputs, fast_mode=True
    )
    assert torch.autograd.gradcheck(
        lambda q, k, v: window_attention(q, k, v, 2, window, shift, overlap), inputs[:3], fast_mode=True
    )


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shift", [(0, 0), (1, 2), (2, 0)])
def test_gradients_with_the_attention_kept(shift, biased, monkeypatch):
    """Small windows of wide heads; and the same gradients where it is computed anew."""
    inputs = [*qkv(2, 6, 12, 16), table_for((3, 4), 0, 2)] if biased else [*qkv(2, 6, 12, 16)]
    inputs = [x.clone().requires_grad_() for x in inputs]

    def attend(q, k, v, table=None):
        return window_attention(q, k, v, 2, (3, 4), shift, 0, table, 0.4)

    assert torch.autograd.gradcheck(attend, inputs, fast_mode=True)
    out = attend(*inputs)
    assert keeps_attention(out)
    grad = torch.randn_like(out)
    kept = torch.autograd.grad(out, inputs, grad)
    monkeypatch.setattr(cpu, "KEPT_BYTES", 2 * 6 * 12 * 2 * 12 * 8 - 1)
    out = attend(*inputs)
    assert not keeps_attention(out)
    torch.testing.assert_close(kept, torch.autograd.grad(out, inputs, grad))


@pytest.mark.parametrize(("window", "overlap"), [(8, 0), (2, 2)])
def test_attention_larger_than_its_inputs_is_not_kept(window, overlap):
    """64 keys to 3 * 16 channels; and overlapping windows never are."""
    q, k, v = (x.requires_grad_() for x in qkv(1, 8, 8, 16))
    assert not keeps_attention(window_attention(q, k, v, 1, window, 0, overlap))


def test_only_the_bias_learns():
    q, k, v = qkv(1, 8, 8, 4)
    table = table_for((4, 4), 0, 2).requires_grad_()
    window_attention(q, k, v, 2, 4, 2, bias_table=table).square().sum().backward()
    assert table.grad.abs().min() > 0


def test_a_window_as_large_as_the_map_is_plain_attention():
    q, k, v = qkv(2, 6, 4, 8)
    got = window_attention(q, k, v, 2, (6, 4), scale=0.3)
    heads = [x.reshape(2, 24, 2, 4).transpose(1, 2) for x in (q, k, v)]
    want = torch.nn.functional.scaled_dot_product_attention(*heads, scale=0.3).transpose(1, 2).reshape(2, 6, 4, 8)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_small_shifted_maps_on_a_cpu(dtype, error, biased, monkeypatch):
    inputs = [x.to(dtype) for x in qkv(2, 7, 14, 6)]
    table = table_for((7, 7), 0, 3).to(dtype) if biased else None
    rest = 3, (7, 7), (0, 3), 0
    want = naive.window_attention(*(x.double() for x in inputs), *rest, None if table is None else table.double())
    whole_windows = []
    monkeypatch.setattr(cpu, "to_windows", lambda *x: whole_windows.append(x) or windows.to_windows(*x))
    small = window_attention(*inputs, *rest, table)
    assert len(whole_windows) == 3
    monkeypatch.setattr(cpu, "_SMALL", 2 * 7 * 14 * 3 * 49 - 1)
    large = window_attention(*inputs, *rest, table)
    assert len(whole_windows) == 3
    for out in (small, large):
        torch.testing.assert_close(out.double(), want, rtol=error, atol=error)


@pytest.mark.parametrize(("shift", "overlap"), [(0, 0), (3, 0), (0, 4)])
def test_strips_change_nothing(shift, overlap):
    """A map so large that it goes through in strips equals its parts, with gradients."""
    q, k, v = (x.requires_grad_() for x in qkv(1, 640, 8, 96, torch.float32))
    table = table_for((8, 8), overlap, 2, torch.float32).requires_grad_()
    whole = window_attention(q, k, v, 2, 8, shift, overlap, table)
    grads = torch.autograd.grad(whole[:, 304:336].square().sum(), (q, k, v, table))
    near = [x.detach()[:, 288:352].requires_grad_() for x in (q, k, v)]
    part = window_attention(*near, 2, 8, shift, overlap, table)
    torch.testing.assert_close(part[:, 16:48], whole[:, 304:336])
    wanted = torch.autograd.grad(part[:, 16:48].square().sum(), (*near, table))
    for got, want in zip(grads[:3], wanted[:3], strict=True):
        torch.testing.assert_close(got[:, 288:352], want)
    torch.testing.assert_close(grads[3], wanted[3])


def test_memory_does_not_grow_by_the_overlap():
    """Keys and values of all windows together would be 4.5 times the map, and the bias of all windows 96 times."""
    from torch.profiler import profile

    q, k, v = qkv(1, 256, 512, 32, torch.float32)
    table = table_for((8, 8), 4, 2, torch.float32)
    with torch.no_grad(), profile(profile_memory=True) as record:
        window_attention(q, k, v, 2, 8, 0, 4, table)
    held, most = 0, 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    assert most < 2 * q.numel() * q.element_size()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("shift", "overlap"), [(0, 0), (2, 0), (0, 2)])
def test_half_precision(dtype, shift, overlap):
    q, k, v = qkv(2, 8, 8, 16)
    table = table_for((4, 4), overlap, 2)
    want = window_attention(q, k, v, 2, 4, shift, overlap, table)
    halves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
    # A table kept in full precision, as under autocast.
    for bias in (table.to(dtype).requires_grad_(), table.float().requires_grad_()):
        got = window_attention(*halves, 2, 4, shift, overlap, bias)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=0.05, atol=0.05)
        got.float().square().sum().backward()
        assert bias.grad.isfinite().all() and bias.grad.dtype == bias.dtype
    assert all(x.grad.isfinite().all() for x in halves)


@pytest.mark.parametrize(("shift", "overlap"), [(0, 0), (2, 0), (0, 2)])
def test_compiles_and_scripts(shift, overlap):
    class Attend(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.shift, self.overlap = shift, overlap

        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
            return window_attention(q, k, v, 2, (4, 4), (self.shift, self.shift), self.overlap, table)

    attend = Attend()
    table = table_for((4, 4), overlap, 2, torch.float32).requires_grad_()
    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    scripted = torch.jit.script(attend)
    for size in ((8, 8), (4, 12)):
        inputs = [*(x.requires_grad_() for x in qkv(2, *size, 8, torch.float32)), table]
        want = attend(*inputs)
        grads = torch.autograd.grad(want.square().sum(), inputs)
        for other in (compiled, scripted):
            got = other(*inputs)
            torch.testing.assert_close(got, want)
            for a, b in zip(torch.autograd.grad(got.square().sum(), inputs), grads, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("shift", "overlap"), [(0, 0), (2, 0), (0, 2)])
def test_exports_with_free_sizes(shift, overlap):
    class Attend(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Parameter(table_for((4, 4), overlap, 2, torch.float32))

        def forward(self, x):
            rows, cols = x.shape[1], x.shape[2]
            x = torch.nn.functional.pad(x, (0, 0, 0, (cols + 3) // 4 * 4 - cols, 0, (rows + 3) // 4 * 4 - rows))
            q, k, v = x.chunk(3, -1)
            return window_attention(q, k, v, 2, 4, shift, overlap, self.table)[:, :rows, :cols]

    model = Attend()
    free = {i: torch.export.Dim.DYNAMIC for i in range(3)}
    with torch.fx.experimental._config.patch(backed_size_oblivious=True):
        program = torch.export.export(
            model,
            (torch.randn(2, 14, 19, 24),),
            dynamic_shapes=(free,),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        ).module()
    for size in ((1, 13, 8), (3, 16, 21), (1, 4, 3)):
        x = torch.randn(*size, 24)
        torch.testing.assert_close(program(x), model(x))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(window_size=5), r"multiples of window_size \(5, 5\)"),
        (dict(window_size=0), "window_size must be at least 1"),
        (dict(num_heads=3), "num_heads must divide C = 8"),
        (dict(num_heads=0), "num_heads must divide C = 8"),
        (dict(shift=4), "shift must be at least 0"),
        (dict(shift=(0, -1)), "shift must be at least 0"),
        (dict(overlap=3), "overlap must be even"),
        (dict(overlap=-2), "overlap must be even"),
        (dict(overlap=2, shift=1), "shift must be 0"),
        (dict(bias_table=torch.zeros(48, 2)), r"bias_table must be \(49, 2\)"),
        (dict(bias_table=torch.zeros(49, 2), overlap=2), r"bias_table must be \(81, 2\)"),
    ],
)
def test_bad_arguments(kwargs, message):
    q, k, v = qkv(1, 8, 4, 8)
    with pytest.raises(ValueError, match=message):
        window_attention(q, k, v, **{**dict(num_heads=2, window_size=4), **kwargs})


def test_shapes_must_agree():
    q, k, v = qkv(1, 8, 4, 8)
    with pytest.raises(ValueError, match="alike"):
        window_attention(q, k[:, :4], v, 2, 4)


@pytest.mark.parametrize("shift", [(1, 2), (0, 2), (3, 0)])
def test_what_is_unseen_is_the_same_on_every_device(shift):
    """The CPU reads from a table what other devices compute."""
    window = (4, 3)
    table = torch.tensor(windows.hidden_by_kind(window, shift))
    assert torch.equal(table, windows.unseen((8, 6), window, shift, torch.device("cpu")))
