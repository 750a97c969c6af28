import operator_definitions
import pytest
import torch

from attnzoo.kernels import depthwise_conv, large_kernel_attention, pointwise_conv
from attnzoo.kernels.large_kernel_attention import naive


def operands(channels=3, height=7, width=5):
    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64)

    return (
        draw(2, channels, height, width),
        draw(channels, 1, 5, 5),
        draw(channels),
        draw(channels, 1, 7, 7),
        draw(channels),
        draw(channels, channels, 1, 1),
        draw(channels),
    )


@pytest.mark.parametrize(("height", "width", "dilation"), [(7, 5, 3), (1, 1, 3), (30, 2, 2)])
@pytest.mark.parametrize("function", [large_kernel_attention, naive.large_kernel_attention])
def test_equals_the_dense_definition(function, height, width, dilation):
    """Both, as the definition is PyTorch's own convolutions."""
    args = operands(height=height, width=width)
    want = operator_definitions.large_kernel_attention(*args, dilation=dilation)
    torch.testing.assert_close(function(*args, dilation=dilation), want, rtol=1e-10, atol=1e-10)


def test_gradients():
    args = [x.requires_grad_() for x in operands(2, 4, 3)]
    assert torch.autograd.gradcheck(large_kernel_attention, args)


def gradients(function, x, *parameters, **kwargs):
    leaves = [value.detach().clone(memory_format=torch.preserve_format).requires_grad_() for value in (x, *parameters)]
    out = function(*leaves, **kwargs)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
    return out, torch.autograd.grad((out * weights).sum(), leaves)


@pytest.mark.parametrize("size", [(13, 8), (4, 19), (2, 1)])
@pytest.mark.parametrize(
    ("kernel", "dilation"), [((3, 3), 1), ((5, 5), 1), ((7, 7), 3), ((1, 7), 1), ((21, 1), 1), ((5, 3), 2)]
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_depthwise_conv_and_every_gradient(size, kernel, dilation, memory_format):
    x = torch.randn(2, 6, *size, dtype=torch.float64).contiguous(memory_format=memory_format)
    weight, bias = torch.randn(6, 1, *kernel, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    got, got_gradients = gradients(depthwise_conv, x, weight, bias, dilation=dilation)
    want, want_gradients = gradients(naive.depthwise_conv, x, weight, bias, dilation=dilation)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert got.is_contiguous(memory_format=memory_format)
    for ours, theirs in zip(got_gradients, want_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    with torch.inference_mode():
        assert torch.equal(depthwise_conv(x, weight, bias, dilation), got)


@pytest.mark.parametrize("dilation", [1, 3])
def test_depthwise_conv_in_single_precision(dilation):
    """oneDNN's routines serve this dtype alone."""
    x = torch.randn(1, 16, 20, 23).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(16, 1, 7, 7), torch.randn(16)
    got, got_gradients = gradients(depthwise_conv, x, weight, bias, dilation=dilation)
    want, want_gradients = gradients(
        naive.depthwise_conv, x.double(), weight.double(), bias.double(), dilation=dilation
    )
    for ours, theirs in zip((got, *got_gradients), (want, *want_gradients), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


def test_depthwise_conv_gives_only_the_gradients_that_are_asked_for():
    x, weight = torch.randn(1, 2, 5, 5), torch.randn(2, 1, 5, 5, requires_grad=True)
    depthwise_conv(x, weight).sum().backward()
    assert weight.grad is not None and x.grad is None


def test_depthwise_conv_twice_differentiable():
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, w: depthwise_conv(x, w, None, 2), (x, weight))


def test_depthwise_conv_under_autocast():
    x, weight = torch.randn(1, 4, 9, 9), torch.randn(4, 1, 5, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = depthwise_conv(x, weight)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert weight.grad.dtype == torch.float32 and weight.grad.isfinite().all()


@pytest.mark.parametrize("transform", [torch.jit.script, lambda f: torch.compile(f, backend="eager", fullgraph=True)])
def test_transformed_operators_equal_the_eager_ones(transform):
    args = operands(channels=4)
    torch.testing.assert_close(transform(large_kernel_attention)(*args), large_kernel_attention(*args))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_pointwise_conv(memory_format):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64).contiguous(memory_format=memory_format)
    weight, bias = torch.randn(6, 3, 1, 1, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    torch.testing.assert_close(pointwise_conv(x, weight, bias), torch.nn.functional.conv2d(x, weight, bias))
    torch.testing.assert_close(pointwise_conv(x, weight), torch.nn.functional.conv2d(x, weight))
