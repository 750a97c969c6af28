"""Data that cannot be used: damaged files, lies about them, pickles; each one line that names the file."""

import json
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tools_helpers import SEGMENTOR, MakesFolder, make_data, refused, write_config

from attnzoo.tools import cli
from attnzoo.tools.annotations import CocoNeeds, check_coco
from attnzoo.tools.config import load_config
from attnzoo.tools.data import check_data
from attnzoo.tools.errors import UserError


def last_line(capsys):
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("attnzoo: error: ")
    return message


@pytest.mark.parametrize(("command", "workers"), [("train", 1), ("test", 0)])
def test_an_image_that_cannot_be_read_in_the_midst_of_a_run(trained, place, capsys, monkeypatch, command, workers):
    # As one of so many that not all are looked at before.
    monkeypatch.setattr("attnzoo.tools.annotations._HEADERS_READ", 1)
    (place / "data" / "images" / "5.jpg").write_bytes(b"")
    arguments = ["detector.py", *([str(trained["detector"][1])] if command == "test" else [])]
    options = [f"{one}_dataloader.num_workers={workers}" for one in ("train", "test")]
    assert cli.main([command, *arguments, "--work-dir", "work", "--cfg-options", *options]) == 2
    message = last_line(capsys)
    assert f"{place}/data/images/5.jpg: LoadImageFromFile fails: " in message and "--traceback shows more" in message


@pytest.mark.parametrize("content", [b"", b"not an image"])
def test_an_image_that_cannot_be_read_is_found_before(place, capsys, content):
    (place / "data" / "images" / "5.jpg").write_bytes(content)
    message = refused(capsys, "train", "detector.py", folder=place)
    assert "train_dataloader.dataset.ann_file" in message
    assert "train.json: images[5]: " in message and "5.jpg: not an image that can be read" in message


@pytest.mark.parametrize("size", [(100, 100), (64, 63)])
def test_sizes_that_are_not_those_of_the_images(place, capsys, size):
    content = json.loads((place / "data" / "train.json").read_text())
    content["images"][3] |= {"width": size[0], "height": size[1]}
    (place / "data" / "train.json").write_text(json.dumps(content))
    message = refused(capsys, "train", "detector.py", folder=place)
    assert f"train.json: images[3]: width and height {size[0]} x {size[1]}: allowed is 64 x 64, which " in message
    assert "images/3.jpg has" in message


@pytest.mark.parametrize("size", [(64, 48), (48, 64)])
def test_sizes_of_turned_images_may_be_either(place, size):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(place / "data" / "images" / "3.jpg", exif=exif)
    content = json.loads((place / "data" / "train.json").read_text())
    content["images"][3] |= {"width": size[0], "height": size[1]}
    (place / "data" / "train.json").write_text(json.dumps(content))
    check_data(load_config("detector.py"), ("train",))


@pytest.fixture
def many(tmp_path, monkeypatch):
    """More label maps than are read whole, and the second of them."""
    make_data(tmp_path / "data", 70, 32)
    config = SEGMENTOR.replace("(64, 64)", "(32, 32)")
    write_config(tmp_path / "segmentor.py", config, tmp_path / "data", 1)
    monkeypatch.chdir(tmp_path)
    return sorted((tmp_path / "data" / "maps").iterdir())[1]


def test_all_label_maps_have_the_size_of_their_images(many, tmp_path, capsys):
    Image.open(many).resize((32, 16)).save(many)
    message = refused(capsys, "train", "segmentor.py", folder=tmp_path)
    assert f"{many.name}: (16, 32): allowed is 32 x 32, one label a pixel" in message


def test_a_map_of_another_size_that_was_not_looked_at(many, trained, monkeypatch, capsys):
    monkeypatch.setattr("attnzoo.tools.annotations._HEADERS_READ", 64)
    Image.open(many).resize((32, 16)).save(many)
    assert cli.main(["train", "segmentor.py", "--work-dir", "work"]) == 2
    assert f"{many}: (16, 32): allowed is (32, 32), as " in last_line(capsys)


def test_a_bad_label_that_was_not_looked_at(many, trained, capsys):
    labels = np.array(Image.open(many))
    labels[0, :3] = 200, 255, 9
    Image.fromarray(labels).save(many)
    assert cli.main(["train", "segmentor.py", "--work-dir", "work"]) == 2
    assert f"{many}: labels 9, 200 as they are read: allowed are 0 to 2, and 255 for no label" in last_line(capsys)


def test_a_label_map_that_is_cut_off_and_was_not_looked_at(many, trained, capsys):
    # The header is whole.
    many.write_bytes(many.read_bytes()[:45])
    assert cli.main(["test", "segmentor.py", str(trained["segmentor"][1]), "--work-dir", "work"]) == 2
    assert f"{many}: LoadAnnotations fails: " in last_line(capsys)


@pytest.mark.parametrize("change", ["suffix", "backend", "empty backend"])
def test_coco_files_are_checked_whatever_their_name_and_local_backend(place, capsys, change):
    content = json.loads((place / "data" / "train.json").read_text())
    content["annotations"][3]["category_id"] = 7
    name = "train.coco" if change == "suffix" else "train.json"
    (place / "data" / name).write_text(json.dumps(content))
    more = {"suffix": f"ann_file='{name}'", "backend": "backend_args=dict(backend='local')"}.get(
        change, "backend_args={}"
    )
    (place / "detector.py").open("a").write(f"\ntrain_dataloader['dataset'].update({more})\n")
    message = refused(capsys, "train", "detector.py", folder=place)
    assert f"{name}: annotations[3].category_id: 7: allowed is" in message
    # The validation's, which may read the same file, come later.
    assert "train_dataloader.dataset.ann_file" in message


