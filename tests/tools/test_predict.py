"""Predict by the command line: pictures and their JSON."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from tools_helpers import COLOURS, attnzoo

from attnzoo.tools import cli
from attnzoo.tools.config.loading import load_config
from attnzoo.tools.predicting import prediction
from attnzoo.tools.predicting.prediction import predict

pytestmark = pytest.mark.long


def test_detector_in_a_process_of_its_own(trained, data, tmp_path):
    config, checkpoint = trained["detector"]
    done = attnzoo("predict", config, checkpoint, data / "images", "--out-dir", tmp_path / "out", "--score", 0.2)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert content["classes"] == list(COLOURS)
    assert len(content["images"]) == 8
    found = [instance for image in content["images"] for instance in image["instances"]]
    assert found
    assert all(instance["name"] == content["classes"][instance["label"]] for instance in found)
    assert all(0.2 <= instance["score"] <= 1 and max(instance["box"]) <= 64 for instance in found)
    for image in content["images"]:
        picture = np.asarray(Image.open(tmp_path / "out" / image["picture"]).convert("RGB"), np.int16)
        difference = np.abs(picture - np.asarray(Image.open(image["file"]), np.int16)).max()
        assert picture.shape == (64, 64, 3)
        assert (difference > 60) == bool(image["instances"]), "drawn where, and only where, something was found"


def test_segmentor(trained, data, tmp_path):
    config, checkpoint = map(str, trained["segmentor"])
    assert cli.main(["predict", config, checkpoint, str(data / "images"), "--out-dir", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "predictions.json").read_text())
    agreed = []
    for index, image in enumerate(content["images"]):
        labels = np.asarray(Image.open(tmp_path / image["map"]))
        shares = [(labels == label).mean() for label in range(3)]
        assert np.allclose(shares, list(image["fractions"].values()))
        agreed.append((labels == np.asarray(Image.open(data / "maps" / f"{index}.png"))).mean())
    assert np.mean(agreed) > 0.8


def test_images_of_any_size_and_of_the_same_name(trained, tmp_path):
    files = []
    for folder, size, mode in (("a", (97, 61), "RGB"), ("b", (40, 130), "L"), ("c", (64, 64), "RGBA")):
        (tmp_path / folder).mkdir()
        files.append(tmp_path / folder / "x.png")
        Image.new(mode, size, 100 if mode == "L" else COLOURS["red"]).save(files[-1])
    config, checkpoint = trained["detector"]
    pictures = predict(load_config(config), checkpoint, files, tmp_path / "out")
    assert [path.name for path in pictures] == ["x.jpg", "x-2.jpg", "x-3.jpg"]
    assert [Image.open(path).size for path in pictures] == [(97, 61), (40, 130), (64, 64)]


def test_weights_without_meta_take_the_classes_of_the_config(trained, data, tmp_path):
    import torch

    from attnzoo.tools.running.checkpoint import load_checkpoint

    config, checkpoint = trained["detector"]
    torch.save(load_checkpoint(checkpoint)["state_dict"], tmp_path / "bare.pth")
    predict(load_config(config), tmp_path / "bare.pth", [data / "images" / "0.jpg"], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["classes"] == list(COLOURS)


def test_config_that_has_no_test_data(trained, data, tmp_path, capsys):
    config, checkpoint = trained["detector"]
    shutil.copy(config, tmp_path / "bare.py")
    with (tmp_path / "bare.py").open("a") as file:
        file.write("\ntest_dataloader = None")
    arguments = ["predict", str(tmp_path / "bare.py"), str(checkpoint), str(data / "images"), "--out-dir"]
    assert cli.main([*arguments, str(tmp_path / "out")]) == 2
    assert "test_dataloader is missing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def predicted(config, checkpoint, *arguments):
    return cli.main(["predict", str(config), str(checkpoint), *map(str, arguments)])


@pytest.fixture
def photos(data, tmp_path):
    """Two photographs in a folder."""
    (tmp_path / "photos").mkdir()
    for name in ("0.jpg", "1.jpg"):
        shutil.copy(data / "images" / name, tmp_path / "photos" / name)
    return tmp_path / "photos"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("way", ["same", "link to the folder", "link to a file", "hard link", "overwrite"])
def test_no_picture_takes_the_place_of_an_input(trained, photos, tmp_path, capsys, way):
    out, more = photos, []
    if way == "link to the folder":
        (tmp_path / "other").symlink_to(photos)
        out = tmp_path / "other"
    elif way in ("link to a file", "hard link"):
        out = tmp_path / "out"
        out.mkdir()
        (os.symlink if way == "link to a file" else os.link)(photos / "1.jpg", out / "1.jpg")
    elif way == "overwrite":
        more = ["--overwrite"]
    before = contents(photos), contents(out)
    assert predicted(*trained["detector"], photos, "--out-dir", out, *more) == 2
    message = capsys.readouterr().err
    assert "would be written over" in message and ".jpg" in message and message.count("\n") == 1
    assert (contents(photos), contents(out)) == before


def test_what_is_in_the_way_is_kept_and_earlier_outputs_are_replaced(trained, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert predicted(*trained["segmentor"], photos, "--out-dir", out) == 0
    first = contents(out)
    assert predicted(*trained["segmentor"], photos, "--out-dir", out) == 0
    assert contents(out) == first
    (out / "predictions.json").unlink()  # as an interrupted run leaves it
    assert predicted(*trained["segmentor"], photos, "--out-dir", out) == 0
    for name in ("1.jpg", "1_labels.png", "predictions.json"):
        mine = b"[]" if name.endswith("json") else (photos / "0.jpg").read_bytes()
        (out / name).write_bytes(mine)
        before = contents(out)
        capsys.readouterr()
        assert predicted(*trained["segmentor"], photos, "--out-dir", out) == 2
        message = capsys.readouterr().err
        assert f"{out / name}: in the way, and not written by attnzoo predict" in message
        assert contents(out) == before
        assert predicted(*trained["segmentor"], photos, "--out-dir", out, "--overwrite") == 0
        assert contents(out) == first


def test_config_and_checkpoint_are_not_written_over(trained, photos, tmp_path, capsys):
    config, checkpoint = trained["detector"]
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(config, out / "0.py")
    shutil.copy(checkpoint, out / "0.jpg")
    assert predicted(out / "0.py", out / "0.jpg", photos, "--out-dir", out, "--overwrite") == 2
    assert f"would be written over {out / '0.jpg'}" in capsys.readouterr().err
    (out / "0.jpg").unlink()
    content = load_config(config).to_dict()
    (out / "predictions.json").write_text(json.dumps(content))
    assert predicted(out / "predictions.json", checkpoint, photos, "--out-dir", out, "--overwrite") == 2
    assert json.loads((out / "predictions.json").read_text()) == json.loads(json.dumps(content))


@pytest.mark.parametrize("stem", ["x" * 226, "é" * 113, "a b\n\x1b[31m", "-x", os.fsdecode(b"\xff\xfe")])
def test_names_of_any_kind(trained, photos, tmp_path, capsys, stem):
    os.rename(photos / "0.jpg", photos / f"{stem}.jpg")
    out = tmp_path / "out"
    assert predicted(*trained["segmentor"], photos, "--out-dir", out) == 0
    written = json.loads((out / "predictions.json").read_text())["images"]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["predictions.json", *(image[key] for image in written for key in ("picture", "map"))]
    )
    assert all(image["picture"][0] in stem + "1" for image in written)


def test_a_name_cannot_write_to_the_terminal(trained, photos, capsys):
    (photos / "\x1b[2J.jpg").write_text("no image")
    assert predicted(*trained["detector"], photos, "--out-dir", "out") == 2
    message = capsys.readouterr().err
    assert "\x1b" not in message and "\\x1b[2J.jpg: not an image" in message


@pytest.mark.parametrize(("size", "mode"), [((1, 3000), "RGB"), ((3000, 1), "L"), ((1, 1), "P"), ((70_000, 2), "RGB")])
@pytest.mark.parametrize("model", ["detector", "segmentor"])
def test_strips_give_a_picture_or_one_line(trained, tmp_path, capsys, model, size, mode):
    Image.new(mode, size).save(tmp_path / "x.png")
    out = tmp_path / "out"
    if predicted(*trained[model], tmp_path / "x.png", "--out-dir", out) == 0:
        with Image.open(out / "x.jpg") as picture:
            assert picture.size == size
    else:
        message = capsys.readouterr().err
        assert f"x.png: {size[0]} x {size[1]} pixels: " in message and message.count("\n") == 1
        assert not out.exists()


def test_the_model_sees_what_is_drawn(trained, tmp_path, monkeypatch):
    """A turned photograph: the pixels of the pipeline and of the picture are the same read."""
    seen = []
    monkeypatch.setattr(prediction, "drawn", lambda image, sample, *rest: seen.append((image, sample)) or (image, {}))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), COLOURS["red"]).save(tmp_path / "x.jpg", exif=exif)
    config, checkpoint = trained["detector"]
    predict(load_config(config), checkpoint, [tmp_path / "x.jpg"], tmp_path / "out")
    ((image, sample),) = seen
    assert image.shape == (40, 20, 3) and sample.ori_shape == (40, 20)
    assert sample.img_path == str(tmp_path / "x.jpg")


def test_more_classes_than_names(trained, photos, tmp_path, capsys):
    import torch

    from attnzoo.tools.running.checkpoint import load_checkpoint

    config, checkpoint = trained["detector"]
    for classes, said in ((("red",), "class 1, but the names are those of 1"), (7, "must be a list of names, got 7")):
        content = load_checkpoint(checkpoint)
        content["meta"]["dataset_meta"] = {"classes": classes}
        torch.save(content, tmp_path / "x.pth")
        assert predicted(config, tmp_path / "x.pth", photos, "--out-dir", tmp_path / "out", "--score", 0) == 2
        assert said in capsys.readouterr().err
