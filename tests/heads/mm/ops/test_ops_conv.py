"""Convolution-like operators and focal losses against loops written from the definitions."""

import math

import pytest
import torch
import torch.nn.functional as F

from attnzoo.heads.mm import ops

ops.install()

from mmcv import _ext as ext  # noqa: E402
from mmcv import ops as mmcv_ops  # noqa: E402


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def deform_conv_by_definition(source, offset, mask, weight, stride, padding, dilation, groups, deform_groups):
    batch, channels, height, width = source.shape
    out_channels, group_channels, kernel_h, kernel_w = weight.shape
    out_h = (height + 2 * padding - dilation * (kernel_h - 1) - 1) // stride + 1
    out_w = (width + 2 * padding - dilation * (kernel_w - 1) - 1) // stride + 1
    output = source.new_zeros(batch, out_channels, out_h, out_w)
    for b in range(batch):
        for o in range(out_channels):
            for y in range(out_h):
                for x in range(out_w):
                    for k in range(group_channels):
                        c = o // (out_channels // groups) * group_channels + k
                        for tap in range(kernel_h * kernel_w):
                            n = c // (channels // deform_groups) * kernel_h * kernel_w + tap
                            i, j = divmod(tap, kernel_w)
                            place_y = y * stride - padding + i * dilation + float(offset[b, 2 * n, y, x])
                            place_x = x * stride - padding + j * dilation + float(offset[b, 2 * n + 1, y, x])
                            for row in (math.floor(place_y), math.floor(place_y) + 1):
                                for column in (math.floor(place_x), math.floor(place_x) + 1):
                                    if 0 <= row < height and 0 <= column < width:
                                        share = (1 - abs(place_y - row)) * (1 - abs(place_x - column))
                                        factor = share * float(mask[b, n, y, x])
                                        output[b, o, y, x] += weight[o, k, i, j] * source[b, c, row, column] * factor
    return output


