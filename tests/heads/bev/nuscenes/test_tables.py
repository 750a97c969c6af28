"""Tables are read by tokens, and what is wrong in them is named."""

import json
import re

import golden_files
import numpy as np
import pytest

from attnzoo.heads.bev.nuscenes import json_stream
from attnzoo.heads.bev.nuscenes.classes import ATTRIBUTES, CLASS_OF_CATEGORY, CLASSES
from attnzoo.heads.bev.nuscenes.json_stream import JsonStream
from attnzoo.heads.bev.nuscenes.splits import official_scenes
from attnzoo.heads.bev.nuscenes.tables import NuScenes

GOLDEN = golden_files.load("nuscenes_geometry")["outputs"]


@pytest.mark.parametrize("sweeps", [False, True])
def test_links_of_samples(folder, sweeps):
    nusc = NuScenes(folder.parent, "v", sweeps=sweeps)
    for token, golden in GOLDEN["sample_links"].items():
        sample = nusc.table("sample").row(token)
        found = [nusc.table("sample_annotation").token(row) for row in nusc.annotations(sample)]
        assert found == golden["anns"]
        for channel, record in golden["data"].items():
            row = int(nusc.key_frames(sample, channel))
            assert nusc.table("sample_data").token(row) == record
            path = nusc.path(row)
            assert path.parent == folder.parent / "samples" / channel
    assert len(nusc.table("sample_data")) == len(nusc.table("ego_pose")) == (125 if sweeps else 49)


def test_only_what_is_needed_is_read(folder):
    for path in folder.glob("*.json"):
        if path.stem not in ("scene", "sample"):
            path.unlink()
    nusc = NuScenes(folder.parent, "v")
    assert [len(nusc.scene_samples(row)) for row in nusc.scene_rows(["scene-0102", "scene-0101"])] == [3, 4]
    times = nusc.table("sample")["timestamp"][nusc.samples(["scene-0101"])]
    assert (np.diff(times) > 0).all() and len(nusc.samples(["scene-0102", "scene-0101"])) == 7
    with pytest.raises(FileNotFoundError, match=r"sample_annotation\.json: there is no such file"):
        nusc.annotations(0)


def test_sweep_chain(nusc):
    record = int(nusc.key_frames(nusc.samples(["scene-0101"])[-1], "LIDAR_TOP"))
    chain = nusc.sweep_chain(record, 100)
    data = nusc.table("sample_data")
    assert chain[0] == record and (np.diff(data["timestamp"][chain]) < 0).all() and len(chain) > 4
    assert nusc.sweep_chain(record, 3) == chain[:3]
    assert set(nusc.sensor_channels(np.array(chain))) == {nusc.channels.index("LIDAR_TOP")}


def test_labels_and_attributes(nusc, folder):
    """As they are found in the files, row by row."""
    tables = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    names = {table: {row["token"]: row for row in tables[table]} for table in ("category", "instance", "attribute")}
    rows = np.arange(len(tables["sample_annotation"]))
    labels, attributes = nusc.annotation_labels(rows, CLASSES), nusc.annotation_attributes(rows)
    assert -1 in labels and -1 in attributes
    for row, label, attribute in zip(tables["sample_annotation"], labels, attributes, strict=True):
        category = names["category"][names["instance"][row["instance_token"]]["category_token"]]["name"]
        assert (CLASSES[label] if label >= 0 else None) == CLASS_OF_CATEGORY.get(category)
        found = [names["attribute"][token]["name"] for token in row["attribute_tokens"]]
        assert ([ATTRIBUTES[attribute]] if attribute >= 0 else []) == found


def test_official_splits():
    sizes = {"train": 700, "val": 150, "test": 150, "mini_train": 8, "mini_val": 2}
    scenes = {split: official_scenes(split) for split in sizes}
    assert {split: len(set(names)) for split, names in scenes.items()} == sizes
    assert len({name for split in ("train", "val", "test") for name in scenes[split]}) == 1000
    assert scenes["val"][:2] == ["scene-0003", "scene-0012"] and scenes["mini_val"] == ["scene-0103", "scene-0916"]
    assert set(scenes["mini_val"]) <= set(scenes["val"]) and set(scenes["mini_train"]) <= {
        *scenes["train"],
        *scenes["val"],
    }
    with pytest.raises(ValueError, match="split='valid': allowed are 'train', 'val'"):
        official_scenes("valid")


