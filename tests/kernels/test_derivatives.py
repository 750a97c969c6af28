"""Derivatives of every kind: of derivatives, in forward mode, under the transforms of torch.func. No silent zeros."""

import pytest
import torch
from kernel_helpers import CASES, DEVICE, TRITON, cases
from torch.autograd import forward_ad

from attnzoo import kernels
from attnzoo.kernels import _dispatch


@pytest.fixture(params=CASES)
def case(request):
    return cases(1, 4, 6, 4)[request.param]


def leaves(case):
    return [x.clone().requires_grad_() for x in case.tensors.values()]


def written_out(case):
    """The operator's directional derivative, and its gradient, by differences."""

    def slope(tensors, directions, step=1e-6):
        ahead = case.call(*(x + step * d for x, d in zip(tensors, directions, strict=True)))
        behind = case.call(*(x - step * d for x, d in zip(tensors, directions, strict=True)))
        return (ahead - behind) / (2 * step)

    return slope


def test_gradients_of_gradients(case):
    inputs = leaves(case)
    assert torch.autograd.gradgradcheck(case.call, inputs, fast_mode=True)


def test_third_derivative(case):
    inputs = leaves(case)
    grads = torch.autograd.grad(case.call(*inputs).square().sum(), inputs, create_graph=True)
    seconds = torch.autograd.grad(sum(x.square().sum() for x in grads), inputs, create_graph=True)
    thirds = torch.autograd.grad(sum(x.square().sum() for x in seconds), inputs, allow_unused=True)
    assert all(x is not None and x.isfinite().all() for x in thirds)


@pytest.mark.parametrize("learning", [False, True])
def test_forward_mode(case, learning):
    inputs = [x.detach() for x in case.tensors.values()]
    directions = [torch.randn_like(x) for x in inputs]
    want = written_out(case)(inputs, directions)
    assert want.abs().max() > 1e-3
    with forward_ad.dual_level():
        duals = [
            forward_ad.make_dual(x.clone().requires_grad_(learning), d) for x, d in zip(inputs, directions, strict=True)
        ]
        out = case.call(*duals)
        got = forward_ad.unpack_dual(out).tangent
        assert got is not None
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        torch.func.jvp(case.call, tuple(inputs), tuple(directions))[1], want, rtol=1e-5, atol=1e-6
    )


