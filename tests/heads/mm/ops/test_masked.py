"""Masked convolution and the columns that it is made of."""

import torch
import torch.nn.functional as F
from mmcv import _ext as ext
from mmcv import ops as mmcv_ops
from seeded import randn


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
