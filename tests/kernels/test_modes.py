"""What every operator must bear: empty batches, strides, scales, dtypes, and PyTorch's modes one after the other."""

import copy
import dataclasses
import inspect
import itertools

import pytest
import torch
from kernel_helpers import CASES, DEVICE, TRITON, assert_near, cases
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from attnzoo import kernels
from attnzoo.kernels import _dispatch
from attnzoo.kernels.window_attention import cpu, windows

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
ATTENTION = [name for name in CASES if "scale" in inspect.signature(getattr(kernels, cases()[name].name)).parameters]


def backends(dtype):
    can = (DEVICE == "cuda" or _dispatch.INTERPRETED) and dtype != torch.float64
    return ("torch", "triton") if can else ("torch",)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_empty_batch(name, dtype):
    case, full = cases(0)[name], cases(2)[name]
    for backend in backends(dtype) if name in TRITON else ("torch",):
        inputs = [x.to(DEVICE, dtype).requires_grad_() for x in case.tensors.values()]
        expected = full.call()
        out = case.call(*inputs, backend=backend)
        assert out.shape == (0, *expected.shape[1:]) and out.dtype == dtype
        out.sum().backward()
        for x in inputs:
            assert x.grad.shape == x.shape and x.grad.dtype == dtype and x.grad.abs().sum() == 0
        with torch.no_grad():
            assert case.call(*inputs, backend=backend).shape == out.shape


@pytest.mark.parametrize("name", CASES)
def test_empty_batch_in_graphs(name):
    """What was compiled of another batch serves an empty one."""
    torch.compiler.reset()
    compiled = torch.compile(cases()[name].call, backend="eager")
    for batch in (2, 0):
        inputs = [x.requires_grad_() for x in cases(batch)[name].tensors.values()]
        out = compiled(*inputs)
        assert out.shape[0] == batch
        torch.autograd.grad(out.sum(), inputs)


@pytest.mark.parametrize(("queries", "points", "channels"), [(0, 3, 4), (5, 0, 4), (5, 3, 0)])
@pytest.mark.parametrize("name", ["deformable", "deformable_3d"])
def test_nothing_to_sample(name, queries, points, channels):
    case = cases()[name]
    tensors = dict(case.tensors)
    tensors["value"] = tensors["value"][..., :channels]
    for key in ("sampling_locations", "attention_weights"):
        tensors[key] = tensors[key][:, :queries, :, :, :points]
    tensors = {key: x.float().to(DEVICE).requires_grad_() for key, x in tensors.items()}
    for backend in backends(torch.float32):
        out = getattr(kernels, case.name)(**tensors, **case.settings, backend=backend)
        assert out.shape == (2, queries, 2 * channels) and out.abs().sum() == 0
        for grad in torch.autograd.grad(out.sum(), list(tensors.values())):
            assert grad.abs().sum() == 0


@pytest.mark.parametrize("name", CASES)
def test_tensors_of_one_mode_do_not_reach_another(name):
    """What a compiler's fake tensors, inference or a transform leave behind must not be used by training."""
    case = cases()[name]
    inputs = [x.requires_grad_() for x in case.tensors.values()]
    plain = [x.detach() for x in inputs]
    with FakeTensorMode() as mode:
        fake = case.call(*(mode.from_tensor(x).requires_grad_() for x in plain))
        fake.sum().backward()
    with torch.inference_mode():
        inferred = case.call(*inputs)
    assert inferred.is_inference()
    torch.func.vmap(case.call)(*(x.detach()[None] for x in inputs))
    torch.export.export(Operator(case), tuple(x.detach() for x in inputs), strict=False)
    out = case.call(*inputs)
    assert type(out) is torch.Tensor and not out.is_inference() and out.shape == fake.shape
    torch.testing.assert_close(out, inferred)
    grads = torch.autograd.grad(out.square().sum(), inputs)
    assert all(type(x) is torch.Tensor and x.isfinite().all() for x in grads)


class Operator(torch.nn.Module):
    def __init__(self, case):
        super().__init__()
        self.case = case

    def forward(self, *tensors):
        return self.case.call(*tensors)


@pytest.mark.parametrize("name", CASES)
def test_checkpointing_and_copies(name):
    case = cases()[name]
    module = Operator(case)
    inputs = [x.requires_grad_() for x in case.tensors.values()]
    want = torch.autograd.grad(module(*inputs).square().sum(), inputs)
    for reentrant in (False, True):
        again = copy.deepcopy(module)
        grads = torch.autograd.grad(again(*inputs).square().sum(), inputs)
        for got, expected in zip(grads, want, strict=True):
            torch.testing.assert_close(got, expected)
        for x in inputs:
            x.grad = None
        checkpoint(again, *inputs, use_reentrant=reentrant).square().sum().backward()
        for x, expected in zip(inputs, want, strict=True):
            torch.testing.assert_close(x.grad, expected)


def strided(x, how):
    """The same numbers in another layout."""
    if how == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if how == "sliced":
        wide = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1])
        wide[..., ::2] = x
        return wide[..., ::2]
    return x.flip(0).contiguous().flip(0) if how == "flipped" else x


