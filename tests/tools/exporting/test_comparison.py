"""What counts as rounding between ONNX Runtime and PyTorch, and what does not."""

import numpy as np
import pytest

from attnzoo.tools.exporting.comparison import compare


def _detections():
    return dict(
        boxes=np.array([[[0, 0, 9, 9], [5, 5, 20, 20], [0, 0, 0, 0]]], np.float32),
        scores=np.array([[0.9, 0.8, 0]], np.float32),
        labels=np.array([[1, 2, -1]]),
    )


def test_compare_takes_another_order_of_ties():
    expected, found = _detections(), _detections()
    expected["scores"][0, 1] = 0.9
    found = {name: value[:, [1, 0, 2]] for name, value in expected.items()}
    assert compare(expected, found) == ({"boxes": 0, "scores": 0, "labels": 0}, 2, [])


@pytest.mark.parametrize(
    ("name", "index", "value", "differs"),
    [
        ("boxes", (0, 1, 2), 20.5, ["boxes"]),
        ("scores", (0, 1), 0.7, ["labels"]),
        ("labels", (0, 1), 0, ["labels"]),
        ("labels", (0, 1), -1, ["labels"]),
        ("labels", (0, 2), 1, ["labels"]),
        ("boxes", (0, 0, 0), np.nan, ["boxes"]),
    ],
    ids=["box", "score", "label", "lost", "extra", "nan"],
)
def test_compare_sees_detections_that_differ(name, index, value, differs):
    found = _detections()
    found[name][index] = value
    assert compare(_detections(), found)[2] == differs


def test_compare_sees_maps_that_differ():
    logits = np.array([[[[3.0, 1.0]], [[1.0, 1.0]]]], np.float32)
    expected = dict(logits=logits, labels=np.array([[[0, 0]]]))
    tie = dict(logits=logits + np.float32(1e-6), labels=np.array([[[0, 1]]]))
    assert compare(expected, tie)[1:] == (1, [])
    assert compare(expected, dict(logits=logits, labels=np.array([[[1, 0]]])))[2] == ["labels"]
    assert compare(expected, dict(logits=logits + 0.01, labels=expected["labels"]))[2] == ["logits"]
    assert compare(expected, dict(logits=logits[..., :1], labels=expected["labels"]))[2] == ["logits"]


def _frame(yaw: float = 3.1415) -> dict[str, np.ndarray]:
    return dict(
        boxes=np.array([[[1, 2, 0, 2, 4, 1.5, yaw, 0, 1]]], np.float32),
        scores=np.array([[0.9]], np.float32),
        labels=np.array([[1]]),
        bev_map=np.full((1, 2, 3, 4), 0.5, np.float32),
        next_history=np.full((1, 12, 8), 20, np.float32),
    )


def test_compare_takes_angles_by_the_shorter_way_round():
    errors, compared, differ = compare(_frame(), _frame(-3.1415))
    assert not differ and compared == 1 and 1e-5 < errors["boxes"] < 1e-3
    assert compare(_frame(), _frame(3.0))[2] == ["boxes"]


@pytest.mark.parametrize(("name", "rounding"), [("bev_map", 1e-5), ("next_history", 1e-3)])
def test_compare_sees_bev_maps_that_differ(name, rounding):
    found = _frame()
    found[name][0, 1, 2] += rounding
    assert not compare(_frame(), found)[2]
    found[name][0, 1, 2] += 100 * rounding
    assert compare(_frame(), found)[2] == [name]
    found[name][0, 1, 2] = np.nan
    assert compare(_frame(), found)[2] == [name]


def test_compare_counts_cells_where_there_are_no_boxes():
    frame = {name: _frame()[name] for name in ("bev_map", "next_history")}
    assert compare(frame, frame) == ({"bev_map": 0, "next_history": 0}, 24, [])
