"""NATTEN's functions against dense attention, published figures, and in code that was written for NATTEN."""

import importlib.metadata
import importlib.util

import golden_files
import interpreters
import operator_definitions
import pytest
import torch
from torch.autograd import forward_ad

from attnzoo import kernels
from attnzoo.backbones.nat import NeighborhoodAttention
from attnzoo.kernels import _dispatch, natten_compat

GOLDEN = golden_files.load("gna_2d")


def maps(count, *shape, dtype=torch.float64):
    """Such maps (B, heads, H, W, D), or with the heads behind the map."""
    return [torch.randn(shape, dtype=dtype) for _ in range(count)]


def pair(x):
    return (x, x) if isinstance(x, int) else tuple(x)


def table_of(heads, kernel_size, dtype=torch.float64):
    rows, cols = pair(kernel_size)
    return torch.randn(heads, 2 * rows - 1, 2 * cols - 1, dtype=dtype)


# Square windows and others, even ones, maps smaller than the window, dilations of both axes, causal axes.
CASES = [
    (9, 7, 3, 1, False),
    (8, 11, (3, 5), (2, 1), False),
    (5, 6, 7, 1, False),
    (3, 7, 3, (1, 4), False),
    (6, 5, (2, 4), 1, False),
    (8, 9, 3, 2, (True, False)),
    (5, 4, (4, 2), 1, True),
]


@pytest.mark.parametrize(("h", "w", "kernel_size", "dilation", "is_causal"), CASES)
@pytest.mark.parametrize("biased", [False, True])
def test_halves_are_dense_attention(h, w, kernel_size, dilation, is_causal, biased):
    q, k, v = maps(3, 2, 2, h, w, 4)
    rpb = table_of(2, kernel_size) if biased else None
    weights = natten_compat.na2d_qk(q, k, kernel_size, dilation, is_causal=is_causal, rpb=rpb)
    assert weights.shape == (2, 2, h, w, pair(kernel_size)[0] * pair(kernel_size)[1])
    out = natten_compat.na2d_av(weights.softmax(-1), v, kernel_size, dilation, is_causal=is_causal)
    last = [x.permute(0, 2, 3, 1, 4).flatten(3) for x in (q, k, v)]
    settings = dict(kernel_size=kernel_size, dilation=dilation, is_causal=is_causal, bias_table=rpb)
    want = operator_definitions.generalized_neighborhood_attention(*last, 2, **settings, scale=1.0)
    torch.testing.assert_close(out.permute(0, 2, 3, 1, 4).flatten(3), want, rtol=1e-10, atol=1e-12)


def test_weights_are_row_by_row_from_the_first_corner():
    """At the map's border the window is moved inside: of 5 x 6 pixels the last one's begins at (2, 3)."""
    q, k = torch.ones(1, 1, 5, 6, 1), torch.arange(30.0).view(1, 1, 5, 6, 1)
    weights = natten_compat.natten2dqk(q, k, 3, 1)[0, 0]
    assert weights[4, 5].tolist() == [15, 16, 17, 21, 22, 23, 27, 28, 29]
    assert weights[0, 0].tolist() == [0, 1, 2, 6, 7, 8, 12, 13, 14]
    # The bias goes by the distance: in the corner the query is the window's first pixel.
    rpb = torch.arange(25.0).view(1, 5, 5)
    biased = natten_compat.natten2dqkrpb(q, k, rpb, 3, 1)[0, 0] - weights
    assert biased[0, 0].view(3, 3).tolist() == rpb[0, 2:, 2:].tolist()
    assert biased[2, 2].view(3, 3).tolist() == rpb[0, 1:4, 1:4].tolist()
    assert biased[4, 5].view(3, 3).tolist() == rpb[0, :3, :3].tolist()
    # Of a residue class the window is its own pixels.
    assert natten_compat.natten2dqk(q, k, (1, 3), (1, 2))[0, 0, 1, 5].tolist() == [7, 9, 11]


def test_keys_that_a_window_lacks():
    """Minus infinity in the weights, and no share in the sum, whatever weight they are given."""
    q, k, v = maps(3, 1, 1, 4, 4, 2)
    weights = natten_compat.na2d_qk(q, k, 3, is_causal=True)
    assert (weights[0, 0, 0, 0] > -torch.inf).tolist() == [True] + [False] * 8
    out = natten_compat.na2d_av(torch.ones_like(weights), v, 3, is_causal=True)
    torch.testing.assert_close(out[..., 0, 0, :], v[..., 0, 0, :])
    torch.testing.assert_close(out[..., 3, 3, :], v[..., 1:, 1:, :].sum((2, 3)))


