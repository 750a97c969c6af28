"""PSANet's masks against loops written from the definition."""

import pytest
import torch
from mmcv import ops as mmcv_ops
from seeded import randn


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
