"""Predict by the command line: pictures and their JSON."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools.mask import decode
from tools_helpers import COLOURS, attnzoo

from attnzoo.tools import cli
from attnzoo.tools.config import load_config
from attnzoo.tools.predict import _draw, predict
from attnzoo.tools.visualise import default_palette, draw_instances, draw_labels


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

    from attnzoo.tools.checkpoint import load_checkpoint

    config, checkpoint = trained["detector"]
    torch.save(load_checkpoint(checkpoint)["state_dict"], tmp_path / "bare.pth")
    predict(load_config(config), tmp_path / "bare.pth", [data / "images" / "0.jpg"], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["classes"] == list(COLOURS)


def test_masks_are_drawn_and_written():
    import torch
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    masks = torch.zeros(2, 50, 70, dtype=torch.bool)
    masks[0, 30:45, 40:60] = True
    boxes = torch.tensor([[40.0, 30, 60, 45], [0, 0, 9, 9]])
    found = InstanceData(bboxes=boxes, scores=torch.tensor([0.9, 0.1]), labels=torch.tensor([1, 0]), masks=masks)
    sample = DetDataSample(pred_instances=found)
    image = np.full((50, 70, 3), 100, np.uint8)
    picture, entry = _draw(image, sample, ["a", "b"], default_palette(2), 0.5)
    (instance,) = entry["instances"]
    assert (instance["name"], instance["box"]) == ("b", [40, 30, 60, 45])
    assert np.array_equal(decode(instance["mask"]), masks[0].numpy())
    assert (picture[43, 58] != image[43, 58]).any()
    assert (picture[5, 5] == image[5, 5]).all()


def test_panoptic_maps_are_drawn_by_class():
    import torch
    from mmdet.structures import DetDataSample
    from mmengine.structures import PixelData

    ids = torch.zeros(1, 40, 40, dtype=torch.long)
    ids[0, 20:] = 1 + 1000 * 3
    sample = DetDataSample(pred_panoptic_seg=PixelData(sem_seg=ids))
    _, entry = _draw(np.zeros((40, 40, 3), np.uint8), sample, ["a", "b"], default_palette(2), 0.5)
    assert entry["fractions"] == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize("size", [(1, 1), (7, 33), (300, 20)])
def test_drawing_fits_into_any_picture(size):
    image = np.full((*size, 3), 50, np.uint8)
    boxes = np.array([[-5.0, -5, 400, 400], [0.2, 0.2, 0.1, 0.1]])
    drawn = draw_instances(image, boxes, np.array([0, 1]), ["long name", "b"], default_palette(2), np.array([0.5, 1]))
    assert drawn.shape == image.shape
    outside = np.full(size, 255, np.uint8)
    assert np.array_equal(draw_labels(image, outside, ["a"], default_palette(1)), image)


def test_config_that_has_no_test_data(trained, data, tmp_path, capsys):
    config, checkpoint = trained["detector"]
    shutil.copy(config, tmp_path / "bare.py")
    with (tmp_path / "bare.py").open("a") as file:
        file.write("\ntest_dataloader = None")
    arguments = ["predict", str(tmp_path / "bare.py"), str(checkpoint), str(data / "images"), "--out-dir"]
    assert cli.main([*arguments, str(tmp_path / "out")]) == 2
    assert "test_dataloader is missing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
