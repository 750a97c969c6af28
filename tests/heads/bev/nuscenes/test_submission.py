"""The file of results is written and read as nuScenes defines it."""

import copy
import json

import golden_files
import numpy as np
import pytest

from attnzoo.heads.bev.nuscenes.submission import (
    CAMERA_META,
    Submission,
    parse_submission,
    read_submission,
    write_submission,
)

GOLDEN = golden_files.load("nuscenes_eval")["submission"]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(GOLDEN))
    return path


def same(left: Submission, right: Submission):
    assert (left.meta, left.tokens) == (right.meta, right.tokens)
    for name, values in vars(left.boxes).items():
        np.testing.assert_array_equal(values, getattr(right.boxes, name))


def test_what_is_written_is_read(path, tmp_path):
    submission = read_submission(path)
    same(submission, parse_submission(GOLDEN))
    assert submission.boxes.samples.max() == len(submission.tokens) - 1
    out = tmp_path / "out" / "results_nusc.json"
    write_submission(out, submission)
    same(read_submission(out), submission)
    # Box by box what came in, but for keys that only the devkit's own boxes have.
    content = json.loads(out.read_text())
    assert content["meta"] == GOLDEN["meta"] and list(content["results"]) == list(GOLDEN["results"])
    for token, boxes in content["results"].items():
        for box, wanted in zip(boxes, GOLDEN["results"][token], strict=True):
            assert json.dumps(box) == json.dumps({key: wanted[key] for key in box})
    assert [file.name for file in out.parent.iterdir()] == [out.name]
    write_submission(out, submission)


def test_a_selection_has_its_order(path):
    submission = read_submission(path)
    tokens = submission.tokens[3:0:-1]
    part = submission.select(tokens)
    content = {"meta": GOLDEN["meta"], "results": {token: GOLDEN["results"][token] for token in tokens}}
    same(part, parse_submission(content))


def test_samples_without_boxes(tmp_path):
    content = {"meta": dict(CAMERA_META), "results": {"a": [], "b": []}}
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    submission = read_submission(path)
    assert submission.tokens == ["a", "b"] and len(submission.boxes) == 0
    write_submission(path, submission)
    assert json.loads(path.read_text()) == content
    # The order of the keys does not matter.
    path.write_text(json.dumps({"results": {"a": []}, "meta": {}}))
    assert read_submission(path).tokens == ["a"]


def test_nothing_of_the_users_is_overwritten(path, tmp_path):
    submission = read_submission(path)
    other = tmp_path / "notes.json"
    other.write_text('{"mine": 1}')
    with pytest.raises(FileExistsError, match=r"notes\.json: is there and not a file of results"):
        write_submission(other, submission)
    assert other.read_text() == '{"mine": 1}'
    with pytest.raises(ValueError, match=r"meta must have use_camera, .* use_lidar is not"):
        write_submission(tmp_path / "x.json", Submission({"use_camera": True}, [], submission.boxes[:0]))
    many = submission.boxes[np.zeros(501, np.int64)]
    with pytest.raises(ValueError, match=r"at most 500 boxes a sample, got 501 for '\w+'"):
        write_submission(tmp_path / "x.json", Submission(dict(CAMERA_META), submission.tokens, many))


def test_a_write_that_fails_leaves_what_was_there(path, tmp_path, monkeypatch):
    before = path.read_text()
    submission = read_submission(path)

    def fail(*args):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        write_submission(path, submission)
    assert path.read_text() == before and [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("size", [1, 2], r"size must be a list of 3 finite numbers, got \[1, 2\]"),
        ("rotation", [1, 0, 0, float("inf")], "rotation must be a list of 4 finite numbers"),
        ("velocity", None, "velocity must be a list of 2 numbers, each may be NaN, got None"),
        ("velocity", [1, "2"], "velocity must be a list of 2 numbers"),
        ("detection_score", "0.5", "detection_score must be a number and not NaN, got '0.5'"),
        ("detection_name", ["car"], "detection_name must be one of"),
        ("detection_score", 10**400, "has a number beyond those of float64"),
        ("num_pts", 1.5, "num_pts must be a whole number, got 1.5"),
        ("sample_token", "x", "sample_token must be that of the list, got 'x'"),
    ],
)
def test_a_wrong_field_is_named(path, field, value, problem):
    content = copy.deepcopy(GOLDEN)
    token = list(content["results"])[1]
    content["results"][token][2][field] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"results\.json: results\['{token}'\]\[2\]: {problem}"):
        read_submission(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([], r"'\{' is expected"),
        ({"meta": {}}, "the key 'results' is missing"),
        ({"results": {}}, "meta must be an object of flags, got None"),
        ({"meta": {}, "results": []}, r"'\{' is expected"),
        ({"meta": {}, "results": {"a": {}}}, r"results\['a'\]: must be a list of boxes, got \{\}"),
        ({"meta": {}, "results": {"a": [1]}}, r"results\['a'\]\[0\]: must be an object, got 1"),
    ],
)
def test_files_that_are_none(path, content, problem):
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"results\.json: {problem}"):
        read_submission(path)
    with pytest.raises(ValueError):
        parse_submission(content)
