"""CARAFE against loops written from the definition."""

import pytest
import torch
from mmcv import _ext as ext
from mmcv import ops as mmcv_ops
from seeded import randn


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
