"""Under autocast, and in 16 bits, what operators compute in float32 stays in float32."""

import contextlib
import types

import pytest
import torch
from kernel_helpers import CASES, DEVICE, assert_near, cases
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

from attnzoo import kernels
from attnzoo.kernels import _derivatives, _dispatch, _precision
from attnzoo.kernels.routing_attention import cpu

AUTOCAST = torch.bfloat16 if DEVICE == "cuda" else torch.float16


def off_centre(*shape):
    """Means that differ by less than 16 bits tell apart."""
    return torch.randn(shape, device=DEVICE) + 6 * torch.randn(shape[-1], device=DEVICE)


@pytest.mark.parametrize("way", ["eager", "trained", "compiled", "triton"])
@pytest.mark.parametrize("height", [14, 13])
def test_regions_are_chosen_as_without_autocast(height, way):
    if way == "triton" and DEVICE == "cpu" and not _dispatch.INTERPRETED:
        pytest.skip("needs a GPU or the interpreter")
    q, k, v = (off_centre(1, height, 14, 16) for _ in range(3))
    if way == "trained":
        q.requires_grad_()
    call = kernels.routing_attention
    if way == "compiled":
        torch.compiler.reset()
        call = torch.compile(call, backend="eager", fullgraph=True)
    settings = (1, (7, 7), 4, 0.05, "triton" if way == "triton" else "torch")
    want = kernels.routing_attention(*(x.to(AUTOCAST) for x in (q, k, v)), *settings)
    with torch.autocast(DEVICE, AUTOCAST):
        got = call(q, k, v, *settings)
    assert got.dtype == AUTOCAST
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("learns", [False, True])
def test_exported_routing_is_that_without_autocast(learns):
    class Route(torch.nn.Module):
        def forward(self, q, k):
            return cpu.route(q, k, 4)

    q, k = (off_centre(1, 49, 4, 16).to(AUTOCAST).requires_grad_(learns) for _ in range(2))
    program = torch.export.export(Route(), (q, k), strict=False).module()
    with torch.autocast(DEVICE, AUTOCAST):
        inside = torch.export.export(Route(), (q, k), strict=False).module()
        eager = cpu.route(q, k, 4)
    want = cpu.route(q, k, 4)
    assert torch.equal(program(q, k), want) and torch.equal(inside(q, k), want) and torch.equal(eager, want)


def test_attention_in_products_is_that_without_autocast():
    """Of derivatives beyond the first, which may be asked for in the midst of a forward pass."""
    q, k, v = (3 * torch.randn(1, 2, 9, 8, device=DEVICE) for _ in range(3))
    bias = torch.randn(1, 2, 9, 9, device=DEVICE)
    want = _derivatives.written_out(q, k, v, bias, 0.5)
    with torch.autocast(DEVICE, AUTOCAST):
        assert torch.equal(_derivatives.written_out(q, k, v, bias, 0.5), want)
        halves = [x.to(AUTOCAST) for x in (q, k, v)]
        under = _derivatives.written_out(*halves, bias, 0.5)
    assert torch.equal(under, _derivatives.written_out(*halves, bias, 0.5))


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps", "xpu"])
def test_products_keep_their_precision_on_every_device_with_autocast(device):
    """Without one of them: what is asked of a tensor is its device alone."""
    x = types.SimpleNamespace(device=torch.device(device))
    was = torch.is_autocast_enabled(device)
    try:
        for enabled in (True, False):
            torch.set_autocast_enabled(device, enabled)
            with _precision.own_precision(x):
                assert not torch.is_autocast_enabled(device)
            assert torch.is_autocast_enabled(device) == enabled
    finally:
        torch.set_autocast_enabled(device, was)
    with _precision.own_precision(torch.empty(1, device="meta")):
        pass


WINDOWS = {
    "kept": ("window_attention", (1, 14, 14, 32), dict(num_heads=1, window_size=7, shift=3), (169, 1)),
    "without bias": ("window_attention", (1, 14, 14, 64), dict(num_heads=1, window_size=7), None),
    "recomputed": ("window_attention", (1, 28, 28, 32), dict(num_heads=1, window_size=14), (729, 1)),
    "overlapping": ("window_attention", (1, 16, 16, 32), dict(num_heads=1, window_size=4, overlap=2), (81, 1)),
    "neighborhood": ("neighborhood_attention", (1, 14, 14, 32), dict(num_heads=1, kernel_size=7), (1, 13, 13)),
}


def rms(x, expected):
    return (x.double() - expected.double()).square().mean().sqrt().item()


@pytest.mark.parametrize("far", [False, True], ids=["", "thousands"])
@pytest.mark.parametrize("under", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", WINDOWS)
def test_training_is_as_exact_as_inference(name, dtype, under, far):
    """Scores are up to 60 here, or some thousands: 16 bits would round them by more than a softmax forgives."""
    operator, shape, settings, table = WINDOWS[name]
    maps = [3 * torch.randn(shape, device=DEVICE) for _ in range(3)]
    if far:
        maps[0], maps[1] = maps[0] + 32, maps[1] / 10 + 34
    maps = [x.to(dtype) for x in maps]
    bias = [] if table is None else [torch.randn(table, device=DEVICE).to(dtype).float()]
    grad = torch.randn(shape, device=DEVICE).to(dtype)

    def call(tensors):
        given = dict(zip(("q", "k", "v", "bias_table"), tensors, strict=False))
        return getattr(kernels, operator)(**given, **settings, backend="torch")

    exact = [x.double().requires_grad_() for x in (*maps, *bias)]
    want = call(exact)
    leaves = [x.clone().requires_grad_() for x in (*maps, *bias)]
    with torch.autocast(DEVICE, dtype, enabled=under):
        trained = call(leaves)
        with torch.no_grad():
            inferred = call(leaves)
    assert trained.dtype == inferred.dtype == dtype
    assert rms(trained, want) <= 1.5 * rms(inferred, want)
    # Far from zero, what adds up all but equal queries or keys loses digits; the gradient of q, all of them.
    unit = torch.finfo(dtype).eps * (2 if far else 1)
    pairs = zip(
        torch.autograd.grad(trained, leaves, grad), torch.autograd.grad(want, exact, grad.double()), strict=True
    )
    for got, expected in list(pairs)[1 if far else 0 :]:
        assert rms(got, expected) <= unit * expected.square().mean().sqrt().item()


def test_scores_beyond_the_largest_16_bit_number():
    q = torch.full((1, 2, 2, 32), 46.0, device=DEVICE, dtype=torch.float16, requires_grad=True)
    for size in (1, 2):
        out = kernels.window_attention(q, q, q, 1, size, backend="torch")
        assert torch.equal(out, q)
        assert torch.autograd.grad(out.float().sum(), q)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, AUTOCAST], ids=str)
