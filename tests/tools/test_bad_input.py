"""What a user can get wrong: one line that says what, exit code 2, and not a file written or changed."""

import json
import shutil

import interpreters
import numpy as np
import pytest
import torch
from loopback import served
from mmdet.datasets import CocoDataset
from PIL import Image
from pycocotools.mask import encode
from tools_helpers import ENVIRONMENT, MakesFolder, attnzoo, listing, refused

from attnzoo.tools import cli
from attnzoo.tools.common.errors import UserError
from attnzoo.tools.config.loading import load_config
from attnzoo.tools.data.checks import check_data
from attnzoo.tools.running.channels import check_classes
from attnzoo.tools.running.checkpoint import load_checkpoint
from attnzoo.tools.running.engine import build_model


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "no command 'trian'; did you mean train?"),
        (["info", "van_b9"], "no model 'van_b9'; did you mean van_b"),
        (["info", "biformer-tiny"], "did you mean biformer_tiny"),
        (["info", "resnet_18"], "did you mean resnet18"),
        (["list", "van_x*"], "no model matches 'van_x*'"),
        (["train", "absent.py"], "no config 'absent.py'"),
        (["train", "detector.py", "--cfg-options", "lr"], "'lr' is not of the form key=value"),
        (["train", "detector.py", "--cfg-options", "model.type=RetinaNot"], "RetinaNot"),
        (["train", "detector.py", "--cfg-options", "model.backbone.model_name=van_b9"], "van_b9"),
        (["train", "detector.py", "--cfg-options", "train_cfg.type=NoLoop"], "NoLoop"),
        (["train", "detector.py", "--cfg-options", "optim_wrapper.optimizer.type=Adamant"], "Adamant"),
        (["train", "detector.py", "--cfg-options", "train_dataloader=None"], "train_dataloader is missing"),
        (["train", "detector.py", "--resume", "absent.pth"], "no checkpoint 'absent.pth'"),
        (["test", "detector.py", "absent.pth"], "no checkpoint 'absent.pth'"),
        (["predict", "detector.py", "absent.pth", "data/images"], "no checkpoint 'absent.pth'"),
        (["predict", "detector.py", "absent.pth", "absent.jpg"], "no image 'absent.jpg'"),
        (["predict", "detector.py", "absent.pth", "."], "no images in ."),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, list) else "",
)
def test_wrong_names(place, capsys, arguments, expected):
    assert expected in refused(capsys, *arguments, folder=place)


@pytest.mark.parametrize("command", [["train"], ["train", "a.py", "--lunch"], ["train", "a.py", "--launch", "pytorch"]])
def test_wrong_arguments_exit_with_2(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(command)
    assert stop.value.code == 2
    assert "usage: attnzoo train" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["mmengine", "mmcv", "mmdet"])
def test_missing_libraries_are_named_with_the_extra(place, missing):
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from attnzoo.tools.cli import main\n"
        "assert main(['list', 'van_b0']) == main(['info', 'van_b0']) == 0\n"
        "sys.exit(main(['train', 'detector.py']))"
    )
    before = listing(place)
    done = interpreters.run(code, env=ENVIRONMENT)
    assert done.returncode == 2, done.stderr
    assert f"needs {missing}" in done.stderr
    assert "pip install 'attnzoo[mm]'" in done.stderr
    assert done.stderr.count("\n") == 1
    assert listing(place) == before


def test_an_error_in_a_process_of_its_own(place):
    done = attnzoo("train", "absent.py", cwd=place)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("attnzoo: error: no config 'absent.py'")


@pytest.mark.parametrize("command", ["train", "test", "predict"])
@pytest.mark.parametrize("fault", ["truncated", "hostile", "other"])
def test_bad_checkpoints(trained, place, capsys, command, fault):
    path, mark = place / "bad.pth", place / "ran"
    honest = trained["segmentor"][1]
    expected = {"truncated": "truncated", "hostile": "mkdir", "other": "not a checkpoint of this RetinaNet"}[fault]
    if fault == "truncated":
        path.write_bytes(honest.read_bytes()[:-1000])
    elif fault == "hostile":
        torch.save({**load_checkpoint(honest), "extra": MakesFolder(mark)}, path)
    else:
        shutil.copy(honest, path)
    arguments = {
        "train": ["train", "detector.py", "--resume", path],
        "test": ["test", "detector.py", path, "--out", "metrics.json"],
        "predict": ["predict", "detector.py", path, "data/images"],
    }[command]
    message = refused(capsys, *arguments, folder=place)
    assert expected in message
    assert "bad.pth" in message
    assert not mark.exists()


