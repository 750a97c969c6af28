"""What the demo claims of its results."""

import pytest

from attnzoo.tools.demonstration import results


def reports(ap50=0.9, miou=90.0):
    metrics = {"detector": {"coco/bbox_mAP_50": ap50}, "segmentor": {"mIoU": miou}}
    onnx_report = {"path": "m.onnx", "bytes": 2**20, "compared": 9, "largest_difference": {"labels": 0.0}}
    return {
        name: {"metrics": values, "onnx": onnx_report, "checkpoint": "m.pth", "parameters": 10**6, "seconds": {}}
        for name, values in metrics.items()
    }


@pytest.mark.parametrize(
    ("values", "seconds", "missed"),
    [
        ({}, 400.0, []),
        ({"ap50": 0.80, "miou": 85.0}, 600.0, []),
        ({"ap50": 0.799}, 400.0, ["box AP50"]),
        ({"miou": 84.99}, 400.0, ["mIoU"]),
        ({"ap50": 0.1, "miou": 20.0}, 601.0, ["box AP50", "mIoU", "seconds"]),
    ],
    ids=["well", "just", "detector", "segmentor", "all"],
)
def test_goals_are_claimed_only_if_reached(tmp_path, values, seconds, missed):
    found = results.results_of(reports(**values), {"all": seconds}, False, 0, 2, 1)
    assert found["reached"] == (not missed)
    rows = results.table(found, tmp_path).splitlines()
    assert [row.split("  ")[0].startswith(tuple(missed)) for row in rows if row.endswith(" NO")] == [True] * len(missed)
    assert (rows[-1] == "all goals reached.") == (not missed)
    assert all(name in rows[-1] for name in missed)


def test_nothing_detected_is_a_score_of_zero():
    empty = reports()
    empty["detector"]["metrics"] = {}
    found = results.results_of(empty, {"all": 1.0}, False, 0, 2, 1)
    assert not found["reached"] and found["goals"][0]["value"] == 0