GEOMETRIES = [(1, 1, 1, 1, 1), (2, 1, 1, 2, 1), (1, 2, 2, 1, 2)]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_deform_conv(geometry):
    stride, padding, _, groups, deform_groups = geometry
    source, weight = randn(2, 2, 3, 4), randn(2, 2 // groups, 3, 3, seed=1)
    size = F.conv2d(source, weight, None, stride, padding, geometry[2], groups).shape[2:]
    offset = randn(2, 18 * deform_groups, *size, seed=2)
    output = mmcv_ops.deform_conv2d(source, offset, weight, *geometry)
    ones = torch.ones(2, 9 * deform_groups, *size)
    torch.testing.assert_close(output, deform_conv_by_definition(source, offset, ones, weight, *geometry))
    leaves = [tensor.requires_grad_() for tensor in (source, offset, weight)]
    assert torch.autograd.gradcheck(lambda *tensors: mmcv_ops.deform_conv2d(*tensors, *geometry), leaves)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_modulated_deform_conv(geometry, bias):
    stride, padding, _, groups, deform_groups = geometry
    source, weight = randn(2, 2, 3, 4), randn(2, 2 // groups, 3, 3, seed=1)
    size = F.conv2d(source, weight, None, stride, padding, geometry[2], groups).shape[2:]
    offset = randn(2, 18 * deform_groups, *size, seed=2)
    mask = randn(2, 9 * deform_groups, *size, seed=3).sigmoid()
    shift = randn(2, seed=4) if bias else None
    output = mmcv_ops.modulated_deform_conv2d(source, offset, mask, weight, shift, *geometry)
    expected = deform_conv_by_definition(source, offset, mask, weight, *geometry)
    torch.testing.assert_close(output, expected + shift[:, None, None] if bias else expected)
    leaves = [tensor.requires_grad_() for tensor in (source, offset, mask, weight, *([shift] if bias else []))]

    def function(source, offset, mask, weight, shift=None):
        return mmcv_ops.modulated_deform_conv2d(source, offset, mask, weight, shift, *geometry)

    assert torch.autograd.gradcheck(function, leaves)


def test_deform_conv_backward_adds():
    source, weight, offset = randn(1, 2, 4, 4), randn(3, 2, 3, 3, seed=1), randn(1, 18, 4, 4, seed=2)
    grad_output = randn(1, 3, 4, 4, seed=3)
    sizes = dict(kW=3, kH=3, dW=1, dH=1, padW=1, padH=1, dilationW=1, dilationH=1)
    sizes |= dict(group=1, deformable_group=1, im2col_step=1)
    leaf = weight.clone().requires_grad_()
    mmcv_ops.deform_conv2d(source, offset, leaf, 1, 1).backward(grad_output)
    grad_weight, nothing = torch.ones_like(weight), source.new_empty(0)
    ext.deform_conv_backward_parameters(source, offset, grad_output, grad_weight, nothing, nothing, scale=0.5, **sizes)
    torch.testing.assert_close(grad_weight, 1 + 0.5 * leaf.grad)


def test_zero_offsets_have_mmcvs_gradient_on_the_border():
    # A 1x1 map, 3x3 kernel: every outer tap lies at -1 or 1 exactly, where mmcv's derivative by the offset is 0.
    source, weight = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 3, 3)
    offset = torch.zeros(1, 18, 1, 1, requires_grad=True)
    mmcv_ops.deform_conv2d(source, offset, weight, 1, 1).sum().backward()
    # Only the centre moves: to the right and down its sample fades.
    assert offset.grad.flatten().nonzero().flatten().tolist() == [8, 9]
    assert offset.grad[0, 8:10].flatten().tolist() == [-1, -1]


def test_larger_offset_maps_are_read_as_a_prefix_of_memory():
    source, weight, bias = randn(2, 2, 3, 4), randn(2, 2, 3, 3, seed=1), randn(2, seed=5)
    offset, mask = randn(2, 18, 6, 8, seed=2).requires_grad_(), randn(2, 9, 6, 8, seed=3).requires_grad_()

    def prefix(tensor):
        return tensor.flatten(1)[:, : tensor.shape[1] * 12].view(2, tensor.shape[1], 3, 4)

    conv = mmcv_ops.modulated_deform_conv2d
    output = conv(source, offset, mask, weight, bias, 1, 1)
    expected = conv(source, prefix(offset), prefix(mask), weight, bias, 1, 1)
    torch.testing.assert_close(output, expected)
    direction = randn(*output.shape, seed=6)
    got, want = (torch.autograd.grad(result, (offset, mask), direction) for result in (output, expected))
    torch.testing.assert_close(got, want)
    with pytest.raises(ValueError, match=r"offset has size \(2, 2\), smaller than the output, \(3, 4\)"):
        conv(source, offset[..., :2, :2], mask, weight, bias, 1, 1)


@pytest.mark.parametrize("batch", [1, 2])
def test_offsets_and_mask_may_be_slices_of_one_map(batch):
    source, weight, bias = randn(batch, 2, 3, 4), randn(2, 2, 3, 3, seed=1), randn(2, seed=5)
    both, direction = randn(batch, 27, 3, 4, seed=2).requires_grad_(), randn(batch, 2, 3, 4, seed=6)
    grads = []
    for parts in ((both[:, :18], both[:, 18:]), (both[:, :18].clone(), both[:, 18:].clone())):
        output = mmcv_ops.modulated_deform_conv2d(source, *parts, weight, bias, 1, 1)
        grads.append(torch.autograd.grad(output, both, direction)[0])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_deform_conv_16_bit(dtype):
    tensors = [randn(2, 2, 4, 4), randn(2, 18, 4, 4), randn(2, 9, 4, 4), randn(3, 2, 3, 3), randn(3)]
    tensors = [tensor.to(dtype) for tensor in tensors]
    exact = mmcv_ops.modulated_deform_conv2d(*(tensor.double() for tensor in tensors), 1, 1)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    output = mmcv_ops.modulated_deform_conv2d(*leaves, 1, 1)
    output.sum().backward()
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(output.double(), exact.double(), rtol=tolerance, atol=tolerance)
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


def sigmoid_focal_by_definition(logits, target, weight, gamma, alpha):
    rows = []
    for row, label in zip(logits, target.tolist(), strict=True):
        for c, logit in enumerate(row):
            p = 1 / (1 + torch.exp(-logit))
            loss = -alpha * (1 - p) ** gamma * p.log() if c == label else -(1 - alpha) * p**gamma * (1 - p).log()
            rows.append(loss * (weight[label] if weight is not None and label < len(weight) else 1))
    return torch.stack(rows).view_as(logits)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("weighted", [True, False])
def test_sigmoid_focal_loss(gamma, weighted):
    logits, target = randn(5, 3), torch.tensor([0, 2, 3, 1, 3])
    weight = torch.tensor([0.5, 1.5, 2.0], dtype=torch.float64) if weighted else None
    output = mmcv_ops.sigmoid_focal_loss(logits, target, gamma, 0.25, weight, "none")
    torch.testing.assert_close(output, sigmoid_focal_by_definition(logits, target, weight, gamma, 0.25))
    logits.requires_grad_()
    for reduction in ("mean", "sum"):
        assert torch.autograd.gradcheck(
            lambda x, reduction=reduction: mmcv_ops.sigmoid_focal_loss(x, target, gamma, 0.25, weight, reduction),
            logits,
        )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("weighted", [True, False])
def test_softmax_focal_loss(gamma, weighted):
    logits, target = randn(5, 3), torch.tensor([0, 2, -1, 1, 2])
    weight = torch.tensor([0.5, 1.5, 2.0], dtype=torch.float64) if weighted else None
    expected = torch.zeros(5, dtype=torch.float64)
    for n, label in enumerate(target.tolist()):
        p = logits[n].exp()[label] / logits[n].exp().sum()
        if label >= 0:
            expected[n] = -0.25 * (1 - p) ** gamma * p.log() * (1 if weight is None else weight[label])
    loss = mmcv_ops.softmax_focal_loss
    torch.testing.assert_close(loss(logits, target, gamma, 0.25, weight, "none"), expected)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, target, gamma, 0.25, weight, "sum"), logits)