def test_hostile_start_weights(place, capsys):
    torch.save({"state_dict": {"a": torch.ones(1)}, "extra": MakesFolder(place / "ran")}, place / "bad.pth")
    message = refused(capsys, "train", "detector.py", "--cfg-options", "load_from=bad.pth", folder=place)
    assert "bad.pth: refused" in message
    assert not (place / "ran").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda state: {f"net.{key}": value for key, value in state.items()}, "not one of its"),
        (lambda state: {key: value.to(torch.int32) for key, value in state.items()}, "is int32, where the model has"),
        (lambda state: {key: value * torch.nan for key, value in state.items()}, "weights must be finite"),
    ],
    ids=["nothing fits", "whole numbers", "nan"],
)
def test_start_weights_that_do_not_serve(trained, place, capsys, change, expected):
    state = load_checkpoint(trained["detector"][1])["state_dict"]
    torch.save({"state_dict": change(state)}, place / "bad.pth")
    message = refused(capsys, "train", "detector.py", "--cfg-options", "load_from=bad.pth", folder=place)
    assert message.startswith("attnzoo: error: bad.pth: ") and expected in message


def test_start_weights_may_fit_in_part(trained, place):
    state = load_checkpoint(trained["detector"][1])["state_dict"]
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items() if "backbone" in key}}, "a.pth")
    options = ["load_from=a.pth", "train_cfg.max_epochs=1", "optim_wrapper.optimizer.lr=0."]
    assert cli.main(["train", "detector.py", "--work-dir", "a", "--cfg-options", *options]) == 0
    after = load_checkpoint(place / "a" / "epoch_1.pth")["state_dict"]
    same = [torch.equal(after[key], state[key]) for key in state if key.endswith("weight")]
    assert any(same) and not all(same)


@pytest.fixture
def site(place, tmp_path_factory, monkeypatch):
    """A server's folder and its address; PyTorch's folder of checkpoints is empty and not in `place`."""
    folder = tmp_path_factory.mktemp("site")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("home")))
    with served(folder) as address:
        yield folder, address
    assert not (place / "ran").exists(), "a checkpoint ran code"


@pytest.mark.parametrize("fault", ["hostile", "truncated", "absent"])
@pytest.mark.parametrize("command", ["load_from", "resume", "init_cfg", "test", "predict"])
def test_bad_checkpoints_at_an_address(trained, place, site, capsys, command, fault):
    folder, address = site
    honest = trained["detector"][1]
    if fault == "hostile":
        torch.save({**load_checkpoint(honest), "extra": MakesFolder(place / "ran")}, folder / "bad.pth")
    elif fault == "truncated":
        (folder / "bad.pth").write_bytes(honest.read_bytes()[:-1000])
    url = f"{address}/bad.pth"
    arguments = {
        "load_from": ["train", "detector.py", "--cfg-options", f"load_from={url}"],
        "resume": ["train", "detector.py", "--resume", url],
        "init_cfg": [
            "train", "detector.py", "--cfg-options",
            "model.init_cfg.type=Pretrained", f"model.init_cfg.checkpoint={url}",
        ],
        "test": ["test", "detector.py", url],
        "predict": ["predict", "detector.py", url, "data/images"],
    }[command]  # fmt: skip
    message = refused(capsys, *arguments, folder=place)
    assert url in message
    assert {"hostile": "mkdir", "truncated": "truncated", "absent": "404"}[fault] in message


def test_good_checkpoints_at_an_address(trained, place, site):
    folder, address = site
    shutil.copy(trained["detector"][1], folder / "good.pth")
    url = f"{address}/good.pth"
    options = ["--cfg-options", "train_cfg.max_epochs=9", "val_evaluator=None", "val_dataloader=None", "val_cfg=None"]
    assert cli.main(["train", "detector.py", "--work-dir", "a", "--resume", url, *options]) == 0
    assert load_checkpoint(place / "a" / "epoch_9.pth")["meta"]["epoch"] == 9
    assert cli.main(["test", "detector.py", url, "--work-dir", "b", "--out", "metrics.json"]) == 0


