"""Suppression against loops over boxes written from the definitions."""

import numpy as np
import pytest
import torch
from mmcv import _ext as ext
from mmcv import ops as mmcv_ops


def random_boxes(count: int, seed: int, integers: bool = False):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 30
    boxes = torch.cat((corner, corner + torch.rand(count, 2, generator=generator) * 20), 1)
    scores = torch.rand(count, generator=generator)
    return (boxes.round(), (scores * 8).round() / 8) if integers else (boxes, scores)


def overlap(a, b, offset):
    width = np.maximum(np.float32(0), min(a[2], b[2]) - max(a[0], b[0]) + np.float32(offset))
    height = np.maximum(np.float32(0), min(a[3], b[3]) - max(a[1], b[1]) + np.float32(offset))
    areas = [(box[2] - box[0] + np.float32(offset)) * (box[3] - box[1] + np.float32(offset)) for box in (a, b)]
    union = areas[0] + areas[1] - width * height
    return width * height / union if union > 0 else np.float32(0)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("integers", [False, True])
def test_nms(offset, integers):
    boxes, scores = random_boxes(60, seed=offset, integers=integers)
    for threshold in (0.1, 0.3, 0.7):
        kept = []
        for i in scores.argsort(descending=True, stable=True).tolist():
            if all(not overlap(boxes[j].numpy(), boxes[i].numpy(), offset) > np.float32(threshold) for j in kept):
                kept.append(i)
        dets, inds = mmcv_ops.nms(boxes, scores, threshold, offset=offset)
        assert inds.tolist() == kept
        assert torch.equal(dets, torch.cat((boxes[kept], scores[kept, None]), 1))


def test_nms_threshold_is_float32():
    # An overlap of exactly 7/10: float32(0.7) < 0.7, and mmcv compares with float32(0.7).
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 7, 1]])
    assert ext.nms(boxes, torch.tensor([0.9, 0.8]), 0.7, 0).tolist() == [0, 1]
    assert ext.nms(boxes, torch.tensor([0.9, 0.8]), 0.6999, 0).tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_nms_dtypes_and_none(dtype):
    boxes, scores = random_boxes(20, seed=3, integers=True)
    expected = ext.nms(boxes, scores, 0.4, 0)
    assert torch.equal(ext.nms(boxes.to(dtype), scores.to(dtype), 0.4, 0), expected)
    assert ext.nms(boxes[:0].to(dtype), scores[:0].to(dtype), 0.4, 0).shape == (0,)


def soft_nms_by_definition(boxes, scores, threshold, sigma, min_score, method, offset):
    rest = [[*box, score, i] for i, (box, score) in enumerate(zip(boxes.numpy(), scores.numpy(), strict=True))]
    kept = []
    while rest:
        # The first of the best, exchanged with the front; dropped boxes are replaced by the last one.
        best = max(range(len(rest)), key=lambda i: (rest[i][4], -i))
        rest[0], rest[best] = rest[best], rest[0]
        head = rest.pop(0)
        kept.append(head)
        position = 0
        while position < len(rest):
            ratio = overlap(head, rest[position], offset)
            if method == 2:
                # torch's own exponential: numpy's differs in the last bit, which decides between equal scores.
                factor = torch.tensor(-(ratio * ratio) / np.float32(sigma)).exp().numpy()
            else:
                factor = np.float32(1)
                if ratio >= np.float32(threshold):
                    factor = np.float32(0) if method == 0 else np.float32(1) - ratio
            rest[position][4] = np.float32(rest[position][4] * factor)
            if rest[position][4] < np.float32(min_score):
                rest[position] = rest[-1]
                rest.pop()
            else:
                position += 1
    return kept


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
@pytest.mark.parametrize("integers", [False, True])
def test_soft_nms(method, offset, integers):
    boxes, scores = random_boxes(40, seed=5, integers=integers)
    dets, inds = mmcv_ops.soft_nms(boxes, scores, 0.3, 0.5, 0.05, method, offset)
    number = {"naive": 0, "linear": 1, "gaussian": 2}[method]
    expected = soft_nms_by_definition(boxes, scores, 0.3, 0.5, 0.05, number, offset)
    assert inds.tolist() == [row[5] for row in expected]
    torch.testing.assert_close(dets, torch.tensor(np.array([row[:5] for row in expected], dtype=np.float32)))
    assert 0 < len(inds) < 40


def test_soft_nms_of_nothing():
    dets, inds = mmcv_ops.soft_nms(torch.zeros(0, 4), torch.zeros(0))
    assert dets.shape == (0, 5) and inds.shape == (0,)


def test_nms_match():
    boxes, scores = random_boxes(40, seed=7)
    order = scores.argsort(descending=True).tolist()
    groups, gone = [], set()
    for i in order:
        if i in gone:
            continue
        group = [i]
        for j in order[order.index(i) + 1 :]:
            if j not in gone and overlap(boxes[i].numpy(), boxes[j].numpy(), 0) >= np.float32(0.3):
                group.append(j)
                gone.add(j)
        groups.append(group)
    result = mmcv_ops.nms_match(torch.cat((boxes, scores[:, None]), 1), 0.3)
    assert [group.tolist() for group in result] == groups
    assert max(map(len, groups)) > 1
