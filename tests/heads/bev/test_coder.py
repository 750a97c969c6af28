"""Box codes and the choice of detections."""

import bev_goldens
import golden_files
import pytest
import torch

from attnzoo.heads.bev.coder import NMSFreeCoder, decode_boxes, encode_boxes

GOLDEN = golden_files.load("nms_free_coder")
KWARGS = GOLDEN["kwargs"]


def test_equals_the_published_coder():
    logits = 2 * golden_files.noise(**GOLDEN["input"])[-1] - 2
    last = 100 + 10 * (KWARGS["layers"] - 1)
    codes = torch.stack([bev_goldens.box_codes(KWARGS["num_query"], last + b) for b in range(KWARGS["batch"])])
    coder = NMSFreeCoder(KWARGS["post_center_range"], KWARGS["max_num"], KWARGS["score_threshold"])
    found = coder.decode(logits, codes)
    for i, kept in enumerate(found.kept):
        bottom = found.boxes.clone()
        bottom[..., 2] -= bottom[..., 5] / 2
        for name, value in (
            ("bboxes", found.boxes), ("scores", found.scores), ("labels", found.labels), ("lidar_boxes", bottom)
        ):  # fmt: skip
            assert golden_files.error(value[i, kept], GOLDEN["outputs"][f"sample{i}/{name}"]) < 1e-12


def test_codes_and_back():
    boxes = golden_files.noise((50, 9), 0)
    boxes[:, 3:6] = boxes[:, 3:6].exp()
    boxes[:, 6].clamp_(-3, 3)
    boxes[0, 7:] = torch.nan
    torch.testing.assert_close(decode_boxes(encode_boxes(boxes)), boxes, equal_nan=True)


def chosen(threshold: float | None, scores: list[float]) -> list[float]:
    coder = NMSFreeCoder(score_threshold=threshold)
    found = coder.decode(torch.tensor(scores).logit()[None, :, None], torch.zeros(1, len(scores), 10))
    return [round(score, 4) for score in found.scores[found.kept].tolist()]


def test_thresholds():
    """Lowered by tenths until something is left, of each sample apart."""
    assert chosen(None, [0.1, 0.5, 0.3]) == [0.5, 0.3, 0.1]
    assert chosen(0.2, [0.1, 0.5, 0.3]) == [0.5, 0.3]
    assert chosen(0.6, [0.1, 0.5, 0.3, 0.49]) == [0.5, 0.49]
    assert chosen(0.6, [0.001, 0.005]) == [0.005, 0.001]
    coder = NMSFreeCoder(score_threshold=0.6)
    logits = torch.tensor([[0.1, 0.5, 0.3], [0.1, 0.5, 0.7]]).logit()[..., None]
    kept = coder.decode(logits, torch.zeros(2, 3, 10)).kept
    assert kept.sum(1).tolist() == [1, 1]


def test_no_more_candidates_than_there_are():
    found = NMSFreeCoder(max_num=300).decode(torch.zeros(2, 4, 3), torch.zeros(2, 4, 10))
    assert found.boxes.shape == (2, 12, 9) and found.kept.all()
    assert NMSFreeCoder().decode(torch.zeros(2, 4, 3).half(), torch.zeros(2, 4, 10).half()).boxes.dtype == torch.float32


def test_far_boxes_are_dropped():
    codes = torch.zeros(1, 4, 10)
    codes[0, :, 0] = torch.tensor([61.2, 61.3, 0, 0])
    codes[0, 2, 4] = -11
    logits = torch.tensor([4.0, 3, 2, 1])[None, :, None]
    assert NMSFreeCoder().decode(logits, codes).kept.tolist() == [[True, False, False, True]]


@pytest.mark.parametrize("arguments", [dict(max_num=0), dict(center_range=(1, 2)), dict(score_threshold="0.1")])
def test_bad_arguments(arguments):
    with pytest.raises((TypeError, ValueError), match=next(iter(arguments))):
        NMSFreeCoder(**arguments)