def test_names_of_all_versions():
    q, k, v = maps(3, 1, 2, 6, 5, 4)
    rpb = table_of(2, 3)
    biased = natten_compat.na2d_qk(q, k, 3, 2, rpb=rpb)
    assert torch.equal(natten_compat.natten2dqkrpb(q, k, rpb, 3, 2), biased)
    assert torch.equal(natten_compat.na2d_qk_with_bias(q, k, rpb, 3, 2), biased)
    plain = natten_compat.na2d_qk(q, k, 3, 2)
    assert torch.equal(natten_compat.natten2dqkrpb(q, k, None, 3, 2), plain)
    assert torch.equal(natten_compat.natten2dqk(q, k, 3, 2), plain)
    assert torch.equal(natten_compat.natten2dav(plain, v, 3, 2), natten_compat.na2d_av(plain, v, 3, 2))
    assert torch.equal(natten_compat.na2d_qk(q, k, [3, 3], None), natten_compat.na2d_qk(q, k, 3))


@pytest.mark.parametrize(("h", "w", "kernel_size", "dilation", "is_causal"), [CASES[1], CASES[3], CASES[5]])
def test_gradients_of_the_halves(h, w, kernel_size, dilation, is_causal):
    q, k, rpb = (x.requires_grad_() for x in (*maps(2, 1, 2, h, w, 2), table_of(2, kernel_size)))

    def product(q, k, rpb):
        return natten_compat.na2d_qk(q, k, kernel_size, dilation, is_causal=is_causal, rpb=rpb).exp()

    weights = product(q, k, rpb).detach().softmax(-1).requires_grad_()
    sums = lambda x, v: natten_compat.na2d_av(x, v, kernel_size, dilation, is_causal=is_causal)  # noqa: E731
    for function, given in ((product, (q, k, rpb)), (sums, (weights, k))):
        assert torch.autograd.gradcheck(function, given, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, given, fast_mode=True)
        plain = [x.detach() for x in given]
        want = torch.autograd.functional.jvp(function, tuple(given), tuple(plain))[1]
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(x, x) for x in plain]
            torch.testing.assert_close(forward_ad.unpack_dual(function(*duals)).tangent, want)
        together = torch.func.vmap(function)(*(torch.stack([x, 2 * x]) for x in plain))
        torch.testing.assert_close(together[1], function(*(2 * x for x in plain)))
        out = function(*given)
        grads = torch.randn(2, *out.shape, dtype=out.dtype)
        batched = torch.autograd.grad(out, given, grads, is_grads_batched=True, retain_graph=True)
        for got, one in zip(batched, torch.autograd.grad(out, given, grads[1]), strict=True):
            torch.testing.assert_close(got[1], one)


def test_no_window_is_kept_for_the_backward_pass():
    q, k, v = (x.requires_grad_() for x in maps(3, 1, 2, 12, 12, 8))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        weights = natten_compat.natten2dqk(q, k, 7, 1)
        natten_compat.natten2dav(weights, v, 7, 1)
    assert max(x.numel() for x in kept) == weights.numel()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_rounded_once(dtype):
    q, k, v = (x.to(dtype) for x in maps(3, 1, 2, 9, 8, 64))
    rpb = table_of(2, 5)
    unit = torch.finfo(dtype).eps
    got = natten_compat.natten2dqkrpb(q, k, rpb.float(), 5, 1)
    want = natten_compat.natten2dqkrpb(q.double(), k.double(), rpb.float().double(), 5, 1)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=unit, atol=1e-4)
    weights = want.softmax(-1).to(dtype)
    # As under autocast, where the softmax is in float32.
    got = natten_compat.natten2dav(weights.float(), v, 5, 1)
    want = natten_compat.natten2dav(weights.double(), v.double(), 5, 1)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=unit, atol=1e-5)
    with torch.autocast("cpu", dtype):
        assert natten_compat.natten2dqkrpb(q.float(), k.float(), rpb.float(), 5, 1).dtype == dtype


