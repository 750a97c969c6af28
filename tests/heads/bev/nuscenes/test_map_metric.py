import numpy as np
import pytest
import torch

from attnzoo.heads.bev.nuscenes.map_metric import BEVMapMetric

CLASSES = ["vehicle", "drivable_area", "lane_divider"]


def sample(scores, wanted):
    return {"token": "a", "pred_bev_map": torch.tensor(scores), "gt_bev_map": torch.tensor(wanted)}


def test_intersection_over_union_of_all_samples():
    metric = BEVMapMetric(CLASSES)
    none = [[0.1, 0.4]]
    samples = [
        sample([[[0.9, 0.5]], [[0.2, 0.8]], none], [[[True, False]], [[True, True]], [[False, False]]]),
        sample([[[0.6, 0.1]], [[0.7, 0.3]], none], [[[True, True]], [[True, False]], [[False, False]]]),
    ]
    metric.process(None, samples)
    scores = metric.evaluate(2)
    assert scores["vehicle_IoU"] == pytest.approx(2 / 4)
    assert scores["drivable_area_IoU"] == pytest.approx(2 / 3)
    assert np.isnan(scores["lane_divider_IoU"]) and scores["mIoU"] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_threshold():
    metric = BEVMapMetric(["vehicle"], threshold=0.7)
    metric.process(None, [sample([[[0.6, 0.8]]], [[[True, True]]])])
    assert metric.evaluate(1)["vehicle_IoU"] == 0.5


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([[[0.5]]], r"sample a: pred_bev_map \(1, 1, 1\) and gt_bev_map \(1, 1, 2\) must be alike, of 1 classes"),
        ([[[0.5, float("nan")]]], "sample a: pred_bev_map has scores that are not finite"),
    ],
)
def test_bad_predictions(scores, message):
    with pytest.raises(ValueError, match=message):
        BEVMapMetric(["vehicle"]).process(None, [sample(scores, [[[True, False]]])])


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"classes\[1\]='tram': allowed are"):
        BEVMapMetric(["vehicle", "tram"])
    with pytest.raises(ValueError, match="threshold=2: must be from 0 to 1"):
        BEVMapMetric(["vehicle"], threshold=2)
