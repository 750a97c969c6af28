"""Convolution at chosen pixels only: gather their neighbourhoods, scatter the results."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import check_indices, check_tensors, check_whole

__all__ = ["OPERATORS", "masked_col2im_forward", "masked_im2col_forward"]


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Gathers the neighbourhoods of N pixels.

    Args:
        im: `(1, C, H, W)` float.
        mask_h_idx: `(N,)` int64, rows of the output.
        mask_w_idx: `(N,)` int64, columns.
        col: `(C * kernel_h * kernel_w, N)`, overwritten; 0 outside the image.
        kernel_h: Rows of a neighbourhood; it starts `pad_h` above the pixel.
        kernel_w: Columns; it starts `pad_w` left of it.
        pad_h: Zero rows above and below the image.
        pad_w: Zero columns left and right of it.

    Raises:
        TypeError: If a tensor has another dtype.
        ValueError: If shapes do not fit, or a pixel lies outside the output.
    """
    name = "masked_im2col_forward"
    check_whole(name, 1, kernel_h=kernel_h, kernel_w=kernel_w)
    check_whole(name, 0, pad_h=pad_h, pad_w=pad_w)
    check_tensors(
        name,
        im=(im, "1 C H W"),
        mask_h_idx=(mask_h_idx, "N", torch.int64),
        mask_w_idx=(mask_w_idx, "N", torch.int64),
        col=(col, (im.shape[1] * kernel_h * kernel_w if im.dim() > 1 else 0, "N")),
    )
    # Enough on the far side that a mask as large as the image, with less padding, stays inside.
    padding = (pad_w, max(0, kernel_w - 1 - pad_w), pad_h, max(0, kernel_h - 1 - pad_h))
    rows, columns = (
        max(size + sum(pads) - kernel + 1, 0)
        for size, pads, kernel in ((im.shape[2], padding[2:], kernel_h), (im.shape[3], padding[:2], kernel_w))
    )
    check_indices(name, 0, rows, mask_h_idx=mask_h_idx)
    check_indices(name, 0, columns, mask_w_idx=mask_w_idx)
    if not mask_h_idx.numel():
        return
    windows = F.pad(im[0], padding).unfold(1, kernel_h, 1).unfold(2, kernel_w, 1)
    col.copy_(windows[:, mask_h_idx, mask_w_idx].permute(0, 2, 3, 1).reshape(col.shape))


def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int, channels: int
) -> None:
    """Writes `col` `(channels, N)` into `im` `(1, channels, height, width)` at the N given rows and columns.

    Raises:
        TypeError: If a tensor has another dtype.
        ValueError: If shapes do not fit, or a row or column lies outside `im`.
    """
    name = "masked_col2im_forward"
    check_whole(name, 0, height=height, width=width, channels=channels)
    check_tensors(
        name,
        col=(col, (channels, "N")),
        mask_h_idx=(mask_h_idx, "N", torch.int64),
        mask_w_idx=(mask_w_idx, "N", torch.int64),
        im=(im, (1, channels, height, width)),
    )
    check_indices(name, 0, height, mask_h_idx=mask_h_idx)
    check_indices(name, 0, width, mask_w_idx=mask_w_idx)
    im[0, :, mask_h_idx, mask_w_idx] = col


OPERATORS = (masked_im2col_forward, masked_col2im_forward)
