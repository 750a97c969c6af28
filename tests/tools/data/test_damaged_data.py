"""Data sets with a damage: one line that says what and where, before anything is written."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools.mask import encode
from tools_helpers import refused

from attnzoo.tools.config.loading import load_config
from attnzoo.tools.data.checks import check_data


def remove_images(data):
    for name in ("2.jpg", "5.jpg"):
        (data / "images" / name).unlink()
    return "2 of the 8 images", "2.jpg, 5.jpg", "train_dataloader.dataset.ann_file"


def remove_annotations(data):
    (data / "train.json").unlink()
    return "train_dataloader.dataset.ann_file: no file", "train.json"


def cut_annotations(data):
    content = (data / "train.json").read_text()
    (data / "train.json").write_text(content[: len(content) // 2])
    return "train_dataloader.dataset.ann_file", "is not a COCO file"


def drop_names(data):
    content = json.loads((data / "train.json").read_text())
    del content["images"][3]["file_name"]
    (data / "train.json").write_text(json.dumps(content))
    return "is not a COCO file", "file_name"


def remove_folder(data):
    shutil.rmtree(data / "images")
    return ("train_dataloader.dataset.data_prefix.img: no folder",)


def change_coco(part, index, key, value):
    """A damage: one entry of a COCO file gets another value, or loses it where that is None."""

    def damage(data):
        content = json.loads((data / "train.json").read_text())
        if value is None:
            del content[part][index][key]
        else:
            content[part][index][key] = value
        (data / "train.json").write_text(json.dumps(content))
        return "train_dataloader.dataset.ann_file", "train.json", f"{part}[{index}].{key}: {value}", "allowed is "

    return damage


def rename_categories(data):
    content = json.loads((data / "train.json").read_text())
    for category in content["categories"]:
        category["name"] = category["name"].upper()
    (data / "train.json").write_text(json.dumps(content))
    return "train.json", "'RED', 'BLUE'", "allowed is names among the classes of the data set: 'red', 'blue'"


def swap_categories(data):
    content = json.loads((data / "train.json").read_text())
    content["categories"].reverse()
    (data / "train.json").write_text(json.dumps(content))
    return "train.json: categories: 'blue', 'red': allowed is the order of the data set's classes", "'red', 'blue'"


def nest_annotations(data):
    (data / "train.json").write_text('{"images": ' + "[" * 100_000)
    return "train_dataloader.dataset.ann_file", "train.json", "is not a COCO file"


DAMAGES = [
    remove_images,
    remove_annotations,
    cut_annotations,
    drop_names,
    remove_folder,
    rename_categories,
    change_coco("images", 2, "width", 0),
    change_coco("images", 2, "id", None),
    change_coco("categories", 1, "name", None),
    change_coco("annotations", 3, "category_id", 7),
    change_coco("annotations", 3, "bbox", [1, 2, 3]),
    change_coco("annotations", 3, "bbox", [1, 2, float("nan"), 4]),
    change_coco("annotations", 3, "area", "large"),
    change_coco("annotations", 3, "area", float("nan")),
    change_coco("annotations", 3, "id", 3),
    change_coco("annotations", 3, "id", [4]),
    change_coco("annotations", 3, "image_id", [1]),
    change_coco("annotations", 3, "iscrowd", "no"),
    change_coco("annotations", 3, "bbox", [-900, 2, 910, 4]),
    change_coco("annotations", 3, "bbox", [1, 2, 1e308, 4]),
    change_coco("images", 2, "id", 1),
    change_coco("images", 2, "id", {"a": 1}),
    change_coco("images", 2, "height", 2**31),
    change_coco("images", 2, "file_name", "../images/2.jpg"),
    change_coco("images", 2, "file_name", "/etc/hostname"),
    change_coco("images", 2, "file_name", 7),
    change_coco("categories", 1, "id", 1),
    change_coco("categories", 1, "name", ["blue"]),
    change_coco("categories", 1, "name", "red"),
    nest_annotations,
    swap_categories,
]


def test_what_data_sets_have_is_accepted(place):
    """As in COCO, LVIS, Objects365 and the exports of labelling programs: none of it is a mistake."""
    content = json.loads((place / "data" / "train.json").read_text())
    for annotation in content["annotations"]:
        annotation["category_id"] *= 7
    content["categories"] = [
        {"id": 7 * one["id"], "name": one["name"], "frequency": "r"} for one in content["categories"]
    ]
    content["categories"].append({"id": 99, "name": "unused", "supercategory": "none", "keypoints": []})
    content |= {"info": {"year": "2024"}, "licenses": [], "extra": [[[{}]]]}
    content["images"][0] |= {"coco_url": "http://x", "flickr_url": None, "neg_category_ids": [1], "date_captured": 0}
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 7]
    first, second, third, fourth, fifth, *_ = content["annotations"]
    x, y, w, h = first["bbox"]
    first |= {"bbox": [-3.5, y, x + w + 3.5, h], "id": 0, "attributes": {"occluded": False}, "isfake": 0}
    second |= {"bbox": [10, 10, 0, 5], "area": 0, "segmentation": []}
    third |= {"bbox": [64, 60, 0.4, 6.5], "area": 2.6}
    fourth |= {"iscrowd": 1, "segmentation": {"size": [64, 64], "counts": [100, 50, 64 * 64 - 150]}}
    pixels = np.zeros((64, 64), np.uint8, order="F")
    pixels[3:9, 5:30] = 1
    code = encode(pixels)
    fifth |= {"ignore": 0, "segmentation": {"size": code["size"], "counts": code["counts"].decode()}}
    (place / "data" / "train.json").write_text(json.dumps(content))
    config = (place / "detector.py").read_text().replace("with_bbox=True", "with_bbox=True, with_mask=True")
    (place / "detector.py").write_text(config)
    cfg = load_config(place / "detector.py")
    check_data(cfg, ("train", "val", "test"))
    for image in content["images"]:
        image["id"] = f"{image['id']}.jpg"
    for annotation in content["annotations"]:
        annotation["image_id"] = f"{annotation['image_id']}.jpg"
    (place / "data" / "train.json").write_text(json.dumps(content))
    check_data(cfg, ("train", "val", "test"))


HOSTILE_MASKS = [
    {"size": [2**31, 2**31], "counts": "abc"},
    {"size": [64, 64], "counts": "P" * 40},
    {"size": [64, 64], "counts": [2**31, 2**31]},
    {"size": [64, 64], "counts": "0" * 40},
    [[0, 0, 2.0**200, 1, 5, 5]],
    [[0, 0, 2**200, 1, 5, 5]],
    [[0, 0, float("nan"), 1, 10**400, 5]],
    [[0.0, 0.0, 700.0, 0.0] * 20_000],
    [],
    None,
]


@pytest.mark.parametrize("mask", HOSTILE_MASKS, ids=lambda mask: str(mask)[:40])
def test_hostile_masks(place, capsys, mask):
    content = json.loads((place / "data" / "train.json").read_text())
    content["annotations"][5]["segmentation"] = mask
    (place / "data" / "train.json").write_text(json.dumps(content))
    config = (place / "detector.py").read_text()
    (place / "detector.py").write_text(config.replace("with_bbox=True", "with_bbox=True, with_mask=True"))
    message = refused(capsys, "train", "detector.py", folder=place)
    assert "train.json: annotations[5].segmentation" in message and "allowed is " in message


@pytest.mark.parametrize("command", ["train", "test"])
def test_files_of_metrics_are_checked_too(trained, place, capsys, command):
    content = json.loads((place / "data" / "train.json").read_text())
    content["annotations"][5]["id"] = content["annotations"][4]["id"]
    (place / "data" / "other.json").write_text(json.dumps(content))
    (place / "detector.py").open("a").write("\nval_evaluator['ann_file'] = 'data/other.json'")
    arguments = [command, "detector.py", *([trained["detector"][1]] if command == "test" else [])]
    message = refused(capsys, *arguments, folder=place)
    mode = "val" if command == "train" else "test"
    assert (
        f"{mode}_evaluator.ann_file: data/other.json: annotations[5].id: 5: allowed is an id that no other" in message
    )
    for annotation in content["annotations"]:
        del annotation["iscrowd"], annotation["id"]
        annotation["id"] = 1 + content["annotations"].index(annotation)
    (place / "data" / "other.json").write_text(json.dumps(content))
    assert "annotations[0].iscrowd: None: allowed is 0 or 1, without" in refused(capsys, *arguments, folder=place)
    (place / "data" / "other.json").unlink()
    assert f"{mode}_evaluator.ann_file: no file 'data/other.json'" in refused(capsys, *arguments, folder=place)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_coco_data(place, capsys, damage):
    expected = damage(place / "data")
    message = refused(capsys, "train", "detector.py", folder=place)
    assert all(part in message for part in expected)


def test_wrapped_data_sets_are_checked_too(place, capsys):
    (place / "detector.py").open("a").write(
        "\ntrain_dataloader['dataset'] = dict(type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset',"
        " datasets=[train_dataloader['dataset']]))"
    )
    remove_images(place / "data")
    message = refused(capsys, "train", "detector.py", folder=place)
    assert "train_dataloader.dataset.dataset.datasets[0].ann_file: 2 of the 8 images" in message


def test_missing_maps_of_a_segmentor(place, capsys):
    shutil.rmtree(place / "data" / "maps")
    message = refused(capsys, "train", "segmentor.py", folder=place)
    assert "train_dataloader.dataset.data_prefix.seg_map_path: no folder" in message


def test_masks_are_checked_where_they_are_needed(place, capsys):
    change_coco("annotations", 5, "segmentation", [[1, 2, 3, 4, 5, "6"]])(place / "data")
    config = (place / "detector.py").read_text()
    (place / "detector.py").write_text(config.replace("with_bbox=True", "with_bbox=True, with_mask=True"))
    message = refused(capsys, "train", "detector.py", folder=place)
    assert "train.json: annotations[5].segmentation: [[1, 2, 3, 4, 5, '6']]: allowed is polygons" in message


def remove_map(maps):
    (maps / "3.png").unlink()
    return "data_prefix.seg_map_path: 1 of 8 label maps are missing", "3.png"


def wrong_label(maps):
    labels = np.array(Image.open(maps / "3.png"))
    labels[0, 0] = 9
    Image.fromarray(labels).save(maps / "3.png")
    return "3.png: labels 9: allowed are 0 to 2, and 255 for no label", "train_dataloader.dataset"


def wrong_size(maps):
    Image.open(maps / "3.png").resize((32, 32)).save(maps / "3.png")
    return ("3.png: (32, 32): allowed is 64 x 64",)


def coloured(maps):
    Image.open(maps / "3.png").convert("RGB").save(maps / "3.png")
    return ("3.png: (64, 64, 3): allowed is 64 x 64, one label a pixel",)


def no_map(maps):
    (maps / "3.png").write_text("not an image")
    return ("3.png: no label map that can be read",)


@pytest.mark.parametrize("damage", [remove_map, wrong_label, wrong_size, coloured, no_map])
def test_damaged_label_maps(place, capsys, damage):
    expected = damage(place / "data" / "maps")
    message = refused(capsys, "train", "segmentor.py", folder=place)
    assert all(part in message for part in expected)


def test_test_data_is_checked_by_test(trained, place, capsys):
    remove_images(place / "data")
    message = refused(capsys, "test", "detector.py", trained["detector"][1], folder=place)
    assert "test_dataloader.dataset.ann_file: 2 of the 8 images" in message


@pytest.mark.parametrize("metainfo", ["dict(palette=[(1, 2, 3)] * 80)", "dict(clases=('red', 'blue'))"])
def test_metainfo_without_classes_leaves_those_of_the_data_set(place, capsys, metainfo):
    (place / "detector.py").open("a").write(f"\ntrain_dataloader['dataset']['metainfo'] = {metainfo}\n")
    message = refused(capsys, "train", "detector.py", folder=place)
    assert "train.json: categories: 'red', 'blue': allowed is names among the classes of the data set" in message
    assert "'person', 'bicycle'" in message