def test_splits_of_a_data_set(folder, change):
    nusc = NuScenes(folder.parent, "v")
    assert len(nusc.scene_rows("val")) == 2
    with pytest.raises(ValueError, match=r"scene\.json: has no scene 'scene-0001' \(of the split 'train'\)"):
        nusc.scene_rows("train")
    (folder / "splits.json").write_text(
        '{"val": ["scene-0102"], "whole": ["scene-0101", "scene-0102"], "none": [], "part": ["scene-0101", "scene-8"]}'
    )
    assert nusc.scene_rows("val") == [nusc.scenes.index("scene-0102")] and len(nusc.scene_rows("whole")) == 2
    text = folder / "mine.txt"
    text.write_text("scene-0102\n\n scene-0101 \n")
    assert [nusc.scenes[row] for row in nusc.scene_rows(str(text))] == ["scene-0102", "scene-0101"]
    text.write_text("scene-0102\nscene-0102")
    for split, message in (
        (str(text), "has a scene twice"),
        ("none", "the split 'none' has no scenes"),
        (["scene-7"], r"scene\.json: has no scene 'scene-7'"),
        ("part", r"scene\.json: has no scene 'scene-8' \(of the split 'part'\)"),
        ("other", "must be a .txt file with names of scenes, or one of 'val', 'whole', 'none', 'part', 'train'"),
    ):
        with pytest.raises(ValueError, match=message):
            nusc.scene_rows(split)
    with pytest.raises(FileNotFoundError, match=r"split='no\.txt': there is no such file"):
        nusc.scene_rows("no.txt")
    for content, message in (("[", "no JSON"), ("[]", "must hold an object"), ('{"a": "b"}', "'a' must be a list of")):
        (folder / "splits.json").write_text(content)
        with pytest.raises(ValueError, match=rf"splits\.json: {message}"):
            nusc.scene_rows("val")
    # Of an official split what is there is taken: nuScenes can be downloaded in parts.
    (folder / "splits.json").unlink()
    change("scene", lambda rows: rows[0].update(name="scene-0001"))
    assert len(NuScenes(folder.parent, "v").scene_rows("val")) == 1


def everything(root):
    nusc = NuScenes(root, "v", sweeps=True)
    samples = nusc.samples(nusc.scenes)
    for channel in nusc.channels:
        nusc.key_frames(samples, channel)
    nusc.rows("sample_data", "ego_pose_token")
    for name in ("prev", "next"):
        nusc.rows("sample_annotation", name)
    nusc.rows("sample_data", "prev")
    rows = np.concatenate([nusc.annotations(sample) for sample in samples])
    nusc.annotation_labels(rows, CLASSES)
    nusc.annotation_attributes(rows)


@pytest.mark.parametrize(
    ("table", "function", "problem"),
    [
        ("sample", lambda row: row.pop("timestamp"), "the field 'timestamp' is missing"),
        ("sample", lambda row: row.update(timestamp="1"), "timestamp must be a whole number below 2**63, got '1'"),
        ("sample", lambda row: row.update(timestamp=2**63), "timestamp must be a whole number"),
        ("sample", lambda row: row.update(next="x"), "next points to 'x', which is not in sample.json"),
        ("sample", lambda row: row.update(scene_token=""), "scene_token must be a token of scene.json, got ''"),
        ("sample_data", lambda row: row.update(is_key_frame=1), "is_key_frame must be true or false, got 1"),
        ("sample_data", lambda row: row.update(sample_token="x"), "sample_token points to 'x'"),
        ("sample_data", lambda row: row.update(ego_pose_token="x"), "ego_pose_token points to 'x'"),
        ("sample_data", lambda row: row.update(prev=None), "prev must be a token of sample_data.json or an empty text"),
        ("sample_data", lambda row: row.pop("filename"), "the field 'filename' is missing"),
        ("ego_pose", lambda row: row.update(rotation=[1, 0, 0]), "rotation must be a list of 4 finite numbers, got [1"),
        ("ego_pose", lambda row: row.update(translation=[1, 0, "0"]), "translation must be a list of 3 finite numbers"),
        ("ego_pose", lambda row: row.update(translation=[1, float("nan"), 0]), "translation must be a list of 3"),
        ("calibrated_sensor", lambda row: row.update(camera_intrinsic=[[1]]), "camera_intrinsic must be 3 x 3 finite"),
        ("calibrated_sensor", lambda row: row.update(camera_intrinsic=3), "camera_intrinsic must be 3 x 3 finite"),
        ("sample_annotation", lambda row: row.update(size=[[1, 2, 3]]), "size must be a list of 3 finite numbers"),
        ("sample_annotation", lambda row: row.update(prev="x"), "prev points to 'x'"),
        ("sample_annotation", lambda row: row.update(instance_token="x"), "instance_token points to 'x'"),
        ("sample_annotation", lambda row: row.update(attribute_tokens=["x"]), "attribute_tokens points to 'x'"),
        (
            "sample_annotation",
            lambda row: row.update(attribute_tokens="x"),
            "attribute_tokens must be a list of tokens",
        ),
        ("sample_annotation", lambda row: row.update(num_lidar_pts=1.5), "num_lidar_pts must be a whole number"),
        ("instance", lambda row: row.update(category_token="x"), "category_token points to 'x'"),
    ],
)
def test_a_wrong_row_is_named(folder, change, table, function, problem):
    everything(folder.parent)
    token = json.loads((folder / f"{table}.json").read_text())[2]["token"]
    change(table, lambda rows: function(rows[2]))
    with pytest.raises(ValueError) as caught:
        everything(folder.parent)
    assert str(caught.value).startswith(f"{folder / table}.json: row {token!r}: {problem}")


