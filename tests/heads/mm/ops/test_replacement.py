"""attnzoo's operators in mmcv where a compiled mmcv is installed: here one whose operators raise."""

import interpreters
import pytest
import torch
from mmcv.ops import multi_scale_deform_attn as mmcv_attention

import attnzoo.heads
from attnzoo.heads.mm.ops import replacement
from attnzoo.kernels.deformable_attention import naive

LEVELS = [(5, 7), (3, 4)]
CHANGED = ("ext_module", "multi_scale_deformable_attn_pytorch", "IS_CUDA_AVAILABLE")
LAYER = mmcv_attention.MultiScaleDeformableAttention


class Compiled:
    """An `mmcv._ext` that knows that it was called, and has no kernel for this device."""

    def __getattr__(self, name):
        def operator(*args, **kwargs):
            raise RuntimeError(f"compiled {name}")

        return operator


@pytest.fixture(autouse=True)
def compiled(monkeypatch):
    monkeypatch.setattr(mmcv_attention, "ext_module", Compiled())
    monkeypatch.setattr(mmcv_attention, "IS_CUDA_AVAILABLE", True)
    before, forward = {name: getattr(mmcv_attention, name) for name in CHANGED}, LAYER.forward
    yield
    assert LAYER.forward is forward
    assert {name: getattr(mmcv_attention, name) for name in CHANGED} == before
    assert not replacement._in_use


def is_ours():
    functions = mmcv_attention.multi_scale_deformable_attn_pytorch, mmcv_attention.ext_module
    return functions[0] is replacement._attend and not isinstance(functions[1], Compiled)


def inputs(dtype=torch.float32):
    shapes = torch.tensor(LEVELS)
    starts, positions = torch.tensor([0, 35]), 47
    value = torch.randn(2, positions, 2, 8, dtype=torch.float64)
    places = 1.2 * torch.rand(2, 6, 2, 2, 3, 2, dtype=torch.float64) - 0.1
    weights = torch.randn(2, 6, 2, 6, dtype=torch.float64).softmax(-1).view(2, 6, 2, 2, 3)
    value, places, weights = (x.to(dtype).requires_grad_() for x in (value, places, weights))
    return value, shapes, starts, places, weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_autograd_function(dtype):
    value, _, starts, places, weights = given = inputs(dtype)
    apply = mmcv_attention.MultiScaleDeformableAttnFunction.apply
    with pytest.raises(RuntimeError, match="compiled ms_deform_attn_forward"):
        apply(*given, 64)
    leaves = value, places, weights
    with attnzoo.heads.use_operators("ms_deform_attn"):
        out = apply(*given, 64)
        grads = torch.autograd.grad(out.float().square().sum(), leaves)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    want = naive.deformable_attention(exact[0], LEVELS, starts.tolist(), *exact[1:])
    wanted = torch.autograd.grad(want.square().sum(), exact)
    assert out.dtype == dtype
    unit = max(torch.finfo(dtype).eps, 1e-5)
    torch.testing.assert_close(out.double(), want, rtol=unit, atol=unit)
    for got, expected in zip(grads, wanted, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), expected, rtol=4 * unit, atol=4 * unit * expected.abs().max().item())


def layer_of(dtype):
    torch.manual_seed(0)
    layer = LAYER(16, 2, num_levels=2, num_points=3, dropout=0, batch_first=True)
    torch.nn.init.normal_(layer.attention_weights.weight)
    torch.nn.init.normal_(layer.sampling_offsets.weight, std=0.1)
    return layer.to(dtype)


def run(layer, dtype, autocast=False):
    torch.manual_seed(1)
    x = torch.randn(2, 47, 16).to(dtype).requires_grad_()
    points = torch.rand(2, 47, 2, 2)
    shapes, starts = torch.tensor(LEVELS), torch.tensor([0, 35])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = layer(x, value=x, reference_points=points.to(dtype), spatial_shapes=shapes, level_start_index=starts)
    return out, torch.autograd.grad(out.float().square().sum(), [x, *layer.parameters()])


@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, False), (torch.bfloat16, False), (torch.float32, True)]
)
def test_layer(dtype, autocast, monkeypatch):
    """One that was there before, forward and backward, against mmcv's own in float32."""
    layer, calls = layer_of(dtype), []
    want, wanted = run(layer_of(torch.float32), torch.float32)
    ours = replacement.deformable_attention

    def watched(*args):
        calls.append(args[0].dtype)
        return ours(*args)

    monkeypatch.setattr(replacement, "deformable_attention", watched)
    run(layer, dtype, autocast)
    assert not calls
    with attnzoo.heads.use_operators("ms_deform_attn"):
        out, grads = run(layer, dtype, autocast)
    assert calls == [torch.bfloat16 if autocast else dtype]
    tolerance = 1e-5 if dtype == torch.float32 and not autocast else 0.1
    for got, expected in zip((out, *grads), (want, *wanted), strict=True):
        assert got.isfinite().all()
        scale = expected.abs().max().item()
        assert (got.float() - expected).abs().max() <= tolerance * max(scale, 1e-3)