@pytest.mark.parametrize("command", ["test", "predict", "export"])
def test_weights_of_nan(trained, place, capsys, command):
    content = load_checkpoint(trained["detector"][1])
    key = next(key for key in content["state_dict"] if key.endswith("weight"))
    content["state_dict"][key].fill_(torch.nan)
    torch.save(content, place / "bad.pth")
    arguments = {
        "test": ["test", "detector.py", "bad.pth"],
        "predict": ["predict", "detector.py", "bad.pth", "data/images"],
        "export": ["export", "detector.py", "bad.pth", "--out", "a.onnx"],
    }[command]
    before = listing(place)
    assert cli.main(arguments) == 2
    # The steps of an export are told before.
    message = capsys.readouterr().err.splitlines()[-1]
    assert message == f"attnzoo: error: bad.pth: {key!r} holds NaN: weights must be finite"
    assert listing(place) == before


@pytest.mark.parametrize("content", ["text", "half", "empty"])
def test_an_image_that_is_not_one(trained, place, capsys, content):
    config, checkpoint = trained["detector"]
    bad = place / "data" / "images" / "bad.jpg"
    whole = (place / "data" / "images" / "0.jpg").read_bytes()
    bad.write_bytes({"text": b"not an image", "half": whole[: len(whole) // 2], "empty": b""}[content])
    message = refused(capsys, "predict", config, checkpoint, "data/images", folder=place)
    assert "bad.jpg: not an image that can be read" in message


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


@pytest.mark.parametrize(
    ("config", "option", "expected"),
    [
        ("detector", "model.backbone.model_name=resnet_18", ["model.backbone: ", "did you mean", "resnet18"]),
        ("detector", "model.backbone.out_indices=(2,7)", ["model.backbone: ", "(2, 7)", "from 0 to 4 are allowed"]),
        ("detector", "model.neck.in_channels=[48,96]", ["model.neck.in_channels=[48, 96]: allowed is [48, 192]"]),
        ("detector", "model.bbox_head.in_channels=32", ["model.bbox_head.in_channels=32: allowed is 16", "model.neck"]),
        (
            "segmentor",
            "model.decode_head.in_channels=[32,64]",
            ["model.decode_head.in_channels", "allowed is [32, 48]"],
        ),
        ("segmentor", "model.decode_head.in_index=[0,5]", ["model.decode_head.in_index", "0 to 1 are allowed"]),
        ("detector", "model.bbox_head.num_classes=1", ["bbox_head (RetinaHead) has num_classes=1", "has 2 classes"]),
    ],
)
def test_a_model_that_does_not_fit(place, capsys, config, option, expected):
    message = refused(capsys, "train", f"{config}.py", "--cfg-options", option, folder=place)
    assert all(part in message for part in [f"{config}.py: ", *expected])


class Merging(CocoDataset):
    """Data of the user's own, whose labels only its code knows."""

    def parse_data_info(self, raw_data_info):
        return super().parse_data_info(raw_data_info)


class Named(CocoDataset):
    METAINFO = dict(classes=("red", "blue", "green"))


def told_of_classes(cfg, capsys, modes=("train", "val")):
    """What is refused, or else what is warned of."""
    with torch.device("meta"):
        model = build_model(cfg)
    capsys.readouterr()
    try:
        check_classes(cfg, model, modes)
    except UserError as error:
        return f"error: {error}"
    return capsys.readouterr().err


TOO_FEW = "error: detector.py: bbox_head (RetinaHead) has num_classes=1, but train_dataloader.dataset has 2 classes"
HOOK = [dict(type="mmdet.NumClassCheckHook")]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, ""),
        ({"model.bbox_head.num_classes": 1}, TOO_FEW),
        ({"model.bbox_head.num_classes": 3}, "attnzoo: warning: " + TOO_FEW[7:].replace("=1", "=3") + "\n"),
        ({"model.bbox_head.num_classes": 3, "custom_hooks": HOOK}, TOO_FEW.replace("=1", "=3")),
        ({"model.bbox_head.num_classes": 1, "train_dataloader.dataset.type": Merging}, "attnzoo: warning: detector.py"),
        ({"train_dataloader.dataset.type": Named}, ""),  # `metainfo` of the config has two
        ({"train_dataloader.dataset.type": Named, "train_dataloader.dataset.metainfo": None}, "error: detector.py: bb"),
        ({"train_dataloader.dataset.pipeline.0.type": ".x"}, "error: detector.py: train_dataloader.dataset: TypeErr"),
        ({"model.bbox_head.num_classes": 1, "train_dataloader": None}, "attnzoo: warning: detector.py: bbox_h"),
    ],
)  # fmt: skip
def test_classes_of_a_detector(place, capsys, options, said):
    told = told_of_classes(load_config("detector.py", options), capsys)
    assert told.startswith(said) if said else told == ""
    assert told.count("\n") <= 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            dict(num_classes=2),
            "error: segmentor.py: decode_head (FPNHead) has num_classes=2, but train_dataloader.data",
        ),
        (dict(num_classes=9), ""),
        (dict(num_classes=2, out_channels=1), "error: "),
        (dict(num_classes=2, ignore_index=2), ""),
        (dict(num_classes=2, ignore_index=1), "error: "),
    ],
)
def test_classes_of_a_segmentor(place, capsys, options, said):
    cfg = load_config("segmentor.py", {f"model.decode_head.{key}": value for key, value in options.items()})
    told = told_of_classes(cfg, capsys)
    assert told.startswith(said) if said else told == ""
    if said:
        cfg.train_dataloader.dataset.reduce_zero_label = True
        assert told_of_classes(cfg, capsys, ("train",)) == ""