@pytest.mark.parametrize("name", GOLDEN["kwargs"]["cases"])
def test_published_result(name):
    """Of NATTEN's own na2d: as its users call it, and with the log-sum-exp."""
    number, case = list(GOLDEN["kwargs"]["cases"]).index(name), GOLDEN["kwargs"]["cases"][name]
    shape = (case["batch"], *case["shape"], case["heads"], case["dim"])
    given = [golden_files.noise(shape, 100 * number + i) for i in range(3)]
    settings = {key: tuple(case[key]) for key in ("kernel_size", "stride", "dilation", "is_causal")}
    out = natten_compat.na2d(*given, **settings)
    assert golden_files.error(out, GOLDEN["outputs"][f"{name}/out"]) < 1e-12
    out, lse = natten_compat.na2d(*given, **settings, return_lse=True, backend="cutlass-fna")
    assert golden_files.error(out, GOLDEN["outputs"][f"{name}/out"]) < 1e-12
    assert golden_files.error(lse, GOLDEN["outputs"][f"{name}/logsumexp"]) < 1e-12


@pytest.mark.parametrize(
    ("settings", "function"),
    [
        (dict(kernel_size=3, dilation=2), "neighborhood_attention"),
        (dict(kernel_size=(5, 5), dilation=(1, 1), is_causal=(False, False)), "neighborhood_attention"),
        (dict(kernel_size=17), "generalized_neighborhood_attention"),
        (dict(kernel_size=4), "generalized_neighborhood_attention"),
        (dict(kernel_size=(3, 5)), "generalized_neighborhood_attention"),
        (dict(kernel_size=3, dilation=(1, 2)), "generalized_neighborhood_attention"),
        (dict(kernel_size=5, stride=2), "generalized_neighborhood_attention"),
        (dict(kernel_size=3, is_causal=True), "generalized_neighborhood_attention"),
    ],
)
def test_fused_operators_get_parts_of_one_tensor_as_they_are(settings, function, monkeypatch):
    qkv = torch.randn(2, 8, 9, 3, 2, 4, dtype=torch.float64)
    operator, seen = getattr(natten_compat, function), []

    def watched(*args):
        seen.extend(args[:3])
        return operator(*args)

    monkeypatch.setattr(natten_compat, function, watched)
    rpb = table_of(2, settings["kernel_size"])
    out = natten_compat.na2d(*qkv.unbind(3), **settings, rpb=rpb, scale=0.7)
    assert [x.data_ptr() for x in seen] == [x.data_ptr() for x in qkv.unbind(3)]
    assert all(x.shape == (2, 8, 9, 8) and x.stride(2) == 24 for x in seen)
    want = operator_definitions.generalized_neighborhood_attention(
        *(x.flatten(3) for x in qkv.unbind(3)), 2, **settings, bias_table=rpb, scale=0.7
    )
    torch.testing.assert_close(out.flatten(3), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rpb", [None, table_of(2, 3)])
def test_additional_keys(rpb):
    """They stand beside each window's: fused, and in the halves behind its weights."""
    q, k, v = maps(3, 2, 6, 5, 2, 4)
    more_k, more_v = maps(2, 2, 7, 2, 4)
    out, lse = natten_compat.na2d(
        q, k, v, 3, rpb=rpb, scale=0.5, additional_keys=more_k, additional_values=more_v, return_lse=True
    )
    first = [x.permute(0, 3, 1, 2, 4) for x in (q, k, v)]
    more = [x.transpose(1, 2) for x in (more_k, more_v)]
    near = natten_compat.na2d_qk(0.5 * first[0], first[1], 3, rpb=rpb)
    logits = torch.cat([near, 0.5 * first[0] @ more[0].unsqueeze(2).mT], -1)
    torch.testing.assert_close(natten_compat.na2d_qk(0.5 * first[0], first[1], 3, 1, more[0], False, rpb), logits)
    weights = logits.softmax(-1)
    want = natten_compat.na2d_av(weights[..., :9], first[2], 3) + weights[..., 9:] @ more[1].unsqueeze(2)
    torch.testing.assert_close(natten_compat.na2d_av(weights, first[2], 3, 1, more[1]), want)
    torch.testing.assert_close(out, want.permute(0, 2, 3, 1, 4))
    torch.testing.assert_close(lse, logits.logsumexp(-1).permute(0, 2, 3, 1))
    # With keys so far away that they count for nothing it is attention to the windows.
    far = natten_compat.na2d(q.abs(), k, v, 3, rpb=rpb, additional_keys=more_k.fill_(-1e4), additional_values=more_v)
    torch.testing.assert_close(far, natten_compat.na2d(q.abs(), k, v, 3, rpb=rpb))


def test_values_of_another_size_and_a_batch_of_none():
    q, k = maps(2, 1, 5, 6, 2, 4)
    (v,) = maps(1, 1, 5, 6, 2, 3)
    out = natten_compat.na2d(q, k, v, 3)
    want = natten_compat.na2d(q, k, torch.nn.functional.pad(v, (0, 1)), 3)
    torch.testing.assert_close(out, want[..., :3])
    none = q[:0]
    assert natten_compat.na2d(none, none, none, 3).shape == none.shape
    weights = natten_compat.na2d_qk(none.permute(0, 3, 1, 2, 4), none.permute(0, 3, 1, 2, 4), 3)
    assert weights.shape == (0, 2, 5, 6, 9)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda q: natten_compat.na2d_qk(q[0], q[0], 3), ValueError, "query must have five dimensions"),
        (lambda q: natten_compat.na2d_qk(q, q[:, :1], 3), ValueError, r"key must be \(1, 2, 5, 6, 4\) as query is"),
        (lambda q: natten_compat.na2d_qk(q, None, 3), TypeError, "key must be a tensor, got NoneType"),
        (lambda q: natten_compat.na2d_qk(q, q.double(), 3), ValueError, "key must be torch.float32 as query is"),
        (lambda q: natten_compat.na2d_qk(q, q, 3.0), TypeError, "kernel_size must be two integers, got 3.0"),
        (lambda q: natten_compat.na2d_qk(q, q, (3, 3, 3)), TypeError, "kernel_size must be two integers"),
        (lambda q: natten_compat.na2d_qk(q, q, 3, 0), ValueError, "dilation must be at least 1, got 0"),
        (lambda q: natten_compat.na2d_qk(q, q, 3, is_causal=1), TypeError, "is_causal must be True or False"),
        (lambda q: natten_compat.natten2dqkrpb(q, q, q[0, 0], 3, 1), ValueError, r"rpb must be \(2, 5, 5\), got"),
        (
            lambda q: natten_compat.na2d_qk(q, q, 3, 1, q),
            ValueError,
            r"additional_keys must be of B, heads and D \(1, 2",
        ),
        (
            lambda q: natten_compat.na2d_av(q, q, 3),
            ValueError,
            r"attn must be \(1, 2, 5, 6, 9\), got \(1, 2, 5, 6, 4\)",
        ),
        (lambda q: natten_compat.na2d_av(None, q, 3), TypeError, "attn must be a tensor, got NoneType"),
        (
            lambda q: natten_compat.na2d(q, q, q, 3, rpb=q[0, 0]),
            ValueError,
            r"rpb must be \(6, 5, 5\), got \(5, 6, 4\)",
        ),
        (lambda q: natten_compat.na2d(q, q, q.double(), 3), ValueError, "value must be torch.float32 as query is"),
        (lambda q: natten_compat.na2d(q, q, q, 3, tile=1), TypeError, "unexpected keyword argument 'tile'"),
        (lambda q: natten_compat.na2d(q, q, q, 3, additional_keys=q), ValueError, "must be given together"),
        (
            lambda q: natten_compat.na2d(q, q, q, 3, additional_keys=[1], additional_values=q),
            TypeError,
            "additional_keys must be a tensor, got list",
        ),
        (
            lambda q: natten_compat.na2d(q, q, q, 3, additional_keys=q[0], additional_values=q[0]),
            ValueError,
            r"additional_keys must be of B, heads and D \(1, 6, 4\) and N tokens, got",
        ),
        (lambda q: natten_compat.na2d(q, q, q[:, :1], 3), ValueError, r"value must be \(1, 2, 5, 6\) and D, got"),
        (lambda q: natten_compat.na2d(q, q, q, 3, stride=4), ValueError, r"stride must be 1 to kernel_size \(3, 3\)"),
        (
            lambda q: natten_compat.na2d(q, q, q, 3, stride=4, return_lse=True),
            ValueError,
            r"stride must be 1 to kernel_size \(3, 3\), got \(4, 4\)",
        ),
        (lambda q: natten_compat.NeighborhoodAttention2D(8, 2, 4), ValueError, "kernel_size must be odd"),
    ],
)
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.zeros(1, 2, 5, 6, 4))


