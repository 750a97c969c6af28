"""The detection metric against nuScenes' devkit, and against a plain loop."""

import copy
import math
import time

import golden_files
import numpy as np
import pytest
from drawn_detections import draw, scored

from attnzoo.heads.bev.nuscenes import curves
from attnzoo.heads.bev.nuscenes.classes import EVALUATION_CLASSES
from attnzoo.heads.bev.nuscenes.curves import DetectionConfig, detection_curves
from attnzoo.heads.bev.nuscenes.evaluation import annotated_detections, evaluate, score
from attnzoo.heads.bev.nuscenes.submission import NO_BOXES, Submission, parse_submission
from attnzoo.heads.bev.nuscenes.tables import NuScenes

GOLDEN = golden_files.load("nuscenes_eval")
GEOMETRY = golden_files.load("nuscenes_geometry")["outputs"]
SCORES = ("mean_ap", "nd_score", "tp_errors", "label_aps", "label_tp_errors")


def golden_config() -> DetectionConfig:
    facts = GOLDEN["kwargs"]["config"]
    return DetectionConfig(
        class_ranges=facts["class_range"],
        thresholds=tuple(facts["dist_ths"]),
        error_threshold=facts["dist_th_tp"],
        min_recall=facts["min_recall"],
        min_precision=facts["min_precision"],
        mean_ap_weight=facts["mean_ap_weight"],
    )


def same(found, wanted):
    """Equal to 1e-6, NaN included; numbers as keys are texts in JSON."""
    if isinstance(wanted, dict):
        assert {str(key) for key in found} == set(wanted)
        for key, value in found.items():
            same(value, wanted[str(key)])
    else:
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)


def run(nusc, content=None, scenes=None, custom=False):
    submission = parse_submission(copy.deepcopy(content or GOLDEN["submission"]))
    samples = nusc.samples(scenes or GOLDEN["kwargs"]["scenes"])
    if custom:
        # In the order of the table.
        submission = submission.select([nusc.table("sample").token(row) for row in np.sort(samples)])
    return evaluate(nusc, submission, samples)


def test_the_default_settings():
    assert golden_config() == DetectionConfig(class_ranges=dict(DetectionConfig().class_ranges))


def test_the_devkits_result(nusc):
    result, golden = run(nusc), GOLDEN["outputs"]
    summary = result.summary()
    for name, value in summary.items():
        same(value, golden[name])
    for ours, theirs in (("predictions", "predictions"), ("objects", "ground_truth")):
        assert result.counts[ours] == tuple(golden["filter"][theirs].values())


def test_what_is_kept_and_matched(nusc):
    result, golden = run(nusc), GOLDEN["outputs"]
    submission = parse_submission(GOLDEN["submission"])
    table, places = nusc.table("sample_annotation"), submission.index_in_sample()
    tokens = [submission.tokens[sample] for sample in submission.boxes.samples]
    kept = {token: [] for token in submission.tokens}
    for row in result.kept_predictions:
        kept[tokens[row]].append(int(places[row]))
    assert kept == golden["kept_predictions"]
    kept = {token: [] for token in submission.tokens}
    for row in result.kept_objects:
        kept[nusc.table("sample").token(nusc.rows("sample_annotation", "sample_token")[row])].append(table.token(row))
    assert kept == golden["kept_ground_truth"]
    for name, limits in golden["matches"].items():
        for limit, wanted in limits.items():
            curve = result.curves[name][float(limit)]
            found = [[tokens[box], int(places[box]), table.token(row)] for box, row in curve.matches]
            assert found == wanted
            assert curve.last == golden["max_recall_index"][name][limit]


def test_curves(nusc):
    result = run(nusc)
    for name, limits in GOLDEN["outputs"]["curves"].items():
        for limit, wanted in limits.items():
            curve = result.curves[name][float(limit)]
            same(curve.precision, wanted["precision"])
            same(curve.score, wanted["confidence"])
            for error, values in curve.errors.items():
                same(values, wanted[error])


