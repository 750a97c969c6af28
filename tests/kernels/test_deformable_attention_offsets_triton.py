"""Triton's deformable attention from reference points, offsets and logits, against its definition."""

from functools import partial

import pytest
import torch
from kernel_helpers import DEVICE, assert_near

from attnzoo import kernels
from attnzoo.kernels import deformable_attention, deformable_attention_from_offsets
from attnzoo.kernels.deformable_attention import naive, operator

LEVELS = [(2, 3), (3, 1)]
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
BACKWARD = torch.ops.attnzoo.deformable_attention_from_offsets_backward.default


def tensors(levels=LEVELS, batch=1, queries=3, heads=2, channels=3, points=2, numbers=2):
    """Samples within and around the maps; positions of value beyond the last level, which nothing reads."""
    positions, samples = sum(h * w for h, w in levels) + 1, (batch, queries, heads, len(levels), points)
    given = {
        "value": torch.randn(batch, positions, heads, channels),
        "references": torch.rand(batch, queries, len(levels), numbers),
        "offsets": torch.randn(*samples, 2),
        "logits": torch.randn(samples),
    }
    return {name: x.to(DEVICE) for name, x in given.items()}


def starts_of(levels):
    return [sum(h * w for h, w in levels[:i]) for i in range(len(levels))]


def run(given, backend, levels=LEVELS, fixed=()):
    """The result and the gradients, by name, of a backend or of the "definition"; those of `fixed` do not learn."""
    leaves = {name: x.detach().requires_grad_(name not in fixed) for name, x in given.items()}
    value, *rest = leaves.values()
    if backend == "definition":
        function = naive.deformable_attention_from_offsets
    else:
        function = partial(deformable_attention_from_offsets, backend=backend)
    out = function(value, levels, starts_of(levels), *rest)
    shares = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out).sin()
    learnt = {name: x for name, x in leaves.items() if name not in fixed}
    grads = torch.autograd.grad((out.float() * shares).sum(), list(learnt.values()))
    return {"out": out.detach()} | {f"gradient of {name}": x for name, x in zip(learnt, grads, strict=True)}


def compare(given, levels=LEVELS, tolerance=1e-5, fixed=()):
    exact = {name: x.double() for name, x in given.items()}
    got, want = run(given, "triton", levels, fixed), run(exact, "definition", levels, fixed)
    for name in want:
        assert_near(name, got[name], want[name], tolerance)


@pytest.fixture(params=[False, True], ids=["atomic", "sorted"])
def deterministic(request):
    torch.use_deterministic_algorithms(request.param)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("numbers", [2, 4])
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(dict(batch=2), id="two-levels"),
        pytest.param(dict(levels=[(4, 3)], heads=1, channels=17, queries=34, points=3), id="one-level"),
        # More points than are unrolled.
        pytest.param(dict(levels=[(4, 3)], heads=1, channels=5, points=6, queries=2), id="points"),
    ],
)
def test_result_and_every_gradient(shape, numbers, deterministic, poisoned):
    compare(tensors(**shape, numbers=numbers), shape.get("levels", LEVELS))


@pytest.mark.parametrize("numbers", [2, 4])
@pytest.mark.parametrize("fixed", [("references",), ("value",), ("offsets", "logits")], ids=str)
def test_some_do_not_learn(fixed, numbers, poisoned):
    compare(tensors([(2, 2)], queries=2, numbers=numbers), [(2, 2)], fixed=fixed)


@pytest.mark.parametrize(
    ("value", "references", "offsets", "logits"),
    [(BF16, BF16, BF16, BF16), (F16, F32, F16, F16), (F32, F16, BF16, F32)],
    ids=str,
)
@pytest.mark.parametrize("numbers", [2, 4])
def test_every_tensor_in_its_own_dtype(numbers, value, references, offsets, logits, deterministic):
    dtypes = dict(value=value, references=references, offsets=offsets, logits=logits)
    given = {name: x.to(dtypes[name]) for name, x in tensors([(3, 4)], queries=2, points=2, numbers=numbers).items()}
    arguments = given["value"], [(3, 4)], [0], *list(given.values())[1:]
    assert kernels.can_run("deformable_attention_from_offsets", *arguments)
    got = run(given, "triton", [(3, 4)])
    want = run({name: x.double() for name, x in given.items()}, "definition", [(3, 4)])
    assert got["out"].dtype == value
    for name, x in given.items():
        assert got[f"gradient of {name}"].dtype == x.dtype
    for name, exact in want.items():
        # What comes in for the backward pass is of the result's dtype, and the result itself stands in it.
        eps = max(torch.finfo(dtype).eps for dtype in (got[name].dtype, value))
        assert_near(name, got[name], exact, max(4 * eps, 1e-5))


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_large_logits_and_logits_of_minus_infinity(dtype, deterministic):
    given = tensors([(3, 4)], queries=2)
    # Their exponentials are infinite in every dtype.
    given["logits"] = (given["logits"] + 200).to(dtype)
    given["logits"][:, 0, 0, 0, 0] = -torch.inf
    compare(given, [(3, 4)], max(4 * torch.finfo(dtype).eps, 1e-5))


def test_what_lies_beyond_all_reach_counts_for_nothing(deterministic):
    given = tensors([(3, 4)], queries=4, heads=1, points=1)
    given["references"][:] = 0.5
    for query, offset in enumerate((torch.nan, torch.inf, 1e30, -2.5)):
        given["offsets"][0, query] = offset
    for backend in ("triton", "torch"):
        for name, x in run(given, backend, [(3, 4)]).items():
            assert not x.any(), (backend, name)