def module_and_ours(kernel_size, dilation, **settings):
    """NATTEN's module and the one of our backbones, of the same weights: they have the same names."""
    module = natten_compat.NeighborhoodAttention2D(
        8, kernel_size=kernel_size, num_heads=2, dilation=dilation, **settings
    )
    ours = NeighborhoodAttention(8, 2, kernel_size, dilation or 1)
    ours.load_state_dict(module.state_dict())
    return module.double().eval(), ours.double().eval()


@pytest.mark.parametrize(("size", "dilation"), [((9, 12), None), ((9, 12), 2), ((5, 12), 3), ((2, 1), 1)])
def test_module_is_the_one_of_the_backbones(size, dilation):
    """Which published figures hold; small maps are padded."""
    module, ours = module_and_ours(3, dilation, attn_drop=0.5)
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    torch.testing.assert_close(module(x), ours(x), rtol=1e-10, atol=1e-12)
    assert 0.01 < module.rpb.std() < 0.03
    # In training its weights are dropped, for which they are in memory.
    assert not torch.allclose(module.train()(x), ours(x))
    module.attn_drop.p = 1e-12
    torch.testing.assert_close(module(x), ours(x), rtol=1e-9, atol=1e-10)


def test_module_without_bias():
    module = natten_compat.NeighborhoodAttention2D(8, 2, 3, bias=False, qkv_bias=False, qk_scale=0.3).double()
    assert [name for name, _ in module.named_parameters()] == ["qkv.weight", "proj.weight", "proj.bias"]
    assert "rel_pos_bias=False" in repr(module)
    x = torch.randn(1, 6, 5, 8, dtype=torch.float64)
    q, k, v = module.qkv(x).chunk(3, -1)
    torch.testing.assert_close(module(x), module.proj(kernels.neighborhood_attention(q, k, v, 2, 3, scale=0.3)))


