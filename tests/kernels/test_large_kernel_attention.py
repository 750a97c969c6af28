import pytest
import torch

from attnzoo.kernels import large_kernel_attention


def depthwise(x, weight, bias, dilation=1):
    """Tap by tap over a zero-padded copy."""
    channels, _, size, _ = weight.shape
    reach = dilation * (size // 2)
    padded = torch.nn.functional.pad(x, (reach,) * 4)
    out = torch.zeros_like(x) + bias.view(1, channels, 1, 1)
    for i in range(size):
        for j in range(size):
            window = padded[:, :, i * dilation :, j * dilation :][:, :, : x.shape[2], : x.shape[3]]
            out = out + weight[:, 0, i, j].view(1, channels, 1, 1) * window
    return out


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
def test_equals_the_definition(height, width, dilation):
    x, w0, b0, w1, b1, w2, b2 = args = operands(height=height, width=width)
    gate = depthwise(depthwise(x, w0, b0), w1, b1, dilation)
    want = x * (torch.einsum("oi,bihw->bohw", w2[:, :, 0, 0], gate) + b2.view(1, -1, 1, 1))
    torch.testing.assert_close(large_kernel_attention(*args, dilation=dilation), want, rtol=1e-10, atol=1e-10)


def test_gradients():
    args = [x.requires_grad_() for x in operands(2, 4, 3)]
    assert torch.autograd.gradcheck(large_kernel_attention, args)
