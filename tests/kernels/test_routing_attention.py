import operator_definitions
import pytest
import torch

from attnzoo.kernels import routing_attention
from attnzoo.kernels.routing_attention import cpu, naive


def qkv(b, h, w, c, dtype=torch.float64):
    return (torch.randn(b, h, w, 3 * c, dtype=dtype)).chunk(3, -1)


SHAPES = [
    (2, 6, 9, 8, 2, (3, 3), 4),
    (1, 4, 10, 6, 3, (2, 5), 1),
    (2, 3, 3, 4, 1, (3, 3), 9),
    (1, 5, 7, 4, 2, (1, 1), 1),
    (3, 8, 4, 8, 4, (4, 2), 3),
    # Smaller last regions, one of a single pixel.
    (2, 7, 10, 8, 2, (3, 4), 4),
    (1, 10, 13, 4, 1, (4, 2), 3),
    # Empty ones behind them: fewer than topk are left, exactly topk, all but two.
    (2, 4, 9, 4, 2, (3, 5), 12),
    (1, 4, 6, 4, 1, (3, 3), 6),
    (1, 2, 1, 4, 2, (7, 7), 4),
    (1, 1, 1, 4, 2, (3, 3), 1),
]


@pytest.mark.parametrize(("b", "h", "w", "c", "heads", "regions", "topk"), SHAPES)
def test_definition_equals_the_dense_one(b, h, w, c, heads, regions, topk):
    q, k, v = qkv(b, h, w, c)
    got = naive.routing_attention(q, k, v, heads, regions, topk, c**-0.5)
    want = operator_definitions.routing_attention(q, k, v, heads, regions, topk, c**-0.5)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("b", "h", "w", "c", "heads", "regions", "topk"), SHAPES)
@pytest.mark.parametrize("function", [routing_attention, cpu.attend_in_one])
def test_equals_the_definition(function, b, h, w, c, heads, regions, topk):
    q, k, v = qkv(b, h, w, c)
    got = function(q, k, v, heads, regions, topk, c**-0.5)
    want = naive.routing_attention(q, k, v, heads, regions, topk, c**-0.5)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_all_regions_is_full_attention():
    q, k, v = qkv(2, 6, 4, 8)
    got = routing_attention(q, k, v, 2, (3, 2), 6, 0.3)
    heads = [x.reshape(2, 24, 2, 4).transpose(1, 2) for x in (q, k, v)]
    want = torch.nn.functional.scaled_dot_product_attention(*heads, scale=0.3).transpose(1, 2).reshape(2, 6, 4, 8)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("function", [routing_attention, cpu.attend_in_one])
@pytest.mark.parametrize(("h", "w"), [(4, 6), (5, 4)])
def test_gradients(function, h, w):
    q, k, v = (x.clone().requires_grad_() for x in qkv(1, h, w, 4))
    assert torch.autograd.gradcheck(lambda q, k, v: function(q, k, v, 2, (2, 3), 2, 0.5), (q, k, v))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    q, k, v = qkv(2, 6, 6, 16)
    want = routing_attention(q, k, v, 2, (3, 3), 9, 0.25)
    got = routing_attention(q.to(dtype), k.to(dtype), v.to(dtype), 2, (3, 3), 9, 0.25)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(regions=(0, 3)), "regions must be at least 1"),
        (dict(num_heads=3), "num_heads must divide"),
        (dict(topk=10), "topk must be 1 to 9"),
        (dict(topk=0), "topk must be 1 to 9"),
        (dict(backend="cuda"), "backend must be one of"),
    ],
)
def test_bad_arguments(kwargs, message):
    q, k, v = qkv(1, 6, 6, 8)
    with pytest.raises(ValueError, match=message):
        routing_attention(q, k, v, **{**dict(num_heads=2, regions=(3, 3), topk=2, scale=1.0), **kwargs})


def test_shapes_must_agree():
    q, k, v = qkv(1, 6, 6, 8)
    with pytest.raises(ValueError, match="alike"):
        routing_attention(q, k[:, :3], v, 2, (3, 3), 2, 1.0)


@pytest.mark.parametrize("budget", [1, 2 * 4 * 24 * 8, 2**20])
@pytest.mark.parametrize("topk", [1, 4])
@pytest.mark.parametrize("size", [(6, 9), (7, 8)])
def test_memory_budget_changes_nothing(budget, topk, size, monkeypatch):
    """A region at a time, chunks that do not divide the regions, all at once."""
    monkeypatch.setattr(cpu, "_BUDGET", budget)
    leaves = [x.contiguous().requires_grad_() for x in qkv(2, *size, 8)]
    out = routing_attention(*leaves, 2, (3, 3), topk, 0.3)
    want = cpu.attend_in_one(*leaves, 2, (3, 3), topk, 0.3)
    torch.testing.assert_close(out, want, rtol=1e-10, atol=1e-12)
    weights = torch.randn_like(out)
    for ours, theirs in zip(
        torch.autograd.grad((out * weights).sum(), leaves),
        torch.autograd.grad((want * weights).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_gradient_of_a_much_chosen_region_in_half_precision():
    """Every region chooses the first one too: its gradient sums nine parts without rounding each sum."""
    q, k, v = qkv(1, 12, 12, 16)
    k[:, :4, :4] += 10 * q.mean((1, 2), keepdim=True).sign()
    exact = [x.contiguous().to(torch.bfloat16).double().requires_grad_() for x in (q, k, v)]
    half = [x.detach().to(torch.bfloat16).requires_grad_() for x in exact]
    want = torch.autograd.grad(routing_attention(*exact, 2, (3, 3), 8, 0.25).sum(), exact)
    got = torch.autograd.grad(routing_attention(*half, 2, (3, 3), 8, 0.25).sum(), half)
    for ours, theirs in zip(got, want, strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.double(), theirs, rtol=0.05, atol=0.02 * theirs.abs().max().item())


def test_size_of_a_call_is_free():
    """One script, one compiled function, which sees free sizes at its second call: even and smaller last regions."""
    q, k, v = qkv(1, 6, 6, 8)
    once = torch.jit.script(routing_attention)
    compiled = torch.compile(routing_attention, backend="eager", fullgraph=True)
    for height in (6, 5):
        part = [x[:, :height] for x in (q, k, v)]
        want = routing_attention(*part, 2, (3, 3), 3, 0.3)
        for function in (once, compiled):
            torch.testing.assert_close(function(*part, 2, (3, 3), 3, 0.3), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("topk", [2, 9])
@pytest.mark.parametrize("transform", [torch.jit.script, lambda f: torch.compile(f, backend="eager", fullgraph=True)])
def test_transformed_operator_equals_the_eager_one(transform, topk):
    q, k, v = qkv(2, 6, 9, 8)
    got = transform(routing_attention)(q, k, v, 2, (3, 3), topk, 0.3)
    torch.testing.assert_close(got, routing_attention(q, k, v, 2, (3, 3), topk, 0.3), rtol=1e-10, atol=1e-12)