def test_many_categories_are_checked_in_no_time():
    categories = [{"id": index, "name": f"c{index}"} for index in range(20_000)]
    content = {"images": [], "annotations": [], "categories": categories}
    started = time.process_time()
    check_coco("x", Path("x"), content, CocoNeeds(classes=tuple(one["name"] for one in categories), ordered=True))
    assert time.process_time() - started < 1


@pytest.mark.parametrize("suffix", ["pkl", "pickle", "yaml"])
@pytest.mark.parametrize("field", ["ann_file", "proposal_file"])
def test_annotations_run_nothing(place, capsys, field, suffix):
    path, mark = place / "data" / f"hostile.{suffix}", place / "ran"
    if suffix == "yaml":
        path.write_text(f"x: !!python/object/apply:os.mkdir ['{mark}']\n")
    else:
        path.write_bytes(pickle.dumps(MakesFolder(mark)))
    kind = "type='BaseDetDataset', " if field == "ann_file" else ""
    (place / "detector.py").open("a").write(f"\ntrain_dataloader['dataset'].update({kind}{field}='{path}')\n")
    message = refused(capsys, "train", "detector.py", folder=place)
    said = (
        "ConstructorError" if suffix == "yaml" else f"{field}: '{path}': a pickle is refused, as code in it would run"
    )
    assert said in message
    assert not mark.exists()


def test_a_pickle_that_the_class_of_a_data_set_names_is_not_read(place, capsys):
    (place / "data" / "hostile.pkl").write_bytes(pickle.dumps(MakesFolder(place / "ran")))
    (place / "own.py").write_text(
        "from mmdet.datasets import CocoDataset\nfrom mmdet.registry import DATASETS\nfrom mmengine import load\n\n\n"
        "@DATASETS.register_module(force=True)\nclass Reads(CocoDataset):\n    def load_data_list(self):\n"
        "        load('data/hostile.pkl')\n        return super().load_data_list()\n"
    )
    text = (place / "detector.py").read_text().replace('"attnzoo.heads"', '"attnzoo.heads", "own"')
    (place / "detector.py").write_text(text.replace('"CocoDataset"', '"Reads"'))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(place))
        message = refused(capsys, "train", "detector.py", folder=place)
    assert "a file of the data is a pickle, which is refused: code in it would run" in message
    assert not (place / "ran").exists()


@pytest.fixture
def panoptic(place):
    """The detector's data as panoptic ones; gives the config and the folder of the maps."""
    content = json.loads((place / "data" / "train.json").read_text())
    entries = []
    (place / "data" / "segments").mkdir()
    for image in content["images"]:
        own = [one for one in content["annotations"] if one["image_id"] == image["id"]]
        pixels = np.zeros((64, 64, 3), np.uint8)
        for one in own:
            x, y, w, h = one["bbox"]
            pixels[y : y + h, x : x + w] = one["id"], 1, 0
            one["id"] += 256
        name = f"{image['id']}.png"
        Image.fromarray(pixels).save(place / "data" / "segments" / name)
        entries.append({"image_id": image["id"], "file_name": name, "segments_info": own})
    content["annotations"] = entries
    for one in content["categories"]:
        one["isthing"] = 1
    (place / "data" / "train.json").write_text(json.dumps(content))
    cfg = load_config("detector.py")
    cfg.train_dataloader.dataset.type = "CocoPanopticDataset"
    cfg.train_dataloader.dataset.data_prefix.seg = "segments"
    check_data(cfg, ("train",))
    return cfg, place / "data" / "segments"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "1 of 8 maps of segments are missing: "),
        (lambda path: path.write_bytes(b"x"), "no map of segments that can be read"),
        (lambda path: Image.new("RGB", (64, 32)).save(path), "3.png: 64 x 32: allowed is 64 x 64, as images[3] has"),
        (lambda path: Image.new("RGB", (64, 64), (9, 9, 0)).save(path), "3.png: segments 2313: allowed are those of"),
    ],
    ids=["missing", "damaged", "size", "segment"],
)
def test_maps_of_segments(panoptic, damage, said):
    cfg, folder = panoptic
    damage(folder / "3.png")
    with pytest.raises(UserError, match=r"train_dataloader\.dataset\.ann_file: .*train\.json: ") as raised:
        check_data(cfg, ("train",))
    assert said in str(raised.value)


def test_maps_of_segments_that_a_metric_reads(panoptic):
    cfg, folder = panoptic
    (folder / "3.png").unlink()
    cfg.val_dataloader = None
    cfg.test_dataloader.dataset = {**cfg.train_dataloader.dataset, "data_prefix": {"img": "images"}}
    cfg.test_evaluator.update(type="CocoPanopticMetric", seg_prefix=str(folder))
    with pytest.raises(UserError, match=r"test_evaluator\.ann_file: .*1 of 8 maps of segments are missing"):
        check_data(cfg, ("test",))


def test_an_error_from_a_worker_is_told_as_it_was():
    class Bad(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise UserError("a.jpg: bad UserError: here") from ValueError("x")

    with pytest.raises(UserError) as raised:
        list(torch.utils.data.DataLoader(Bad(), num_workers=1))
    assert str(raised.value) == "a.jpg: bad UserError: here"