@pytest.mark.skipif(not (_dispatch.INTERPRETED or torch.cuda.is_available()), reason="needs a GPU or the interpreter")
def test_triton_computes_what_is_fused():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module, ours = module_and_ours(3, 2)
    module, ours, x = module.float().to(device), ours.float().to(device), torch.randn(1, 7, 9, 8, device=device)
    want = ours(x)
    grads = torch.autograd.grad(want.sum(), list(ours.parameters()))
    with kernels.use_backend("triton"):
        out = module(x)
        got = torch.autograd.grad(
            out.sum(), [dict(module.named_parameters())[name] for name, _ in ours.named_parameters()]
        )
        with pytest.raises(RuntimeError, match="Triton cannot run: dtype is"):
            module.double()(x.double())
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(got, grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.long
def test_compiles_to_one_graph():
    def model(x, rpb):
        q, k, v = x.permute(3, 0, 4, 1, 2, 5)
        return natten_compat.natten2dav(natten_compat.natten2dqkrpb(q, k, rpb, 3, 2).softmax(-1), v, 3, 2)

    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    for height, width in ((8, 9), (5, 4)):
        x, rpb = torch.randn(1, height, width, 3, 2, 4, requires_grad=True), table_of(2, 3, torch.float32)
        out, want = compiled(x, rpb), model(x, rpb)
        torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)
        got, expected = (torch.autograd.grad(y.square().sum(), x)[0] for y in (out, want))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def run(code, **env):
    """The lines that the code prints in an interpreter of its own, which knows no natten."""
    import os

    done = interpreters.run(code, env={**os.environ, **env})
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


STAND_IN = """
import importlib.metadata, importlib.util
assert importlib.util.find_spec("natten") is None
from attnzoo.kernels import natten_compat
natten_compat.install()
natten_compat.install()
"""


@pytest.mark.long
def test_code_written_for_natten():
    code = """
import natten, torch
from natten import NeighborhoodAttention1D, NeighborhoodAttention2D as NeighborhoodAttention
from natten.functional import na1d, na2d, natten2dav, natten2dqkrpb, natten3dqkrpb
print(natten.__version__ == importlib.metadata.version("natten") == natten_compat.VERSION)
print(natten.functional.na2d is natten_compat.na2d, natten.has_fused_na(), natten.use_fused_na(True))
# As published NAT calls it.
layer = NeighborhoodAttention(8, kernel_size=3, dilation=None, num_heads=2, qkv_bias=True, qk_scale=None, attn_drop=0.0,
                              proj_drop=0.1)
print(tuple(layer(torch.rand(1, 2, 5, 8)).shape))
for call in (lambda: na1d(1, 2), lambda: NeighborhoodAttention1D(8), lambda: natten3dqkrpb()):
    try:
        call()
    except NotImplementedError as error:
        print(error)
try:
    from natten.functional import na2d_mask
except ImportError as error:
    print("cannot import name 'na2d_mask' from 'natten.functional'" in str(error))
try:
    import natten.flops
except ModuleNotFoundError as error:
    print(error)
"""
    alone = "attnzoo stands in for the functions of two dimensions only"
    assert run(STAND_IN + code) == [
        "True",
        "True True None",
        "(1, 2, 5, 8)",
        f"natten's na1d: {alone}",
        f"natten's NeighborhoodAttention1D: {alone}",
        f"natten's natten3dqkrpb: {alone}",
        "True",
        "No module named 'natten.flops'",
    ]


