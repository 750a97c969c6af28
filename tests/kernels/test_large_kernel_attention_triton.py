"""Triton's depth-wise and gated point-wise convolution against their definitions."""

import copy
import importlib
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_helpers import DEVICE, assert_near
from torch import nn

from attnzoo import kernels
from attnzoo.kernels import depthwise_conv, large_kernel_attention
from attnzoo.kernels.large_kernel_attention import naive, operator


def draw(*shapes, dtype=torch.float32):
    return [torch.randn(*shape).to(DEVICE, dtype) for shape in shapes]


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def compare(name, tensors, tolerance=1e-5, **settings):
    """Result and every gradient of an operator by Triton against those of its definition in float64."""
    results = []
    for function, dtype in (
        (partial(getattr(kernels, name), backend="triton"), None),
        (getattr(naive, name), torch.float64),
    ):
        leaves = [None if x is None else x.detach().to(dtype or x.dtype).requires_grad_() for x in tensors]
        out = function(*leaves, **settings)
        shares = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=out.device).sin().view(out.shape)
        learning = [x for x in leaves if x is not None]
        results.append((out, *torch.autograd.grad(out, learning, shares.to(out.dtype))))
    for i, (got, want) in enumerate(zip(*results, strict=True)):
        assert got.dtype == tensors[0].dtype
        assert_near("out" if i == 0 else f"gradient {i - 1}", got, want, tolerance)
    return results[0][0]


@pytest.mark.parametrize(
    ("kernel", "dilation", "size"),
    [
        ((3, 3), 1, (5, 9)),
        ((7, 7), 3, (4, 10)),
        ((1, 11), 1, (3, 13)),
        ((11, 1), 2, (10, 3)),
        pytest.param((31, 31), 1, (5, 3), marks=pytest.mark.slow),
    ],
)
def test_depthwise_and_every_gradient(kernel, dilation, size, poisoned):
    x, weight, bias = draw((2, 3, *size), (3, 1, *kernel), (3,))
    out = compare("depthwise_conv", [channels_last(x), weight, bias], dilation=dilation)
    assert out.is_contiguous(memory_format=torch.channels_last)


def retiled(monkeypatch, options, **changes):
    """Launches by other constants than those that a function of `triton.py` chooses."""
    module = importlib.import_module("attnzoo.kernels.large_kernel_attention.triton")
    own = getattr(module, options)
    monkeypatch.setattr(module, options, lambda *given: {**own(*given), **changes})


@pytest.mark.parametrize(
    ("kernel", "dilation", "size", "taps", "run"),
    [
        # Runs of which the last is not full; of the seven rows of taps three see a pixel.
        ((7, 3), 2, (3, 8), 3, 3),
        # Along the height; two groups of taps, of the gradient's the second is not full.
        ((9, 1), 1, (7, 2), 3, 2),
    ],
)
def test_runs_of_pixels_and_groups_of_taps(kernel, dilation, size, taps, run, poisoned, monkeypatch):
    """17 channels, tiles of 16; several blocks of runs, strips of several of them, of several lines and of parts."""
    retiled(monkeypatch, "_depthwise_options", TAPS=taps, RUN=run, BLOCK_R=4, BLOCK_C=16, strip=2)
    retiled(monkeypatch, "_taps_options", TAPS=5, RUN=run, BLOCK_R=4, BLOCK_C=16, strip=2, parts=2)
    x, weight, bias = draw((2, 17, *size), (17, 1, *kernel), (17,))
    compare("depthwise_conv", [channels_last(x), weight, bias], dilation=dilation)


def test_an_infinite_pixel_spoils_no_tap_that_does_not_see_it(monkeypatch):
    """Runs of three pixels end beside the map; what they would have there counts nowhere."""
    retiled(monkeypatch, "_taps_options", TAPS=5, RUN=3, BLOCK_R=4, BLOCK_C=16)
    x, weight = draw((1, 1, 2, 7), (1, 1, 1, 5))
    x[..., 6] = float("inf")
    out = depthwise_conv(x, weight.requires_grad_(), backend="triton")
    (grad,) = torch.autograd.grad(out, weight, torch.ones_like(out))
    assert grad.isfinite().flatten().tolist() == [True, True, False, False, False]