def call(layer, numbers, learn, **others):
    """Queries of a decoder, a batch of maps, and all that the layer may be given."""
    torch.manual_seed(1)
    tensors = dict(query=torch.randn(2, 5, 16), value=torch.randn(2, 47, 16), query_pos=torch.randn(2, 5, 16))
    tensors["identity"] = torch.randn(2, 5, 16)
    if not layer.batch_first:
        tensors = {name: x.transpose(0, 1).contiguous() for name, x in tensors.items()}
    points = torch.rand(2, 5, 2, numbers)
    leaves = [x.requires_grad_(learn) for x in (*tensors.values(), points)]
    shapes, starts = torch.tensor(LEVELS), torch.tensor([0, 35])
    given = dict(spatial_shapes=shapes, level_start_index=starts, key_padding_mask=torch.rand(2, 47) < 0.3)
    out = layer(**tensors, reference_points=points, **given, **others)
    return [out, *torch.autograd.grad(out.square().sum(), [*leaves, *layer.parameters()])] if learn else [out]


@pytest.mark.parametrize("numbers", [2, 4])
@pytest.mark.parametrize("batch_first", [False, True])
def test_layer_in_triton(batch_first, numbers, monkeypatch):
    """Softmax and locations in the kernels: result and every gradient are mmcv's; else mmcv's own forward runs."""
    layer, calls = layer_of(torch.float32), []
    layer.batch_first = batch_first
    ours = replacement.deformable_attention_from_offsets

    def watched(*args):
        calls.append(args[3].shape[-1])
        return ours(*args)

    monkeypatch.setattr(replacement, "deformable_attention_from_offsets", watched)
    want = call(layer, numbers, True)
    with attnzoo.heads.use_operators("ms_deform_attn"):
        torch.testing.assert_close(call(layer, numbers, False)[0], want[0])
        assert not calls
        with attnzoo.kernels.use_backend("triton"):
            got = call(layer, numbers, True, key=None, unknown=None)
            assert calls == [numbers]
            # The old name of the identity is mmcv's matter.
            with pytest.raises(AssertionError, match="got them in the arguments at the same time"):
                call(layer, numbers, False, residual=None)
    assert calls == [numbers]
    for x, expected in zip(got, want, strict=True):
        torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traced_layer_is_that_without_triton():
    layer, operators = layer_of(torch.float32).eval(), []
    x, points, shapes, starts = (
        torch.randn(2, 47, 16),
        torch.rand(2, 47, 2, 2),
        torch.tensor(LEVELS),
        torch.tensor([0, 35]),
    )

    class Named(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, *given):
            names = "query", "reference_points", "spatial_shapes", "level_start_index"
            return self.layer(**dict(zip(names, given, strict=True)))

    with attnzoo.heads.use_operators("ms_deform_attn"):
        for backend in ("torch", "triton"):
            with attnzoo.kernels.use_backend(backend):
                graph = torch.jit.trace(Named(), (x, points, shapes, starts), check_trace=False).inlined_graph
            operators.append([node.kind() for node in graph.nodes()])
    assert operators[0] == operators[1] and "aten::softmax" in operators[0]


@pytest.mark.long
def test_where_a_compiled_mmcv_is_installed(tmp_path):
    """As its users see it: mmcv before attnzoo, whose stand-in does not serve then."""
    (tmp_path / "_ext.py").write_text(
        "def __getattr__(name):\n"
        "    def operator(*args, **kwargs):\n"
        "        raise RuntimeError(f'compiled {name}')\n"
        "    return operator\n"
    )
    code = f"""
import mmcv, torch
mmcv.__path__.append({str(tmp_path)!r})
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction as Function
import attnzoo.heads
value = torch.rand(1, 6, 2, 8, dtype=torch.bfloat16, requires_grad=True)
places, weights = torch.rand(1, 4, 2, 1, 3, 2), torch.rand(1, 4, 2, 1, 3)
given = value, torch.tensor([[2, 3]]), torch.tensor([0]), places, weights, 64

def attempt():
    try:
        out = Function.apply(*given)
        out.sum().backward()
        print(tuple(out.shape), out.dtype, value.grad.isfinite().all().item())
    except RuntimeError as error:
        print(error)

attempt()
use = attnzoo.heads.use_operators("ms_deform_attn")
attempt()
use.restore()
attempt()
"""
    done = interpreters.run(code)
    refused = "compiled ms_deform_attn_forward"
    assert done.stdout.splitlines() == [refused, "(1, 4, 16) torch.bfloat16 True", refused], done.stderr


def test_until_restored():
    use = attnzoo.heads.use_operators("ms_deform_attn")
    assert is_ours() and mmcv_attention.IS_CUDA_AVAILABLE is False
    use.restore()
    assert not is_ours()
    use.restore()
    assert not is_ours()


def test_uses_overlap():
    """The last one to end restores, whichever it is; the second one changes nothing."""
    first = attnzoo.heads.use_operators("ms_deform_attn", "ms_deform_attn")
    with attnzoo.heads.use_operators("ms_deform_attn"):
        first.restore()
        assert is_ours()
    assert not is_ours()
    with pytest.raises(KeyError), attnzoo.heads.use_operators("ms_deform_attn"):
        raise KeyError
    assert not is_ours()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("nms",), "operator='nms': allowed are 'ms_deform_attn'"),
        (("ms_deform_attn", "roi_align"), "operator='roi_align': allowed are 'ms_deform_attn'"),
        ((), "use_operators needs one at least of ms_deform_attn"),
    ],
)
def test_unknown_names(names, message):
    with pytest.raises(ValueError, match=message):
        attnzoo.heads.use_operators(*names)
    assert not is_ours()