def test_strided_arguments():
    given = tensors(batch=2)
    strided = {name: x.transpose(0, 1).contiguous().transpose(0, 1) for name, x in given.items()}
    assert not strided["offsets"].is_contiguous()
    expected = run(given, "torch")
    for name, x in run(strided, "triton").items():
        assert_near(name, x, expected[name], 1e-5)


@pytest.mark.parametrize("empty", [dict(batch=0), dict(queries=0), dict(points=0), dict(channels=0)], ids=str)
def test_empty(empty):
    for backend in ("triton", "torch"):
        got = run(tensors(**empty), backend)
        assert got["out"].shape == (empty.get("batch", 1), empty.get("queries", 3), 2 * empty.get("channels", 3))
        assert not any(x.any() for x in got.values())


@pytest.mark.parametrize("empty", [dict(batch=0), dict(queries=0), dict(points=0)], ids=str)
def test_operators_on_empty_tensors(empty, poisoned):
    """As a graph that was compiled of other sizes calls them."""
    value, *rest = tensors(**empty).values()
    levels = operator.levels_of(LEVELS, starts_of(LEVELS), value)
    out = torch.ops.attnzoo.deformable_attention_from_offsets.default(value, *levels, *rest)
    grads = BACKWARD(torch.ones_like(out), out, value, *levels, *rest, True)
    assert not out.any() and not any(x.any() for x in grads)
    assert [x.shape for x in grads] == [x.shape for x in (value, *rest)]


def test_compiles_to_one_graph_for_every_batch(deterministic):
    torch._dynamo.reset()

    def call(value, sizes, starts, *rest, backend="triton"):
        return deformable_attention_from_offsets(value, sizes, starts, *rest, backend=backend)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    levels = torch.tensor(LEVELS, device=DEVICE), torch.tensor(starts_of(LEVELS), device=DEVICE)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (2, 3):
            given = list(tensors(batch=batch, queries=1, points=1).values())
            for x in given:
                torch._dynamo.mark_dynamic(x, 0)
                x.requires_grad_()
            out, want = compiled(given[0], *levels, *given[1:]), call(given[0], *levels, *given[1:], backend="torch")
            assert_near("out", out, want, 1e-5)
            wanted = torch.autograd.grad(want.sum(), given)
            for got, exact in zip(torch.autograd.grad(out.sum(), given), wanted, strict=True):
                assert_near("gradient", got, exact, 1e-5)


def test_operators_are_registered_well():
    value, *rest = (x.requires_grad_() for x in tensors(queries=1, points=1, numbers=4).values())
    levels = operator.levels_of(LEVELS, starts_of(LEVELS), value)
    forward = torch.ops.attnzoo.deformable_attention_from_offsets.default
    torch.library.opcheck(forward, (value, *levels, *rest))
    out = forward(value, *levels, *rest).detach()
    given = [x.detach() for x in rest]
    for learn in (False, True):
        torch.library.opcheck(BACKWARD, (torch.ones_like(out), out, value.detach(), *levels, *given, learn))


def test_sorted_gradients_are_the_same_in_every_run_and_atomic_where_none_asks():
    """The sorted ones need the locations, which the fused kernels never make."""
    given, calls = tensors([(2, 2)]), []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append(func)
            return func(*args, **(kwargs or {}))

    torch.use_deterministic_algorithms(True)
    try:
        with Watch():
            first = run(given, "triton", [(2, 2)])
        second = run(given, "triton", [(2, 2)])
    finally:
        torch.use_deterministic_algorithms(False)
    assert BACKWARD not in calls
    for name in first:
        assert torch.equal(first[name], second[name]), name
    with Watch():
        run(given, "triton", [(2, 2)])
    assert BACKWARD in calls


@pytest.mark.parametrize("numbers", [2, 4])
def test_exports_plain_pytorch(numbers):
    class Fixed(torch.nn.Module):
        def forward(self, value, *rest):
            return deformable_attention_from_offsets(value, LEVELS, starts_of(LEVELS), *rest, backend="triton")

    given = tuple(tensors(numbers=numbers).values())
    program = torch.export.export(Fixed(), given)
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert names and all(name.startswith("aten.") or "getitem" in name for name in names)
    assert_near("out", program.module()(*given), Fixed()(*given), 1e-5)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_pytorch_computes_in_float32(dtype):
    """Softmax and locations too: the result is rounded once."""
    given = {name: x.to(dtype) for name, x in tensors([(30, 40)], numbers=4).items()}
    value, *rest = given.values()
    out = deformable_attention_from_offsets(value, [(30, 40)], [0], *rest, backend="torch")
    want = naive.deformable_attention_from_offsets(value.float(), [(30, 40)], [0], *(x.float() for x in rest))
    assert out.dtype == dtype
    assert torch.equal(out, want.to(dtype))


def test_equals_the_operator_of_locations():
    """As Deformable DETR writes it."""
    value, references, offsets, logits = tensors(numbers=2).values()
    sizes = torch.tensor([(width, height) for height, width in LEVELS], device=DEVICE)
    locations = references[:, :, None, :, None] + offsets / sizes[:, None]
    weights = logits.flatten(3).softmax(-1).view_as(logits)
    want = deformable_attention(value, LEVELS, starts_of(LEVELS), locations, weights, backend="triton")
    got = deformable_attention_from_offsets(value, LEVELS, starts_of(LEVELS), references, offsets, logits, "triton")
    assert_near("out", got, want, 1e-5)