def test_links_that_do_not_fit(folder, change):
    change("scene", lambda rows: rows[0].update(nbr_samples=rows[0]["nbr_samples"] + 1))
    nusc = NuScenes(folder.parent, "v")
    with pytest.raises(
        ValueError, match=r"scene\.json: row '\w+': nbr_samples is \d, and so many samples of the scene"
    ):
        nusc.samples(nusc.scenes)
    change("sample_annotation", lambda rows: rows[0]["attribute_tokens"].append(rows[0]["attribute_tokens"][0]))
    with pytest.raises(ValueError, match="attribute_tokens must hold at most one token"):
        nusc.annotation_attributes(np.arange(3))
    change("attribute", lambda rows: [row.update(name="vehicle.flying") for row in rows])
    change("sample_annotation", lambda rows: rows[0]["attribute_tokens"].pop())
    nusc = NuScenes(folder.parent, "v")
    with pytest.raises(ValueError, match=r"attribute_tokens must point to one of pedestrian\.moving"):
        nusc.annotation_attributes(np.arange(3))
    change("sample", lambda rows: rows.append(rows[0]))
    with pytest.raises(ValueError, match=r"sample\.json: row '\w+': the token comes twice"):
        NuScenes(folder.parent, "v").table("sample").row("x")


def test_what_is_asked_for_and_not_there(nusc, tmp_path):
    with pytest.raises(ValueError, match=r"sample\.json: there is no row with the token 'x'"):
        nusc.table("sample").row("x")
    with pytest.raises(ValueError, match=r"sensor\.json: has no channel 'CAM_UP'; there are CAM_FRONT"):
        nusc.key_frames(0, "CAM_UP")
    with pytest.raises(FileNotFoundError, match="there is no such folder of nuScenes tables"):
        NuScenes(tmp_path, "v1.0-trainval")
    with pytest.raises(TypeError, match="sweeps=1: must be True or False"):
        NuScenes(tmp_path, "v", sweeps=1)


def test_a_sample_without_a_camera_is_named(folder, change):
    token = next(iter(GOLDEN["sample_links"]))
    record = GOLDEN["sample_links"][token]["data"]["CAM_BACK"]
    change("sample_data", lambda rows: rows.remove(next(row for row in rows if row["token"] == record)))
    nusc = NuScenes(folder.parent, "v")
    with pytest.raises(ValueError, match=rf"sample_data\.json: has no key frame of CAM_BACK for the sample '{token}'"):
        nusc.key_frames(nusc.samples(nusc.scenes), "CAM_BACK")


def test_empty_tables(folder, change):
    """As the test split has it: no annotations."""
    change("sample_annotation", lambda rows: rows.clear())
    change("instance", lambda rows: rows.clear())
    nusc = NuScenes(folder.parent, "v")
    rows = nusc.annotations(0)
    assert len(rows) == 0 and len(nusc.annotation_labels(rows, CLASSES)) == len(nusc.annotation_attributes(rows)) == 0


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "'[' is expected, at character 0"),
        ('{"a": 1}', "'[' is expected"),
        ('[{"a": 1}', "',' or ']' is expected, at character 9"),
        ('[{"a": 1},]', "no JSON, at character 10"),
        ('[{"a": 1}, 3]', "an object is expected"),
        ('[{"a": 1}] x', "the file should end here, at character 11"),
        ('[{"a": }]', "no JSON, at character 1"),
        (b"[\xff]", "no UTF-8"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_broken_json(tmp_path, text, problem):
    path = tmp_path / "sample.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=re.escape(f"sample.json: {problem}")):
        list(JsonStream(path).rows())


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
def test_json_in_pieces(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    rows = [{"a": [1.25, -3e7], "ü": "]},{", "deep": {"x": [None, True]}}, {}, {"n": 1234567}] * 3
    path = tmp_path / "rows.json"
    for indent in (None, 0, 3):
        path.write_text(json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8")
        assert list(JsonStream(path).rows()) == rows
    path.write_text(" [ ] \n")
    assert list(JsonStream(path).rows()) == []
    path.write_text('{"meta": {"x": 1}, "results": {"s": [1, 2], "t": []}, "n": 12345}')
    found = list(JsonStream(path).entries("results"))
    nested = [(None, "results", None), ("results", "s", [1, 2]), ("results", "t", [])]
    assert found == [(None, "meta", {"x": 1}), *nested, (None, "n", 12345)]
    path.write_text('{"results": {"s": 1, "s": 2}}')
    with pytest.raises(ValueError, match=r"rows\.json: the key 's' comes twice"):
        list(JsonStream(path).entries("results"))
