"""Under autocast, and in 16 bits, what operators compute in float32 stays in float32."""

import pytest
import torch
from kernel_helpers import DEVICE

from attnzoo import kernels
from attnzoo.kernels import _derivatives, _dispatch
from attnzoo.kernels.routing_attention import reference

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
            return reference.route(q, k, 4)

    q, k = (off_centre(1, 49, 4, 16).to(AUTOCAST).requires_grad_(learns) for _ in range(2))
    program = torch.export.export(Route(), (q, k), strict=False).module()
    with torch.autocast(DEVICE, AUTOCAST):
        inside = torch.export.export(Route(), (q, k), strict=False).module()
        eager = reference.route(q, k, 4)
    want = reference.route(q, k, 4)
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