def sizes():
    """Batch, side and channels of maps, and kernels with their dilation: of VAN, of MSCAN, and odd ones."""
    for batch in (1, 8, 64):
        for side, channels in ((56, 64), (14, 320), (7, 512), (50, 3), (33, 96), (1, 1)):
            for kernel, dilation in (((5, 5), 1), ((7, 7), 3), ((1, 21), 1), ((21, 1), 1), ((31, 31), 1), ((3, 13), 2)):
                yield (batch, channels, side, side + 1), kernel, dilation


@pytest.mark.parametrize("itemsize", [2, 4])
def test_tiles(itemsize):
    """A thread has 16 bytes of each pixel, 8 where a row has many taps; runs cover a line, strips fill the card."""
    module = importlib.import_module("attnzoo.kernels.large_kernel_attention.triton")
    for shape, kernel, dilation in sizes():
        walk = module._walk(shape, kernel, dilation)
        for choose in (module._depthwise_options, module._taps_options):
            options = choose(walk, itemsize, 132)
            width = 16 if options["TAPS"] <= 13 else 8
            assert options["BLOCK_R"] * options["BLOCK_C"] * itemsize == options["num_warps"] * 32 * width
            covered = options["RUN"] * module._runs(walk.columns, options["RUN"], dilation)
            assert walk.columns <= covered <= max(walk.columns + dilation * 2, 1.25 * walk.columns)
            if choose is module._depthwise_options:
                assert walk.cols % options["TAPS"] == 0
            else:
                blocks, others = module._blocks(walk, options)
                strips = -(-blocks // options["strip"]) * options["parts"]
                programs = strips * others * walk.rows * -(-walk.cols // options["TAPS"])
                # The memory of the sums.
                assert strips == 1 or programs <= 16 * 132


@settings(max_examples=3, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    kernel=st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 9])),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    dilation=st.integers(1, 3),
    channels=st.integers(1, 5),
    batch=st.integers(1, 2),
)
def test_any_shape(kernel, size, dilation, channels, batch):
    compare("depthwise_conv", draw((batch, channels, *size), (channels, 1, *kernel)), dilation=dilation)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    x, weight, bias, matrix, shift = draw((1, 4, 3, 6), (4, 1, 3, 3), (4,), (4, 4, 1, 1), (4,), dtype=dtype)
    compare("depthwise_conv", [x, weight, bias], 4 * torch.finfo(dtype).eps)
    compare("pointwise_conv", [x, matrix, shift, x.flip(2)], 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(("inputs", "biased"), [(35, True), (32, False)])
def test_gated_pointwise_and_every_gradient(inputs, biased, poisoned):
    """Several blocks of pixels and of channels, none of which is full, or the last step of a product is."""
    x, weight, bias, gate = draw((2, inputs, 5, 7), (66, inputs, 1, 1), (66,), (2, 66, 5, 7))
    out = compare("pointwise_conv", [x, weight, bias if biased else None, gate])
    assert out.is_contiguous(memory_format=torch.channels_last)


def attention_operands(channels=3, size=(2, 4), batch=1):
    return draw(
        (batch, channels, *size),
        (channels, 1, 3, 3),
        (channels,),
        (channels, 1, 3, 3),
        (channels,),
        (channels, channels, 1, 1),
        (channels,),
    )


def test_attention_and_every_gradient(poisoned):
    compare("large_kernel_attention", attention_operands(size=(4, 5)))


def test_equal_in_every_run():
    operands = [x.requires_grad_() for x in attention_operands()]
    results = []
    for _ in range(2):
        out = large_kernel_attention(*operands, backend="triton")
        results.append((out, *torch.autograd.grad(out.sum(), operands)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("empty", [(0, 3, 4, 4), (2, 3, 0, 4)], ids=str)
def test_empty(empty):
    x, weight = (x.requires_grad_() for x in draw(empty, (3, 1, 3, 3)))
    out = depthwise_conv(x, weight, backend="triton")
    out.sum().backward()
    assert out.shape == empty and x.grad.shape == empty and not weight.grad.any()


def test_autocast():
    """As PyTorch's: convolutions in 16 bits, their product with the gate in the gate's dtype, gradients in float32."""
    operands = [x.requires_grad_() for x in attention_operands()]
    with torch.autocast(DEVICE, torch.bfloat16):
        out = large_kernel_attention(*operands, backend="triton")
        want = naive.large_kernel_attention(*operands)
    assert out.dtype == want.dtype == torch.float32
    assert_near("out", out, want, 0.05)
    got, wanted = (torch.autograd.grad(result, operands, torch.ones_like(out)) for result in (out, want))
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.dtype == torch.float32
        assert_near("gradient", ours, theirs, 0.05)


def test_meta_tensors():
    operands = [x.to("meta") for x in attention_operands()]
    assert large_kernel_attention(*operands).shape == operands[0].shape
    with pytest.raises(RuntimeError, match="tensors are on meta"):
        large_kernel_attention(*operands, backend="triton")


def test_can_run():
    x, weight = draw((1, 2, 4, 4), (2, 1, 3, 3))
    assert kernels.can_run("depthwise_conv", x, weight)
    assert kernels.can_run("large_kernel_attention", *attention_operands())
    assert not kernels.can_run("large_kernel_attention", *(x.double() for x in attention_operands()))
    with pytest.raises(RuntimeError, match="33 x 3 taps, it needs sides of 31 at most"):
        kernels.can_run("depthwise_conv", x, torch.zeros(2, 1, 33, 3), raise_error=True)
    with pytest.raises(RuntimeError, match="there is no gate"):
        kernels.can_run("pointwise_conv", x, torch.zeros(2, 2, 1, 1), raise_error=True)
    with pytest.raises(RuntimeError, match=r"weight must be torch\.float32 as x is, got torch\.float16"):
        kernels.can_run("depthwise_conv", x, weight.half(), raise_error=True)
    with pytest.raises(ValueError, match=r"weight must be torch\.float32 as x is, got torch\.float16"):
        depthwise_conv(x, weight.half(), backend="triton")
    with pytest.raises(ValueError, match="backend must be one of"):
        depthwise_conv(x, weight, backend="cudnn")


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.backend = "triton"
        self.parameters_of = nn.ParameterList(attention_operands()[1:])

    def forward(self, x):
        # By index: PyTorch 2.9 does not compile what spreads out a ParameterList.
        operands = [self.parameters_of[i] for i in range(len(self.parameters_of))]
        return large_kernel_attention(x, *operands, backend=self.backend)


@pytest.mark.long
def test_compiles_to_one_graph_for_every_batch():
    torch._dynamo.reset()
    gate = Gate().to(DEVICE)
    plain = copy.deepcopy(gate)
    plain.backend = "torch"
    compiled = torch.compile(gate, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (2, 3):
            x = draw((batch, 3, 2, 4))[0].requires_grad_()
            torch._dynamo.mark_dynamic(x, 0)
            for function, results in ((compiled, got := []), (plain, want := [])):
                out = function(x)
                results += [out, *torch.autograd.grad(out.square().sum(), [x, *function.parameters()])]
            for a, b in zip(got, want, strict=True):
                assert_near("compiled", a, b, 1e-5)


def test_exports_plain_pytorch():
    gate, x = Gate().to(DEVICE), draw((2, 3, 5, 4))[0]
    program = torch.export.export(gate, (x,))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert names and all(name.startswith("aten.") for name in names)
    assert_near("out", program.module()(x), gate(x), 1e-5)


def test_operators_are_registered_well():
    x, weight, bias, matrix = (x.requires_grad_() for x in draw((1, 3, 2, 4), (3, 1, 3, 3), (3,), (3, 3, 1, 1)))
    torch.library.opcheck(torch.ops.attnzoo.depthwise_conv.default, (channels_last(x), weight, bias, 1))
    torch.library.opcheck(torch.ops.attnzoo.gated_pointwise_conv.default, (x, matrix, None, x.flip(3)))
    assert operator.MAX_KERNEL == 31