@pytest.mark.parametrize("variant", GOLDEN["variants"])
def test_variants(nusc, variant):
    golden, content, scenes = GOLDEN["variants"][variant], copy.deepcopy(GOLDEN["submission"]), None
    if variant == "reversed_samples":
        content["results"] = dict(reversed(content["results"].items()))
        result = run(nusc, content)
    elif variant == "custom_split":
        result = run(nusc, custom=True)
    elif variant == "single_scene":
        ((scene, golden),) = golden.items()
        scenes = [scene]
        tokens = {nusc.table("sample").token(row) for row in nusc.samples(scenes)}
        content["results"] = {token: boxes for token, boxes in content["results"].items() if token in tokens}
        result = run(nusc, content, scenes)
    else:
        assert variant == "every_annotation_as_prediction"
        samples = np.arange(len(nusc.table("sample")))
        boxes, _ = annotated_detections(nusc, samples)
        boxes.scores[:], boxes.points[:] = 1, -1
        tokens = [nusc.table("sample").token(row) for row in samples]
        result = evaluate(nusc, Submission({}, tokens, boxes), samples)
        assert result.counts["predictions"] == tuple(golden["filter"]["predictions"].values())
        assert result.counts["objects"] == tuple(golden["filter"]["ground_truth"].values())
    for name in SCORES:
        if name in golden:
            same(getattr(result, name), golden[name])


def changed(change: str) -> dict:
    """The submission with the change that the golden file describes."""
    content = copy.deepcopy(GOLDEN["submission"])
    results = content["results"]
    token = GOLDEN["refused"]["first_sample"]
    box = results[token][0]
    if change.startswith("the first box lacks"):
        del box[change.split()[-1] if "key" in change else change.split()[4]]
    elif "velocity of 3 numbers" in change:
        box["velocity"] = [0.0, 0.0, 0.0]
    elif "NaN score" in change:
        box["detection_score"] = math.nan
    elif "integer score" in change:
        box["detection_score"] = 1
    elif "NaN translation" in change:
        box["translation"][0] = math.nan
    elif "class vehicle.car" in change:
        box["detection_name"] = "vehicle.car"
    elif "attribute vehicle.flying" in change:
        box["attribute_name"] = "vehicle.flying"
    elif change.startswith("a sample of the split"):
        del results[token]
    elif change.startswith("a sample outside"):
        results["0" * 32] = []
    elif "key meta" in change:
        del content["meta"]
    elif "empty list" in change:
        content["results"] = {token: [] for token in results}
    elif "subtracted" in change:
        for boxes in results.values():
            for box in boxes:
                box["detection_score"] -= 1
    elif "501" in change:
        results[token] += [results[token][-1]] * (501 - len(results[token]))
    else:
        assert change == "width 0 in every box"
        for boxes in results.values():
            for box in boxes:
                box["size"][0] = 0.0
    return content


REFUSALS = {
    "the first box lacks the key velocity": r"results\['7c59\w+'\]\[0\]: the field 'velocity' is missing",
    "the first box has velocity of 3 numbers": r"\[0\]: velocity must be a list of 2 numbers, each may be NaN, got \[0",
    "the first box lacks detection_score (counts as -1)": r"bus: scores must be 0 or more, got -1\.0",
    "the first box has a NaN score": r"\[0\]: detection_score must be a number and not NaN, got nan",
    "the first box has a NaN translation": r"\[0\]: translation must be a list of 3 finite numbers, got \[nan",
    "the first box has class vehicle.car": r"\[0\]: detection_name must be one of 'car', .* got 'vehicle\.car'",
    "the first box has attribute vehicle.flying": r"\[0\]: attribute_name must be one of '', .* got 'vehicle\.flying'",
    "a sample of the split is missing": r"results has no sample '7c59\w+' \(1 in all\)",
    "a sample outside the split is added (empty list)": r"results has the sample that is not of the split, '0+'",
    "the key meta is missing": "meta must be an object of flags, got None",
    "every sample has an empty list": "results has no box in any sample",
    "1 is subtracted from every score (negative scores)": "scores must be 0 or more, got -",
    "one sample filled up to 501 boxes with copies of its last box": r"\]: at most 500 boxes a sample, got 501",
    "width 0 in every box": r"results\['\w+'\]\[\d+\]: size must be above 0, got \[0\.0",
}


@pytest.mark.parametrize("case", GOLDEN["refused"]["cases"], ids=lambda case: case["change"])
def test_refused(nusc, case):
    content = changed(case["change"])
    if case["raises"] is None:
        result = run(nusc, content)
        same(result.mean_ap, case["mean_ap"])
        same(result.nd_score, case["nd_score"])
    else:
        with pytest.raises(ValueError, match=REFUSALS[case["change"]]):
            run(nusc, content)