@pytest.mark.parametrize("how", ["transposed", "sliced"])
@pytest.mark.parametrize("name", CASES)
def test_any_strides(name, how):
    case = cases()[name]
    plain = [x.clone().requires_grad_() for x in case.tensors.values()]
    other = [strided(x.detach(), how).requires_grad_() for x in plain]
    out, want = case.call(*other), case.call(*plain)
    torch.testing.assert_close(out, want, rtol=1e-9, atol=1e-10)
    grad = strided(torch.randn_like(want), how)
    pairs = zip(torch.autograd.grad(out, other, grad), torch.autograd.grad(want, plain, grad), strict=True)
    for got, expected in pairs:
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_one_number_expanded_over_everything(name):
    case = cases()[name]
    plain = [x.flatten()[:1].clone().expand(x.numel()).reshape(x.shape).clone() for x in case.tensors.values()]
    other = [x.flatten()[0].expand(x.shape) for x in plain]
    torch.testing.assert_close(case.call(*other), case.call(*plain), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float32, 1e-30), *itertools.product(DTYPES, (0.0, -0.7, 20.0))],
    ids=str,
)
@pytest.mark.parametrize("name", ATTENTION)
def test_scales(name, scale, dtype):
    """A product scaled by zero writes nothing in some dtypes: new memory holds NaN here."""
    case = cases(1, 4, 4)[name]
    halved = [x.to(DEVICE, dtype) for x in case.tensors.values()]
    exact = [x.double().requires_grad_() for x in halved]
    case = dataclasses.replace(case, settings=case.settings | {"scale": scale})
    want = case.call(*exact)
    grad = torch.randn_like(want).to(dtype)
    want_grads = torch.autograd.grad(want, exact, grad.double())
    # With a large scale softmax is all but a step.
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4}.get(dtype, 0.2 if scale == 20.0 else 0.04)
    with pytest.MonkeyPatch.context() as patch:
        poison(patch)
        for backend in backends(dtype) if name in TRITON else ("torch",):
            inputs = [x.clone().requires_grad_() for x in halved]
            out = case.call(*inputs, backend=backend)
            assert_near("out", out, want, tolerance)
            for key, got, expected in zip(
                case.tensors, torch.autograd.grad(out, inputs, grad), want_grads, strict=True
            ):
                assert got.isfinite().all()
                if expected.abs().max() > 1e-6:
                    assert_near(key, got, expected, 4 * tolerance)
                else:
                    assert got.abs().max() < 0.05


def poison(patch):
    """New floating-point memory holds NaN, as far as Python sees it made."""

    def poisoned(make):
        def made(*args, **kwargs):
            out = make(*args, **kwargs)
            return out.fill_(float("nan")) if out.is_floating_point() else out

        return made

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        patch.setattr(owner, name, poisoned(getattr(owner, name)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("name", "side", "settings", "table"),
    [
        ("window_attention", 28, dict(num_heads=2, window_size=7), (169, 2)),
        ("window_attention", 28, dict(num_heads=2, window_size=7, shift=3), (169, 2)),
        ("window_attention", 16, dict(num_heads=2, window_size=4, overlap=2), (81, 2)),
        ("neighborhood_attention", 28, dict(num_heads=2, kernel_size=7), (2, 13, 13)),
        ("neighborhood_attention", 28, dict(num_heads=2, kernel_size=3, dilation=4), (2, 5, 5)),
    ],
)
@pytest.mark.parametrize("kept", [True, False])
def test_gradient_of_a_bias_table_is_rounded_once(name, side, settings, table, dtype, kept, monkeypatch):
    """Thousands of pairs of query and key add to one entry: in 16 bits each addition would be rounded."""
    if not kept:
        if name != "window_attention":
            pytest.skip("keeps nothing")
        monkeypatch.setattr(cpu, "KEPT_BYTES", 0)
    halved = [(0.5 * torch.randn(32, side, side, 8)).to(dtype) for _ in range(3)]
    bias = (0.5 * torch.randn(table)).to(dtype)
    # What a step along the values' own direction makes of it: the pairs' parts do not cancel each other.
    grad = (torch.randn(halved[2].shape) + halved[2].float()).to(dtype)

    def gradient(*tensors):
        *maps, bias = (x.clone().requires_grad_() for x in tensors)
        out = getattr(kernels, name)(*maps, bias_table=bias, **settings)
        return torch.autograd.grad(out, bias, grad.to(out.dtype))[0]

    want = gradient(*(x.double() for x in (*halved, bias)))
    # As under autocast: the table keeps float32, and its gradient all that the sum knows.
    got = gradient(*halved, bias.float())
    assert got.dtype == torch.float32
    unit = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-11
    assert_near("table in float32", got, want, unit / 8)
    got = gradient(*halved, bias)
    assert got.dtype == dtype
    assert_near("table in 16 bits", got, want, unit)


@pytest.mark.parametrize(("shift", "overlap"), [((0, 0), 0), ((3, 3), 0), ((0, 0), 4)])
def test_strips_are_as_large_as_the_device_bears(shift, overlap):
    """On the CPU what its cache holds; on a GPU all usual maps in one: here Swin-T's first stage, 64 images."""

    def parts(device):
        x = torch.empty(64, 56, 56, 96, device="meta")
        counted = torch.empty(0, device=device) if device == "cpu" else x
        rectangles = windows.parts_of(Shaped(x.shape, counted.device), (7, 7), shift, overlap)
        # A shift cuts the map into up to nine rectangles, whose windows are not of one size.
        return len(rectangles), 9 if shift != (0, 0) else 1

    count, least = parts("meta")
    assert count == least
    assert parts("cpu")[0] > least
    attention = torch.empty(64 * 64 * 3, 49, 49, device="meta")
    assert len(list(cpu._chunks(attention, 3))) == 1
    assert len(list(cpu._chunks(Shaped(attention.shape, torch.device("cpu")), 3))) > 50


class Shaped:
    """What cuts into strips ask of a tensor."""

    def __init__(self, shape, device):
        self.shape, self.device = shape, device
