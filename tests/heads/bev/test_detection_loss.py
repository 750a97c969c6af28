"""Matching and losses of detections."""

import bev_goldens
import golden_files
import torch
from mmengine.structures import InstanceData
from torch import Tensor

import attnzoo.heads  # noqa: F401  installs mmcv's operators
from attnzoo.heads.bev import detection_loss
from attnzoo.heads.bev.coder import encode_boxes
from attnzoo.heads.bev.detection_loss import DetectionLoss

GOLDEN = golden_files.load("bevformer_loss")
KWARGS = GOLDEN["kwargs"]


def golden_inputs() -> tuple[Tensor, Tensor, list[InstanceData]]:
    """Predictions and boxes by the rule in the notes of the golden file."""
    shape = GOLDEN["input"]["shape"]
    logits = 2 * golden_files.noise(**GOLDEN["input"]) - 2
    codes = torch.stack([bev_goldens.box_codes(shape[1], 100 + b) for b in range(shape[0])])
    targets = []
    for b, count in enumerate(KWARGS["gts"]):
        boxes = golden_files.noise((count, 9), 200 + b)
        boxes[:, :2] *= 30
        boxes[:, 2] -= 1
        boxes[:, 3:6] = (0.5 * boxes[:, 3:6] + 0.6).exp()
        boxes[:, 6] *= 2
        targets.append(InstanceData(bboxes_3d=boxes, labels_3d=7 * torch.arange(count) % KWARGS["num_classes"]))
    return logits, codes, targets


def golden_loss() -> DetectionLoss:
    kinds = KWARGS["loss"]
    return DetectionLoss(KWARGS["code_weights"], kinds["focal"], kinds["l1"], kinds["alpha"], kinds["gamma"])


def test_equals_the_published_loss():
    loss, (logits, codes, targets) = golden_loss(), golden_inputs()
    for i, target in enumerate(targets):
        assigned = loss.assign(logits[i], codes[i], target.bboxes_3d, target.labels_3d)
        assert golden_files.error(assigned, GOLDEN["outputs"][f"sample{i}/assigned_gt"]) == 0
    classes, boxes = loss(logits, codes, targets)
    assert bev_goldens.value_error(classes, GOLDEN["outputs"]["loss_cls"]) < 1e-12
    assert bev_goldens.value_error(boxes, GOLDEN["outputs"]["loss_bbox"]) < 1e-12


def test_a_box_of_unknown_velocity_teaches_its_class_alone():
    """It is matched all the same, and counts in the divisor."""
    loss, (logits, codes, targets) = golden_loss(), golden_inputs()
    classes, boxes = loss(logits, codes, targets)
    codes = codes.requires_grad_()
    targets[0].bboxes_3d[0, 7:] = torch.nan
    same, fewer = loss(logits, codes, targets)
    assert torch.equal(same, classes) and 0 < fewer < boxes
    fewer.backward()
    matched = loss.assign(logits[0], codes[0].detach(), targets[0].bboxes_3d, targets[0].labels_3d)
    moved = codes.grad[0].abs().sum(-1) > 0
    assert torch.equal(moved, matched > 1) and codes.grad.isfinite().all()


def test_velocity_is_not_compared_in_matching():
    """The second prediction has the box's place but for a centimetre, the first its velocity."""
    boxes = torch.tensor([[1.0, 0, 0, 1, 1, 1, 0, 10, 10]])
    codes = encode_boxes(boxes).repeat(2, 1)
    codes[0, 0] += 0.02
    codes[1, 0] += 0.01
    codes[1, 8:] = 0
    assert DetectionLoss().assign(torch.zeros(2, 3), codes, boxes, torch.tensor([0])).tolist() == [0, 1]


def test_velocity_counts_less():
    loss, (logits, codes, targets) = golden_loss(), golden_inputs()
    codes = codes.requires_grad_()
    loss(logits, codes, targets)[1].backward()
    # 0.25 * weight / 9 matched ones.
    assert sorted({round(x, 6) for x in codes.grad.abs().flatten().tolist()}) == [0, 0.005556, 0.027778]


def test_overflowed_predictions_do_not_stop_matching():
    loss, (logits, codes, targets) = golden_loss(), golden_inputs()
    logits[0, 0], codes[0, 1] = torch.nan, torch.inf
    assigned = loss.assign(logits[0], codes[0], targets[0].bboxes_3d, targets[0].labels_3d)
    assert (assigned > 0).sum() == 6


def test_half_precision_is_widened():
    loss, (logits, codes, targets) = golden_loss(), golden_inputs()
    assert all(part.dtype == torch.float32 for part in loss(logits.bfloat16(), codes.bfloat16(), targets))


def test_divisor_is_the_mean_over_processes(monkeypatch):
    loss, given = golden_loss(), golden_inputs()
    alone = loss(*given)
    monkeypatch.setattr(detection_loss, "reduce_mean", lambda x: x * 2)
    for half, whole in zip(loss(*given), alone, strict=True):
        torch.testing.assert_close(half * 2, whole, rtol=1e-6, atol=0)


def test_weights_are_no_part_of_a_checkpoint():
    assert not DetectionLoss().state_dict()