def test_a_missing_sample_of_an_own_split(nusc):
    content = copy.deepcopy(GOLDEN["submission"])
    content["results"].popitem()
    with pytest.raises(ValueError, match=r"the submission: results has no sample '\w+' \(1 are missing\)"):
        run(nusc, content, custom=True)


def test_an_object_without_size_is_named(folder, change):
    change("sample_annotation", lambda rows: [row.update(size=[0, 1, 1]) for row in rows])
    with pytest.raises(ValueError, match=r"sample_annotation\.json: row '\w+': size must be above 0, got \[0\.0"):
        run(NuScenes(folder.parent, "v"))


def test_tables_without_annotations(folder, change):
    """Those of the test split; else all scores would be 0."""
    change("sample_annotation", lambda rows: rows.clear())
    with pytest.raises(ValueError, match=r"sample_annotation\.json: has no annotations"):
        run(NuScenes(folder.parent, "v"))


def test_no_prediction_scores_nothing(nusc):
    samples = nusc.samples(["scene-0102"])
    tokens = [nusc.table("sample").token(row) for row in samples]
    result = score(nusc, Submission({}, tokens, NO_BOXES), samples)
    assert result.mean_ap == result.nd_score == 0 and set(result.tp_errors.values()) == {1.0}


def test_angles():
    for case in GEOMETRY["angle_diff"]:
        for name, period in (("period_2pi", 2 * np.pi), ("period_pi", np.pi)):
            assert curves._turn(case["x"], case["y"], period) == pytest.approx(case[name], abs=1e-12)


def test_parts_of_the_metric():
    for case in GEOMETRY["scale_iou"]:
        found = curves._aligned_iou(np.array([case["a"]]), np.array([case["b"]]))
        np.testing.assert_allclose(found, [case["iou"]])
    for case in GEOMETRY["cummean"]:
        np.testing.assert_allclose(curves._running_mean(np.array(case["x"])), case["y"])


def loop(predictions, objects, label: int, limit: float) -> list[tuple[int, int]]:
    """Matches as the definition has them."""
    order = sorted((value, i) for i, value in enumerate(predictions.scores) if predictions.labels[i] == label)
    taken, matches = set(), []
    for _, i in reversed(order):
        best = None
        for j in np.flatnonzero((objects.samples == predictions.samples[i]) & (objects.labels == label)):
            if j not in taken:
                distance = math.dist(predictions.translations[i, :2], objects.translations[j, :2])
                if best is None or distance < best[0]:
                    best = distance, j
        if best and best[0] < limit:
            taken.add(best[1])
            matches.append((i, best[1]))
    return matches


@pytest.mark.parametrize("pairs", [1 << 21, 100])
def test_matches_of_many_boxes(monkeypatch, pairs):
    """On a grid, so that distances and scores are often equal; boxes of samples in any order."""
    monkeypatch.setattr(curves, "_PAIRS", pairs)
    predictions, objects = draw(12, GOLDEN["timing"])
    for boxes in (predictions, objects):
        boxes.translations[:] = np.round(boxes.translations / 4) * 2
        boxes.labels[:] %= 3
    predictions.scores[:] = np.round(predictions.scores, 1)
    mixed = np.random.default_rng(0).permutation(len(predictions))
    predictions = predictions[mixed]
    found = detection_curves(predictions, objects, DetectionConfig())
    for label in range(3):
        for limit, curve in found[EVALUATION_CLASSES[label]].items():
            assert [tuple(pair) for pair in curve.matches] == loop(predictions, objects, label, limit)
            assert len(curve.matches) > 10
    assert len(found["barrier"][2.0].matches) == 0


def test_it_is_fast():
    """A hundredth of a validation set; `drawn_detections.py` times the whole."""
    boxes = draw(60, GOLDEN["timing"])
    start = time.process_time()
    result = scored(*boxes)
    # The devkit takes 1.2 s.
    assert time.process_time() - start < 0.3
    assert 0 < result.mean_ap < 0.2 and result.nd_score > result.mean_ap
    # An error above 1 costs no more than 1.
    assert result.tp_errors["vel_err"] > 1 and result.tp_scores["vel_err"] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(thresholds=()), r"thresholds=\(\): must be distances above 0"),
        (dict(error_threshold=3.0), r"error_threshold=3\.0: must be one of the thresholds \(0\.5, "),
        (dict(class_ranges={"car": 50}), "class_ranges must have car, truck"),
        (dict(min_recall=1.0), r"min_recall=1\.0 and min_precision=0\.1: must be from 0 to below 1"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DetectionConfig(**settings)