@pytest.mark.parametrize(
    "name",
    ["mmdet::guided_anchoring/ga-rpn_r50_fpn_1x_coco.py", "mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py",
     "mmdet::htc/htc_r50_fpn_1x_coco.py", "mmseg::stdc/stdc1_4xb12-80k_cityscapes-512x1024.py"],
)  # fmt: skip
def test_heads_of_other_labels(tmp_path, capsys, name):
    (tmp_path / "own.py").write_text(f"_base_ = {name!r}\n")
    assert told_of_classes(load_config(tmp_path / "own.py"), capsys, ("train", "val", "test")) == ""


def test_test_data_is_checked_by_test(trained, place, capsys):
    remove_images(place / "data")
    message = refused(capsys, "test", "detector.py", trained["detector"][1], folder=place)
    assert "test_dataloader.dataset.ann_file: 2 of the 8 images" in message


def test_unwritable_folder_leaves_nothing(trained, place, capsys):
    config, checkpoint = trained["detector"]
    (place / "file").write_text("in the way")
    Image.new("RGB", (64, 64)).save(place / "x.png")
    assert "file/out" in refused(capsys, "predict", config, checkpoint, "x.png", "--out-dir", "file/out", folder=place)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("test_evaluator.type=CocoMetrc", "the run cannot be built: KeyError: 'CocoMetrc is not in the"),
        ("test_evaluator.metric=bbx", "bbx"),
        ("test_evaluator._scope_=5", "test_evaluator._scope_: the name of a library is needed, got int 5"),
        ("test_dataloader.sampler.type=DefaultSamplr", "DefaultSamplr"),
        ("test_dataloader.dataset.type=CocoDatase", "CocoDatase"),
        ("test_dataloader.dataset._scope_=5", "test_dataloader.dataset._scope_: the name of a library is needed"),
        ("test_dataloader.dataset.data_root=5", "test_dataloader.dataset.data_root: a path is needed, got 5"),
        ("test_dataloader.dataset.pipeline.1.type=Resiz", "Resiz"),
        ("test_dataloader.batch_size=-1", "batch_size"),
        ("test_dataloader.batch_size=None", "detector.py: test_dataloader.batch_size: a number is needed, got None"),
        ("test_dataloader.sampler=abc", "detector.py: test_dataloader.sampler: a dict is needed, got str 'abc'"),
        ("test_dataloader.dataset.pipeline=None", "test_dataloader.dataset.pipeline: a list of steps is needed, got"),
        ("test_dataloader.dataset.metainfo.classes=abc", "test_dataloader.dataset.metainfo.classes: a list of names, "),
        ("test_dataloader.num_workers=-1", "num_workers"),
        ("test_cfg.type=TestLop", "TestLop"),
        ("model=None", "detector.py: model is missing"),
    ],
)
def test_a_config_that_cannot_be_tested(trained, place, capsys, option, expected):
    message = refused(capsys, "test", "detector.py", trained["detector"][1], "--cfg-options", option, folder=place)
    assert expected in message


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("test_dataloader.dataset.pipeline.1.type=Resiz", "detector.py: test_dataloader.dataset.pipeline cannot be"),
        (
            "test_dataloader.dataset.pipeline=5",
            "test_dataloader.dataset.pipeline: a list of steps is needed, got int 5",
        ),
        ("test_dataloader.dataset.pipeline=[5]", "dataset.pipeline[0]: a dict with a type is needed, got int 5"),
        ("test_dataloader.dataset.pipeline=None", "test_dataloader.dataset.pipeline is missing"),
        ("test_dataloader.dataset=None", "test_dataloader.dataset.pipeline is missing"),
        ("test_dataloader.dataset.type=CocoDatase", "test_dataloader.dataset cannot be built, which names the classes"),
        ("test_dataloader.dataset.nonsense=1", "nonsense"),
        ("model=None", "detector.py: model is missing"),
    ],
)
def test_a_config_that_cannot_predict(trained, place, capsys, option, expected):
    # Without names of classes, so that those of the data set are needed.
    torch.save({"state_dict": load_checkpoint(trained["detector"][1])["state_dict"]}, "bare.pth")
    message = refused(
        capsys, "predict", "detector.py", "bare.pth", "data/images", "--cfg-options", option, folder=place
    )
    assert expected in message


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("model=None", "detector.py: model is missing"),
        ("test_dataloader.dataset.pipeline=abc", "dataset.pipeline: a list of steps is needed, got str 'abc'"),
        ("test_dataloader.dataset.pipeline=[5]", "dataset.pipeline[0]: a dict with a type is needed, got int 5"),
        ("test_dataloader.dataset.pipeline.1.scale=(a,b)", "scale of Resize: two numbers of pixels are needed, got"),
    ],
)
def test_a_config_that_cannot_be_exported(place, capsys, option, expected):
    assert cli.main(["export", "detector.py", "absent.pth", "--out", "a.onnx", "--cfg-options", option]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("attnzoo: error: ") and expected in message


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("model=None", "detector.py: model is missing"),
        ("optim_wrapper.optimizer=None", "the run cannot be built"),
        ("train_dataloader.dataset.data_root=5", "train_dataloader.dataset.data_root: a path is needed, got 5"),
        ("train_dataloader.dataset._scope_=5", "train_dataloader.dataset._scope_: the name of a library is needed"),
        ("val_evaluator._scope_=5", "val_evaluator._scope_: the name of a library is needed, got int 5"),
    ],
)
def test_a_config_that_cannot_be_trained(place, capsys, option, expected):
    assert expected in refused(capsys, "train", "detector.py", "--cfg-options", option, folder=place)


