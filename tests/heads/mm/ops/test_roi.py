"""Pooling of regions against loops over bins and samples written from the definitions."""

import math

import pytest
import torch
from mmcv import ops as mmcv_ops
from seeded import randn

ROIS = [
    [0, 1.2, 2.1, 9.7, 11.3],
    [1, -3.0, -2.5, 4.0, 6.0],
    [1, 8.0, 3.0, 30.0, 25.0],
    [0, 5.0, 5.0, 5.5, 5.25],
    [0, 40.0, 40.0, 60.0, 60.0],
]


def features(dtype=torch.float64):
    return randn(2, 2, 7, 9).to(dtype)


def bilinear(plane, y, x):
    height, width = plane.shape
    if y < -1 or y > height or x < -1 or x > width:
        return plane.new_zeros(())
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    upper = plane[top, left] * (1 - dx) + plane[top, right] * dx
    lower = plane[bottom, left] * (1 - dx) + plane[bottom, right] * dx
    return upper * (1 - dy) + lower * dy


def roi_align_by_definition(source, rois, size, scale, ratio, mode, aligned):
    output = source.new_zeros(len(rois), source.shape[1], *size)
    for r, (index, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (corner * scale - (0.5 if aligned else 0) for corner in corners)
        height, width = (y2 - y1, x2 - x1) if aligned else (max(y2 - y1, 1), max(x2 - x1, 1))
        step_y, step_x = height / size[0], width / size[1]
        grid_y, grid_x = (ratio, ratio) if ratio else (math.ceil(step_y), math.ceil(step_x))
        for c in range(source.shape[1]):
            for i in range(size[0]):
                for j in range(size[1]):
                    samples = torch.stack(
                        [
                            bilinear(
                                source[int(index), c],
                                y1 + (i + (a + 0.5) / grid_y) * step_y,
                                x1 + (j + (b + 0.5) / grid_x) * step_x,
                            )
                            for a in range(grid_y)
                            for b in range(grid_x)
                        ]
                    )
                    output[r, c, i, j] = samples.max() if mode == "max" else samples.mean()
    return output


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align(aligned, mode, ratio):
    source, rois = features().requires_grad_(), torch.tensor(ROIS, dtype=torch.float64)
    output = mmcv_ops.RoIAlign((3, 2), 0.5, ratio, mode, aligned)(source, rois)
    expected = roi_align_by_definition(source, rois, (3, 2), 0.5, ratio, mode, aligned)
    torch.testing.assert_close(output, expected)
    weight = torch.randn_like(output)
    (grad,) = torch.autograd.grad((output * weight).sum(), source)
    (expected_grad,) = torch.autograd.grad((expected * weight).sum(), source)
    torch.testing.assert_close(grad, expected_grad)
    # Few regions are enough here: gradcheck perturbs every input pixel.
    roi_align = mmcv_ops.roi_align
    assert torch.autograd.gradcheck(lambda x: roi_align(x, rois[:3], (2, 2), 0.5, ratio, mode, aligned), source)


def roi_pool_by_definition(source, rois, size, scale):
    output = source.new_zeros(len(rois), source.shape[1], *size)
    limits = source.shape[3], source.shape[2]
    for r, (index, x1, y1, x2, y2) in enumerate(rois.tolist()):
        start = x1 * scale, y1 * scale
        extent = (x2 + 1) * scale - start[0], (y2 + 1) * scale - start[1]
        if min(extent) <= 0:
            continue
        for i in range(size[0]):
            for j in range(size[1]):
                spans = []
                for axis, (place, bins) in enumerate(((j, size[1]), (i, size[0]))):
                    low = math.floor(place * (extent[axis] / bins) + start[axis])
                    high = math.ceil((place + 1) * (extent[axis] / bins) + start[axis])
                    spans.append(slice(min(max(low, 0), limits[axis]), min(max(high, 0), limits[axis])))
                window = source[int(index), :, spans[1], spans[0]].flatten(1)
                if window.shape[1]:
                    output[r, :, i, j] = window.amax(1)
    return output


def test_roi_pool():
    source = features().requires_grad_()
    rois = torch.tensor([*ROIS, [1, 9.0, 9.0, 3.0, 3.0]], dtype=torch.float64)
    output = mmcv_ops.RoIPool((3, 2), 0.3)(source, rois)
    torch.testing.assert_close(output, roi_pool_by_definition(source, rois, (3, 2), 0.3))
    assert not output[-1].any()
    assert torch.autograd.gradcheck(lambda x: mmcv_ops.roi_pool(x, rois, (2, 3), 0.3), source)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_other_dtypes(dtype):
    source, rois = features(dtype), torch.tensor(ROIS)
    for layer in (
        mmcv_ops.RoIAlign(2, 0.5, 0),
        mmcv_ops.RoIAlign(2, 0.5, 2, "max"),
        mmcv_ops.RoIPool(2, 0.5),
    ):
        exact = layer(source.double(), rois.double())
        leaf = source.clone().requires_grad_()
        output = layer(leaf, rois)
        output.sum().backward()
        tolerance = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(output.double(), exact, rtol=tolerance, atol=tolerance)
        assert leaf.grad.dtype == dtype and leaf.grad.isfinite().all()


@pytest.mark.parametrize("batch", [0, 2])
def test_no_regions(batch):
    source = torch.zeros(batch, 3, 5, 6, requires_grad=True)
    for layer in (mmcv_ops.RoIAlign(2), mmcv_ops.RoIAlign(2, pool_mode="max"), mmcv_ops.RoIPool(2)):
        output = layer(source, torch.zeros(0, 5))
        assert output.shape == (0, 3, 2, 2)
        output.sum().backward()
        assert not source.grad.any()