def test_forward_over_a_backward_pass_that_was_recorded_before(case):
    """Hessian times vector, where the graph was made before forward mode was entered."""
    inputs = leaves(case)
    out = case.call(*inputs)
    grad, direction = torch.randn_like(out), torch.randn_like(out)
    with forward_ad.dual_level():
        grads = torch.autograd.grad(out, inputs, forward_ad.make_dual(grad, direction), retain_graph=True)
        tangents = [forward_ad.unpack_dual(x).tangent for x in grads]
    # The backward pass is linear in the gradient of the result.
    for got, want in zip(tangents, torch.autograd.grad(out, inputs, direction), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


def test_many_gradients_at_once(case):
    inputs = leaves(case)
    out = case.call(*inputs)
    grads = torch.randn(3, *out.shape, dtype=out.dtype)
    together = torch.autograd.grad(out, inputs, grads, is_grads_batched=True, retain_graph=True)
    for i, grad in enumerate(grads):
        for got, want in zip(together, torch.autograd.grad(out, inputs, grad, retain_graph=True), strict=True):
            torch.testing.assert_close(got[i], want, rtol=1e-9, atol=1e-10)


def test_transforms(case):
    inputs = leaves(case)
    weights = torch.randn_like(case.call(*inputs))
    plain = [x.detach() for x in inputs]
    numbers = tuple(range(len(inputs)))

    def loss(*tensors):
        return (case.call(*tensors) * weights).sum()

    want = torch.autograd.grad(loss(*inputs), inputs)
    for got, expected in zip(torch.func.grad(loss, argnums=numbers)(*plain), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)
    stacked = [torch.stack([x, 0.5 * x, x - 0.1]) for x in plain]
    together = torch.func.vmap(case.call)(*stacked)
    for i in range(3):
        torch.testing.assert_close(together[i], case.call(*(x[i] for x in stacked)), rtol=1e-9, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(case.call)(*stacked), together, rtol=1e-9, atol=1e-10)
    each = torch.func.vmap(torch.func.grad(loss, argnums=numbers))(*stacked)
    alone = torch.func.grad(loss, argnums=numbers)(*(x[1] for x in stacked))
    for got, expected in zip(each, alone, strict=True):
        torch.testing.assert_close(got[1], expected, rtol=1e-9, atol=1e-10)


def test_compiled_transforms(case):
    """A compiled graph would hold the custom operator, which drops tangents, if it did not know of the transform."""
    if case.name != "window_attention":
        pytest.skip("compiled from PyTorch's own operators")
    inputs = tuple(x.detach() for x in case.tensors.values())
    directions = tuple(torch.randn_like(x) for x in inputs)
    torch.compiler.reset()
    compiled = torch.compile(lambda x, d: torch.func.jvp(case.call, x, d)[1], backend="aot_eager", fullgraph=True)
    want = torch.func.jvp(case.call, inputs, directions)[1]
    torch.testing.assert_close(compiled(inputs, directions), want, rtol=1e-9, atol=1e-10)


def test_result_may_be_changed_in_place(case):
    inputs = leaves(case)
    want = torch.autograd.grad(2 * (case.call(*inputs) + 1).sum(), inputs)
    out = case.call(*inputs)
    out += 1
    out *= 2
    for got, expected in zip(torch.autograd.grad(out.sum(), inputs), want, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("shift", [0, 1])
def test_result_of_a_single_window_may_be_changed_in_place(heads, shift):
    """There the windows are the map, without a copy."""
    q = torch.randn(1, 2, 2, 16, dtype=torch.float64, requires_grad=True)
    out = kernels.window_attention(q, q, q, heads, 2, shift)
    want = torch.autograd.grad((2 * out).sum(), q, retain_graph=True)[0]
    out *= 2
    torch.testing.assert_close(torch.autograd.grad(out.sum(), q)[0], want)
    for regions, topk in (((1, 1), 1), ((2, 1), 1)):
        out = kernels.routing_attention(q, q, q, heads, regions, topk, 0.5)
        out += 1
        out.sum().backward()


def test_one_tensor_in_several_places():
    """Gradients of gradients of self-attention on the raw input: each use counts once."""
    x = torch.randn(1, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    for call in (
        lambda x: kernels.window_attention(x, x, x, 1, 2),
        lambda x: kernels.window_attention(x, x, x, 2, 2, 0, 2),
        lambda x: kernels.routing_attention(x, x, x, 2, (2, 2), 2, 0.5),
        lambda x: kernels.neighborhood_attention(x, x, x, 2, 3),
        lambda x: kernels.window_attention(x, x, x, 2, 2, 1, 0, x.flatten()[:18].view(9, 2)),
        lambda x: kernels.window_attention(x, x, x, 4, 4),
        lambda x: kernels.routing_attention(x, x, x, 2, (3, 3), 2, 0.5),
        lambda x: kernels.neighborhood_attention(x, x, x, 2, 3, 1, x.flatten()[:50].view(2, 5, 5)),
        lambda x: kernels.pointwise_conv(x, x[:, :, 0].mT.reshape(4, 4, 1, 1), None, x),
    ):
        first = torch.autograd.grad(call(x).square().sum(), x)[0]
        again = torch.autograd.grad(call(x).square().sum(), x, create_graph=True)[0]
        torch.testing.assert_close(again, first, rtol=1e-9, atol=1e-10)
        assert torch.autograd.gradgradcheck(call, x, fast_mode=True)


@pytest.mark.skipif(DEVICE == "cpu" and not _dispatch.INTERPRETED, reason="needs a GPU or the interpreter")
@pytest.mark.parametrize("name", TRITON)
def test_gradients_of_triton_gradients_are_those_of_the_definition(name):
    case = cases(1, 4, 6, 4)[name]
    inputs = [x.detach().float().to(DEVICE).requires_grad_() for x in case.tensors.values()]

    def second(backend):
        out = case.call(*inputs, backend=backend)
        grads = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in grads), inputs)

    for got, want in zip(second("triton"), second("torch"), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * want.abs().max().item())


@pytest.mark.skipif(DEVICE == "cpu" and not _dispatch.INTERPRETED, reason="needs a GPU or the interpreter")
@pytest.mark.parametrize("name", TRITON)
def test_triton_refuses_what_it_would_drop(name):
    case = cases(1, 4, 6, 4)[name]
    inputs = [x.float().to(DEVICE) for x in case.tensors.values()]

    def call(*tensors):
        return case.call(*tensors, backend="triton")

    assert call(*inputs).isfinite().all()
    directions = tuple(torch.ones_like(x) for x in inputs)
    # The last is the first of its parts.
    first = "depthwise_conv" if case.name == "large_kernel_attention" else case.name
    match = rf"{first}: Triton cannot run: .*forward-mode"
    with pytest.raises(RuntimeError, match=match):
        torch.func.jvp(call, tuple(inputs), directions)
    with pytest.raises(RuntimeError, match=match):
        torch.func.vmap(call)(*(x[None] for x in inputs))
    with forward_ad.dual_level():
        assert not kernels.can_run(case.name, **dict(zip(case.tensors, inputs, strict=True)), **case.settings)
    with kernels.use_backend("triton"), pytest.raises(RuntimeError, match=match):
        torch.func.jvp(case.call, tuple(inputs), directions)