def test_focal_losses_stay_finite_at_the_ends():
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    for loss in (mmcv_ops.sigmoid_focal_loss, mmcv_ops.softmax_focal_loss):
        value = loss(logits, torch.tensor([0, 0]), 0.5, 0.25, None, "sum")
        (grad,) = torch.autograd.grad(value, logits)
        assert value.isfinite() and grad.isfinite().all() and grad[1, 0] < 0


def test_masked_conv():
    for padding in (0, 1, 2):
        layer = mmcv_ops.MaskedConv2d(3, 4, 3, padding=padding).double()
        source = randn(1, 3, 6, 7)
        dense = F.conv2d(source, layer.weight, layer.bias, padding=padding)
        mask = torch.zeros(1, 6, 7)
        mask[0, 1, 2] = mask[0, 3, 4] = mask[0, 0, 0] = 1
        keep = F.pad(mask, (0, max(0, dense.shape[3] - 7), 0, max(0, dense.shape[2] - 6)))
        keep = keep[:, : dense.shape[2], : dense.shape[3]]
        torch.testing.assert_close(layer(source, mask), dense * keep)


def test_masked_im2col_is_zero_outside():
    # A mask as large as the map with no padding: the last windows overhang it.
    source, columns = torch.ones(1, 1, 2, 2), torch.full((9, 1), -1.0)
    ext.masked_im2col_forward(source, torch.tensor([1]), torch.tensor([1]), columns, 3, 3, 0, 0)
    assert columns.flatten().tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_carafe(scale, groups):
    source, masks = randn(2, 4, 3, 2), randn(2, groups * 9, 3 * scale, 2 * scale, seed=1)
    expected = torch.zeros(2, 4, 3 * scale, 2 * scale, dtype=torch.float64)
    for b in range(2):
        for c in range(4):
            for y in range(3 * scale):
                for x in range(2 * scale):
                    for k in range(9):
                        row, column = y // scale + k // 3 - 1, x // scale + k % 3 - 1
                        if 0 <= row < 3 and 0 <= column < 2:
                            factor = masks[b, c // (4 // groups) * 9 + k, y, x]
                            expected[b, c, y, x] += source[b, c, row, column] * factor
    for function in (mmcv_ops.carafe, mmcv_ops.carafe_naive):
        torch.testing.assert_close(function(source, masks, 3, groups, scale), expected)
    leaves = source.requires_grad_(), masks.requires_grad_()
    output = mmcv_ops.carafe(*leaves, 3, groups, scale)
    assert torch.autograd.gradcheck(lambda *tensors: mmcv_ops.carafe(*tensors, 3, groups, scale), leaves)
    # mmcv's own naive Function refuses to go backward off CUDA.
    direction = randn(*output.shape, seed=2)
    grads = [torch.zeros_like(leaf) for leaf in leaves]
    with torch.no_grad():
        ext.carafe_naive_backward(direction, *leaves, *grads, kernel_size=3, group_size=groups, scale_factor=scale)
    torch.testing.assert_close(grads, list(torch.autograd.grad(output, leaves, direction)))


@pytest.mark.parametrize("kind", ["collect", "distribute"])
@pytest.mark.parametrize("mask_size", [(3, 5), (9, 7), (1, 1), (7, 3)], ids=str)
def test_psa_mask(kind, mask_size):
    height, width = 4, 3
    source = randn(2, mask_size[0] * mask_size[1], height, width).requires_grad_()
    expected = torch.zeros(2, height * width, height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            for row in range(height):
                for column in range(width):
                    i, j = row - y + (mask_size[0] - 1) // 2, column - x + (mask_size[1] - 1) // 2
                    if 0 <= i < mask_size[0] and 0 <= j < mask_size[1]:
                        value = source[:, i * mask_size[1] + j, y, x].detach()
                        if kind == "collect":
                            expected[:, row * width + column, y, x] = value
                        else:
                            expected[:, y * width + x, row, column] = value
    layer = mmcv_ops.PSAMask(kind, mask_size)
    torch.testing.assert_close(layer(source), expected)
    assert torch.autograd.gradcheck(layer, source)
