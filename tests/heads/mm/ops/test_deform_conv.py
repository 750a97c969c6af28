"""Deformable convolutions against loops written from the definition."""

import math

import pytest
import torch
import torch.nn.functional as F
from mmcv import _ext as ext
from mmcv import ops as mmcv_ops
from seeded import randn


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