@pytest.mark.parametrize("name", WINDOWS)
def test_backward_under_autocast(name, dtype):
    """It is not meant to be there, but must not turn what is kept in float32 into 16 bits."""
    operator, shape, settings, table = WINDOWS[name]
    leaves = [torch.randn(shape, device=DEVICE).to(dtype) for _ in range(3)]
    leaves += [] if table is None else [torch.randn(table, device=DEVICE)]
    leaves = [x.requires_grad_() for x in leaves]
    given = dict(zip(("q", "k", "v", "bias_table"), leaves, strict=False))
    out = getattr(kernels, operator)(**given, **settings, backend="torch")
    grad = torch.randn_like(out)
    want = torch.autograd.grad(out, leaves, grad, retain_graph=True)
    with torch.autocast(DEVICE, AUTOCAST):
        got = torch.autograd.grad(out, leaves, grad)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_compiled_neighborhood_attention_is_as_exact_as_the_eager_one(dtype, bias):
    q, k, v = (3 * torch.randn(1, 14, 14, 32, device=DEVICE) for _ in range(3))
    q, k, v = (x.to(dtype).requires_grad_() for x in (q, k, v))
    table = torch.randn(1, 13, 13, device=DEVICE).to(dtype).float() if bias else None
    torch.compiler.reset()
    compiled = torch.compile(kernels.neighborhood_attention, backend="eager", fullgraph=True)
    settings = dict(num_heads=1, kernel_size=7, bias_table=table, backend="torch")
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    want = kernels.neighborhood_attention(*exact, **settings)
    eager, got = kernels.neighborhood_attention(q, k, v, **settings), compiled(q, k, v, **settings)
    assert got.dtype == dtype
    assert rms(got, want) <= 1.1 * rms(eager, want)
    grad = torch.randn_like(got)
    for a, b in zip(
        torch.autograd.grad(got, (q, k, v), grad), torch.autograd.grad(want, exact, grad.double()), strict=True
    ):
        assert rms(a, b) <= torch.finfo(dtype).eps * b.square().mean().sqrt().item()


@pytest.mark.parametrize("way", ["eager", "trained", "compiled", "exported", "forward mode"])
@pytest.mark.parametrize("name", CASES)
def test_dtype_under_autocast_of_a_gpu(name, way, monkeypatch):
    """There autocast turns the results of sums and exponentials into float32; on tensors without memory."""
    if torch.__version__ < "2.11" and not torch.cuda.is_available():
        pytest.skip("PyTorch 2.9 looks for a GPU where such tensors are sliced")
    case = cases()[name]
    with FakeTensorMode(), contextlib.ExitStack() as stack:
        given = [torch.empty(x.shape, device="cuda", requires_grad=way == "trained") for x in case.tensors.values()]
        # `torch.autocast` does nothing where there is no GPU.
        torch.set_autocast_enabled("cuda", True)
        stack.callback(torch.set_autocast_enabled, "cuda", False)
        stack.callback(torch.set_autocast_dtype, "cuda", torch.get_autocast_dtype("cuda"))
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        call = case.call
        if way == "compiled":
            torch.compiler.reset()
            call = torch.compile(call, backend="eager")
        elif way == "exported":
            monkeypatch.setattr(torch.compiler, "_is_exporting_flag", True)
        elif way == "forward mode":
            stack.enter_context(forward_ad.dual_level())
        out = call(*given)
    # Deformable attention is not for autocast; a gate keeps its dtype, and products with it are of the wider one.
    wide = case.name.startswith("deformable") or name in ("pointwise_gated", "large_kernel")
    assert out.dtype == (torch.float32 if wide else torch.bfloat16)


@pytest.mark.parametrize("name", WINDOWS)
def test_transforms_under_autocast(name):
    """They take the definition in products, whose scores autocast would round."""
    operator, shape, settings, _ = WINDOWS[name]
    maps = [(3 * torch.randn(shape, device=DEVICE)).to(AUTOCAST) for _ in range(3)]

    def call(*maps):
        return getattr(kernels, operator)(*maps, **settings, backend="torch")

    want = call(*maps)
    with torch.autocast(DEVICE, AUTOCAST):
        together = torch.func.vmap(call)(*(torch.stack([x, x]).float() for x in maps))
        out, slope = torch.func.jvp(call, tuple(maps), tuple(maps))
    exact = [x.double() for x in maps]
    step = torch.func.jvp(call, tuple(exact), tuple(exact))[1]
    for got in (together[1], out):
        assert got.dtype == AUTOCAST
        assert_near("out", got, want, 2 * torch.finfo(AUTOCAST).eps)
    assert_near("slope", slope, step, 2 * torch.finfo(AUTOCAST).eps)