@pytest.mark.long
def test_an_installed_natten_is_not_hidden(tmp_path):
    (tmp_path / "natten").mkdir()
    (tmp_path / "natten" / "__init__.py").write_text("__version__ = '0.21.0'\n")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from attnzoo.kernels import natten_compat
try:
    natten_compat.install()
except RuntimeError as error:
    print(error)
import natten
print(natten.__version__)
"""
    origin = tmp_path / "natten" / "__init__.py"
    assert run(code) == [f"natten is installed ({origin}): uninstall it to have attnzoo's in its place", "0.21.0"]


# Later ones hand over maps whose heads stand behind them, which NATTEN refuses too.
WITH_DINAT = importlib.util.find_spec("transformers") is not None and tuple(
    map(int, importlib.metadata.version("transformers").split(".")[:2])
) < (4, 54)
needs_transformers = pytest.mark.skipif(not WITH_DINAT, reason="needs transformers below 4.54, an extra of development")

DINAT = """
import os, torch
from transformers import DinatConfig, DinatForImageClassification
from transformers.models.dinat import modeling_dinat

def windows(size, length, dilation):
    # Of every pixel of an axis what it sees, and how far away that is.
    seen, far = torch.zeros(size, size, dtype=torch.bool), torch.zeros(size, size, dtype=torch.long)
    for pixel in range(size):
        members = list(range(pixel % dilation, size, dilation))
        first = min(max(members.index(pixel) - length // 2, 0), len(members) - length)
        for member in members[first : first + length]:
            seen[pixel, member], far[pixel, member] = True, (member - pixel) // dilation + length - 1
    return seen, far

def dense_scores(q, k, rpb, length, dilation):
    height, width = q.shape[2:4]
    (rows, down), (cols, right) = windows(height, length, dilation), windows(width, length, dilation)
    bias = rpb[:, down[:, None, :, None], right[None, :, None, :]]
    seen = rows[:, None, :, None] & cols[None, :, None, :]
    scores = torch.einsum("bhxyd,bhijd->bhxyij", q, k) + bias
    return scores.masked_fill(~seen, -torch.inf).flatten(4)

def dense_sums(weights, v, length, dilation):
    return torch.einsum("bhxyn,bhnd->bhxyd", weights, v.flatten(2, 3))

torch.manual_seed(0)
config = DinatConfig(embed_dim=8, depths=[2, 2, 1], num_heads=[2, 2, 4], kernel_size=3, dilations=[[1, 4], [2, 3], [1]],
                     num_labels=3, out_indices=[3], drop_path_rate=0.0)
model = DinatForImageClassification(config).double()
for name, parameter in model.named_parameters():
    if name.endswith("rpb"):
        torch.nn.init.normal_(parameter)
images = torch.randn(2, 3, 61, 74, dtype=torch.float64)
results = []
for _ in range(2):
    logits = model(images).logits
    grads = torch.autograd.grad(logits.square().sum(), list(model.parameters()))
    results.append([logits.detach(), *grads])
    modeling_dinat.natten2dqkrpb, modeling_dinat.natten2dav = dense_scores, dense_sums
    print(len(grads), logits.abs().max().item() > 0.01)
print(max(((x - y).abs().max() / y.abs().max().clamp(min=1e-9)).item() for x, y in zip(*results)) < 1e-9)
"""


@pytest.mark.long
@needs_transformers
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_dinat_of_transformers(backend):
    """Unchanged, its result and every gradient, against attention written out; where Triton is chosen, too."""
    *sizes, equal = run(STAND_IN + DINAT, ATTNZOO_BACKEND=backend)
    assert len(set(sizes)) == 1 and sizes[0].endswith("True") and equal == "True"


@pytest.mark.long
@needs_transformers
def test_transformers_must_be_imported_later():
    code = """
import transformers
from attnzoo.kernels import natten_compat
transformers.utils.is_natten_available()
try:
    natten_compat.install()
except RuntimeError as error:
    print(error)
import importlib.util
print(importlib.util.find_spec("natten"))
"""
    said = "transformers was imported before and has noted that there is no natten: call install first"
    assert run(code) == [said, "None"]