@pytest.mark.parametrize("metainfo", ["dict(palette=[(1, 2, 3)] * 80)", "dict(clases=('red', 'blue'))"])
def test_metainfo_without_classes_leaves_those_of_the_data_set(place, capsys, metainfo):
    (place / "detector.py").open("a").write(f"\ntrain_dataloader['dataset']['metainfo'] = {metainfo}\n")
    message = refused(capsys, "train", "detector.py", folder=place)
    assert "train.json: categories: 'red', 'blue': allowed is names among the classes of the data set" in message
    assert "'person', 'bicycle'" in message


@pytest.mark.parametrize(
    "stored", [{"classes": {"a"}}, {"classes": torch.zeros(2)}, {"classes": "redblue"}], ids=lambda one: str(one)[:20]
)
@pytest.mark.parametrize("command", ["predict", "export"])
def test_names_of_classes_in_a_checkpoint_that_are_none(trained, place, capsys, command, stored):
    state = load_checkpoint(trained["detector"][1])["state_dict"]
    torch.save({"state_dict": state, "meta": {"dataset_meta": stored}}, "odd.pth")
    more = ["data/images"] if command == "predict" else ["--out", "a.onnx"]
    assert cli.main([command, "detector.py", "odd.pth", *more]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("attnzoo: error: odd.pth: the classes of its data must be a list of names, got ")


def test_a_palette_in_a_checkpoint_that_is_none(trained, place):
    content = load_checkpoint(trained["detector"][1])
    meta = {"classes": ["red", "blue"], "palette": [(float("inf"), 0, 0), (0, 0, 0)]}
    torch.save({"state_dict": content["state_dict"], "meta": {"dataset_meta": meta}}, "odd.pth")
    assert cli.main(["predict", "detector.py", "odd.pth", "data/images/0.jpg", "--score", "0"]) == 0


def test_what_is_none_in_a_config_is_as_if_it_were_not_there(place):
    names = ("custom_hooks", "default_hooks", "randomness", "env_cfg", "custom_imports", "find_unused_parameters")
    (place / "detector.py").open("a").write("".join(f"\n{name} = None" for name in names))
    options = ["train_cfg.max_epochs=1", "train_cfg.val_begin=9"]
    assert cli.main(["train", "detector.py", "--work-dir", "work", "--cfg-options", *options]) == 0
    assert (place / "work" / "epoch_1.pth").is_file()
