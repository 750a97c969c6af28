"""The least work of every operator, against counts by hand."""

import torch

from attnzoo.tools.measuring.operators import (
    deformable_attention,
    large_kernel_attention,
    neighborhood_attention,
    routing_attention,
    window_attention,
)
from attnzoo.tools.measuring.roofline import Work


def test_routing():
    """By hand: 2 images of 4 x 6 pixels, 8 channels; 6 regions of 4 pixels; each chooses 3, so 12 keys a query."""
    shape, regions, topk = (2, 4, 6, 8), (2, 3), 3
    # q and k in bfloat16, 36 indices out; a sum of 2 * 384 elements, 36 products of 8 channels an image.
    assert routing_attention.routing(shape, regions, topk, torch.bfloat16) == Work(
        2 * 384 * 2 + 36 * 4, 2 * 384 + 2 * 2 * 36 * 8
    )
    # q, k, v, out; log-sum-exp of 2 heads; 48 queries by 12 keys by 8 channels, twice.
    attention = Work(4 * 384 * 2 + 96 * 4 + 36 * 4, 2 * 2 * 48 * 12 * 8)
    routing = routing_attention.routing(shape, regions, topk, torch.bfloat16)
    assert routing_attention.forward(shape, 2, regions, topk, torch.bfloat16) == routing + attention
    # 36 entries in and out, 12 numbers.
    assert routing_attention.inverted_index(2, regions, topk) == Work((36 + 36 + 12) * 4, 0)
    backward = Work(8 * 384 * 2 + 96 * 4 + 36 * 4, 5 * 2 * 48 * 12 * 8)
    assert (
        routing_attention.backward(shape, 2, regions, topk, torch.bfloat16)
        == routing_attention.inverted_index(2, regions, topk) + backward
    )


def test_windows():
    """8 x 12 pixels in windows of 4: shifted by 1, the rows of a window that wraps fall into 1 and 3."""
    rows, cols = 1 * 16 + 1 + 9, 2 * 16 + 4 + 4
    pixels, table = 3 * 8 * 12, 2 * 7 * 7
    assert window_attention.forward((3, 8, 12, 32), 2, (4, 4), (1, 2), 0, True, torch.bfloat16) == Work(
        bytes=4 * pixels * 32 * 2 + table * 2 + pixels * 2 * 4, flops=3 * rows * cols * 32 * 2 * 2
    )
    # With an overlap of 2, a window sees 5, 6 or 5 columns; beyond the border there is nothing to compute.
    rows, cols = 4 * 5 + 4 * 5, 4 * 5 + 4 * 6 + 4 * 5
    table = 2 * 9 * 9
    assert window_attention.backward((3, 8, 12, 32), 2, (4, 4), (0, 0), 2, True, torch.float32) == Work(
        bytes=8 * pixels * 32 * 4 + 2 * table * 4 + pixels * 2 * 4, flops=3 * rows * cols * 32 * 2 * 5
    )


def test_windows_of_swin():
    assert window_attention.forward((1, 56, 56, 96), 3, (7, 7), (0, 0), 0, False, torch.float32) == Work(
        bytes=4 * 56 * 56 * 96 * 4 + 56 * 56 * 3 * 4, flops=2 * 2 * 56 * 56 * 49 * 96
    )


def test_neighborhoods():
    """8 x 9 pixels at dilation 2: classes of 4 and 4 rows, of 5 and 4 columns; a window of 5 sees 4, and 5 or 4."""
    rows = 4 * 4 + 4 * 4
    cols = 5 * 5 + 4 * 4
    pixels = 3 * 8 * 9
    table = 2 * 9 * 9
    assert neighborhood_attention.forward((3, 8, 9, 32), 2, 5, 2, torch.bfloat16) == Work(
        bytes=4 * pixels * 32 * 2 + table * 2 + pixels * 2 * 4, flops=3 * rows * cols * 32 * 2 * 2
    )
    assert neighborhood_attention.backward((3, 8, 9, 32), 2, 5, 2, torch.float32) == Work(
        bytes=8 * pixels * 32 * 4 + 2 * table * 4 + pixels * 2 * 4, flops=3 * rows * cols * 32 * 2 * 5
    )


def test_neighborhoods_in_a_map_larger_than_the_window():
    assert neighborhood_attention.forward((1, 56, 56, 64), 2, 7, 1, torch.float32).flops == 2 * 2 * 56 * 56 * 49 * 64


def test_deformable():
    """Two images, 10 positions, 3 queries, 2 heads of 4 channels, 2 levels of 5 points."""
    samples, value, out = 2 * 3 * 2 * 10, 2 * 10 * 2 * 4, 2 * 3 * 2 * 4
    forward = deformable_attention.forward(2, 10, 3, 2, 4, 2, 5, torch.float16)
    # Value and result in 16 bits; two coordinates and a weight a sample in 32.
    assert forward.bytes == 2 * (value + out) + 4 * 3 * samples
    # Four corners, a multiply-add a channel each.
    assert forward.flops == samples * 4 * 4 * 2
    backward = deformable_attention.backward(2, 10, 3, 2, 4, 2, 5, torch.float16)
    assert backward.bytes == 2 * (2 * value + out) + 4 * 6 * samples
    assert backward.flops == 2 * forward.flops
    spread = deformable_attention.forward(2, 10, 3, 2, 4, 2, 5, torch.float16, bins=6, groups=1)
    assert spread.bytes == forward.bytes + 2 * 2 * 10 * 6 + 4 * samples
    assert spread.flops == forward.flops + samples * 4 * 2 * 2


def test_large_kernels():
    """Maps of 2 x 3 x 4 x 5 = 120 numbers."""
    shape = (2, 3, 4, 5)
    found = large_kernel_attention.depthwise_forward(shape, (5, 5), torch.float32)
    assert (found.bytes, found.flops) == (4 * (240 + 3 * 26), 120 * 50)
    found = large_kernel_attention.depthwise_backward(shape, (5, 5), torch.float32)
    assert (found.bytes, found.flops) == (4 * (360 + 3 * 51), 120 * 100)
    # A pixel takes 3 x 3 multiply-adds.
    found = large_kernel_attention.gated_forward(shape, torch.float16)
    assert (found.bytes, found.flops) == (2 * (360 + 9 + 3), 40 * 9 * 2)
    found = large_kernel_attention.gated_backward(shape, torch.float16)
    assert (found.bytes, found.flops) == (2 * (600 + 18 + 3), 40 * 27 * 2)
    assert large_kernel_attention.forward(shape, torch.float16).flops == 120 * (50 + 98) + 40 * 18
    assert large_kernel_attention.backward(shape, torch.float16).flops == 120 * (100 + 196) + 40 * 54
