"""Data that cannot be used: damaged files, lies about them, pickles; each one line that names the file."""

import json
import pickle
import time
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.datasets.objects365 import objv2_ignore_list
from mmengine.registry import DATASETS
from PIL import Image
from tools_helpers import SEGMENTOR, MakesFolder, make_data, refused, write_config

from attnzoo.tools import cli
from attnzoo.tools.common.errors import UserError
from attnzoo.tools.config.loading import load_config
from attnzoo.tools.data.checks import check_data
from attnzoo.tools.data.coco import CocoNeeds, check_coco
from attnzoo.tools.data.datasets import ignored_labels
from attnzoo.tools.data.maps import check_segment_maps
from attnzoo.tools.data.reading import name_files


def last_line(capsys):
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("attnzoo: error: ")
    return message


@pytest.mark.long
@pytest.mark.parametrize(("command", "workers"), [("train", 1), ("test", 0)])
def test_an_image_that_cannot_be_read_in_the_midst_of_a_run(trained, place, capsys, monkeypatch, command, workers):
    # As one of so many that not all are looked at before.
    monkeypatch.setattr("attnzoo.tools.data.sizes._HEADERS_READ", 1)
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
    monkeypatch.setattr("attnzoo.tools.data.sizes._HEADERS_READ", 64)
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


def test_segments_that_mmdet_leaves_out_are_told(panoptic, place, capsys):
    cfg, _ = panoptic
    content = json.loads((place / "data" / "train.json").read_text())
    content["annotations"][3]["segments_info"][1]["area"] = 0
    content["annotations"].append({**content["annotations"][4], "image_id": 99})
    (place / "data" / "train.json").write_text(json.dumps(content))
    check_data(cfg, ("train",))
    said = capsys.readouterr().err
    assert "2 of 18 segments are left out" in said and "annotations[3].segments_info[1].area: 0: not positive" in said


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

    batches = iter(torch.utils.data.DataLoader(Bad(), num_workers=1))
    with pytest.raises(UserError) as raised:
        next(batches)
    assert str(raised.value) == "a.jpg: bad UserError: here"
    # Left to a collection of garbage, which may have closed its pipe, the worker would be waited for 5 seconds.
    batches._shutdown_workers()


def changed(place, change):
    """Change the COCO file; give the config."""
    path = place / "data" / "train.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return load_config("detector.py")


def entry(key, value, index=3):
    return lambda content: content["annotations"][index].update({key: value})


@pytest.mark.long
@pytest.mark.parametrize(
    ("change", "first"),
    [
        (entry("bbox", [70, 10, 5, 5]), "3].bbox: [70, 10, 5, 5]: no part of the image of 64 x 64 pixels"),
        (entry("bbox", [10, 10, -1, 5]), "3].bbox: [10, 10, -1, 5]: no part of the image of 64 x 64 pixels"),
        (entry("bbox", [10, 10, 0.5, 5]), "3].bbox: [10, 10, 0.5, 5]: smaller than a pixel"),
        (entry("area", -4), "3].area: -4: not positive"),
        (entry("image_id", 99), "3].image_id: 99: not the id of one of images"),
        (
            entry("segmentation", [[1, 2, 3, 4], [2, 2, 20, 2, 20, 20]]),
            "3].segmentation: [1, 2, 3, 4]: not 6 or more numbers, x and y in turn",
        ),
        (entry("segmentation", [[1, 2, 3, 4, 5, 6, 7]]), "3].segmentation: [1, 2, 3, 4, 5, 6, 7]: not 6 or more"),
    ],
)
def test_what_mmdet_leaves_out_is_told(place, capsys, change, first):
    cfg = changed(place, change)
    for step in (*cfg.train_dataloader.dataset.pipeline, *cfg.val_dataloader.dataset.pipeline):
        if step.type == "LoadAnnotations":
            step.with_mask = True
    check_data(cfg, ("train", "val"))
    said = capsys.readouterr().err
    assert said.startswith("attnzoo: warning: train_dataloader.dataset.ann_file: ") and said.count("\n") == 1
    assert f"train.json: 1 of 16 annotations are left out, or parts of them, as mmdet does: annotations[{first}" in said
    with DATASETS.switch_scope_and_registry("mmdet") as scoped:
        data = scoped.build(cfg.train_dataloader.dataset)
    instances = [one for index in range(len(data)) for one in data[index]["data_samples"].gt_instances.bboxes]
    assert len(instances) == (16 if "[1, 2, 3, 4]:" in first else 15)


@pytest.mark.parametrize(
    "change",
    [
        entry("segmentation", [[1, 2, 3, 4], [2, 2, 20, 2, 20, 20]]),
        entry("segmentation", []),
        lambda content: content["annotations"][3].update(area=0, segmentation=None),
    ],
)
def test_what_pycocotools_cannot_compare_is_refused(place, change):
    cfg = changed(place, change)
    cfg.test_evaluator.metric = ["bbox", "segm"]
    with pytest.raises(UserError, match=r"test_evaluator\.ann_file: .*annotations\[3\]\.segmentation"):
        check_data(cfg, ("test",))


def test_a_metric_alone_tells_of_what_it_cannot_find(place, capsys):
    cfg = changed(place, entry("bbox", [70, 10, 5, 5]))
    cfg.test_dataloader.dataset.type = "BaseDetDataset"
    check_data(cfg, ("test",))
    assert "test_evaluator.ann_file: " in (said := capsys.readouterr().err) and said.count("\n") == 1
    assert "1 of 16 annotations count as missed or not at all: annotations[3].bbox" in said


def test_annotations_of_other_images_alone(place):
    cfg = changed(place, lambda content: [one.update(image_id=str(one["image_id"])) for one in content["annotations"]])
    with pytest.raises(UserError, match=r"annotations\[15\]\.image_id: 7: allowed is the id of one of images"):
        check_data(cfg, ("train",))


def test_a_data_set_of_ones_own_may_leave_out_nothing(place, monkeypatch):
    from mmdet.datasets import CocoDataset

    class Own(CocoDataset):
        def parse_data_info(self, raw_data_info):
            return super().parse_data_info(raw_data_info)

    cfg = changed(place, entry("bbox", [70, 10, 5, 5]))
    cfg.train_dataloader.dataset.type = Own
    with pytest.raises(UserError, match=r"annotations\[3\]\.bbox: .* allowed is a box that is in its image"):
        check_data(cfg, ("train",))


def test_sizes_that_are_whole_floats(place):
    cfg = changed(place, lambda content: [one.update(width=64.0, height=64.0) for one in content["images"]])
    check_data(cfg, ("train", "val"))
    cfg.train_dataloader.dataset.pipeline[1].with_mask = True
    with pytest.raises(UserError, match=r"images\[0\]\.width: 64\.0: allowed is a positive number of pixels"):
        check_data(cfg, ("train",))


def test_a_file_for_the_test_server_has_no_annotations(place):
    cfg = changed(place, lambda content: content.pop("annotations"))
    with pytest.raises(UserError, match=r"test_evaluator\.ann_file: .*annotations: NoneType: allowed is a list"):
        check_data(cfg, ("test",))
    cfg.test_evaluator.update(format_only=True, outfile_prefix="predictions")
    check_data(cfg, ("test",))
    with pytest.raises(UserError, match=r"train_dataloader\.dataset\.ann_file: .*annotations: NoneType"):
        check_data(cfg, ("train",))


def test_objects365_names_its_images_by_their_last_folder(place):
    def move(content):
        for image in content["images"]:
            image["file_name"] = f"images/v1/patch0/{image['file_name']}"
        content["images"].append({"id": 99, "file_name": f"a/{objv2_ignore_list[0]}", "width": 5, "height": 5})

    (place / "data" / "images").rename(place / "data" / "patch0")
    cfg = changed(place, move)
    cfg.train_dataloader.dataset.update(type="Objects365V2Dataset", data_prefix={"img": ""})
    check_data(cfg, ("train",))
    (place / "data" / "patch0" / "3.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of the 9 images .* are missing .*: patch0/3\.jpg"):
        check_data(cfg, ("train",))


def test_images_that_opencv_alone_reads(place):
    """A TIFF of floats, and formats that the name does not tell."""
    pixels = np.zeros((64, 64, 3), np.float32)
    cv2.imwrite(str(place / "data" / "images" / "a.tif"), pixels)
    Image.new("RGB", (64, 64)).save(place / "data" / "images" / "1.jpg", format="GIF")
    cfg = changed(place, lambda content: content["images"][0].update(file_name="a.tif"))
    check_data(cfg, ("train",))
    assert cv2.imread(str(place / "data" / "images" / "a.tif"), cv2.IMREAD_UNCHANGED).shape == (64, 64, 3)
    (place / "data" / "images" / "a.tif").write_bytes(b"")
    with pytest.raises(UserError, match=r"images\[0\]: .*a\.tif: not an image that can be read"):
        check_data(cfg, ("train",))


def test_images_that_a_step_of_ones_own_reads_are_not_opened(place):
    (place / "data" / "images" / "3.jpg").write_bytes(b"encrypted")
    cfg = load_config("detector.py")
    cfg.train_dataloader.dataset.pipeline[0].type = Colours
    check_data(cfg, ("train",))


class Colours:
    """A step of one's own, which makes labels of colours."""

    def __init__(self, **kwargs):
        pass

    def __call__(self, data):
        data["gt_seg_map"] = (np.array(Image.open(data["seg_map_path"]))[..., 0] > 128).astype(np.uint8)
        data["seg_fields"].append("gt_seg_map")
        return data


class Remainder:
    """A step of one's own, which changes labels."""

    def __init__(self, divisor):
        self.divisor = divisor

    def __call__(self, data):
        data["gt_seg_map"] = data["gt_seg_map"] % self.divisor
        return data


@pytest.fixture
def segmentor(place):
    """The config of the segmentor, and a function that changes all label maps and images."""

    def change(maps=None, images=None):
        for folder, one in (("maps", maps), ("images", images)):
            for path in sorted((place / "data" / folder).iterdir()) if one else ():
                one(path)

    return load_config("segmentor.py"), change


def items(cfg):
    """Check the data and load the whole data set, as a training does."""
    check_data(cfg, ("train",))
    with DATASETS.switch_scope_and_registry("mmseg") as scoped:
        data = scoped.build(cfg.train_dataloader.dataset)
    name_files(data, ignored_labels(cfg))
    return [data[index] for index in range(len(data))]


def relabel(path, label=9):
    labels = np.array(Image.open(path))
    labels[0, 0] = label
    Image.fromarray(labels).save(path)


def test_label_maps_that_a_step_of_ones_own_reads_or_changes(segmentor):
    cfg, change = segmentor
    change(maps=relabel)
    pipeline = cfg.train_dataloader.dataset.pipeline
    cfg.train_dataloader.dataset.pipeline = [*pipeline[:2], dict(type=Remainder, divisor=3), pipeline[2]]
    assert len(items(cfg)) == 8
    # What it leaves wrong is found.
    cfg.train_dataloader.dataset.pipeline[2].divisor = 10
    with pytest.raises(UserError, match=r"maps/0\.png: labels 9 as they are read: allowed are 0 to 2"):
        items(cfg)
    change(maps=lambda path: Image.open(path).convert("RGB").save(path))
    cfg.train_dataloader.dataset.pipeline = [pipeline[0], dict(type=Colours), pipeline[2]]
    assert len(items(cfg)) == 8


@pytest.mark.parametrize("field", ["model.decode_head.ignore_index", "val_evaluator.ignore_index"])
def test_labels_that_a_head_or_a_metric_ignores(segmentor, field):
    cfg, change = segmentor
    change(maps=lambda path: relabel(path, 254))
    with pytest.raises(UserError, match="labels 254: allowed are 0 to 2, and 255 for no label"):
        items(cfg)
    cfg.merge_from_dict({field: 254})
    assert len(items(cfg)) == 8
    change(maps=lambda path: relabel(path, 253))
    with pytest.raises(UserError, match="labels 253: allowed are 0 to 2, and 254, 255 for no label"):
        items(cfg)


def test_images_as_mmseg_reads_them(segmentor):
    """Of numpy, by its step; of TIFF with floats, by OpenCV; turned, by a step that leaves them as they lie."""
    cfg, change = segmentor
    dataset = cfg.train_dataloader.dataset
    change(images=lambda path: np.save(path.with_suffix(".npy"), np.zeros((64, 64, 5), np.float32)))
    dataset.update(img_suffix=".npy", pipeline=[dict(type="LoadImageFromNpyFile"), *dataset.pipeline[1:]])
    assert len(items(cfg)) == 8
    change(images=lambda path: cv2.imwrite(str(path.with_suffix(".tif")), np.zeros((64, 64, 3), np.float32)))
    dataset.update(img_suffix=".tif", pipeline=[dict(type="LoadImageFromFile"), *dataset.pipeline[1:]])
    assert len(items(cfg)) == 8


def test_images_that_are_not_turned(segmentor):
    cfg, change = segmentor
    exif = Image.Exif()
    exif[0x0112] = 6
    change(*[lambda path: Image.open(path).crop((0, 0, 64, 48)).save(path, exif=exif)] * 2)
    with pytest.raises(UserError, match=r"\(48, 64\): allowed is 64 x 48"):
        items(cfg)
    cfg.train_dataloader.dataset.pipeline[0].color_type = "color_ignore_orientation"
    assert len(items(cfg)) == 8


def test_a_data_set_of_another_base_is_not_looked_into(place, monkeypatch):
    (place / "own_maps.py").write_text(
        "from mmengine.dataset import BaseDataset\n\n\nclass OwnMaps(BaseDataset):\n"
        "    METAINFO = dict(classes=('a',))\n\n"
        "    def load_data_list(self):\n        return [dict(img_path='x')]\n"
    )
    monkeypatch.syspath_prepend(place)
    from own_maps import OwnMaps

    cfg = load_config("segmentor.py")
    cfg.train_dataloader.dataset.type = OwnMaps
    check_data(cfg, ("train",))


def test_a_large_map_of_segments_takes_little_more_than_its_pixels(tmp_path):
    side = 3000
    Image.new("RGB", (side, side), (7, 1, 0)).save(tmp_path / "a.png")
    content = {"images": [{"id": 0, "file_name": "a.jpg", "width": side, "height": side}]}
    content["annotations"] = [{"image_id": 0, "segments_info": [{"id": 263}]}]
    tracemalloc.start()
    check_segment_maps("x", Path("x"), content, tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 5 * side**2
    # Of another size than told, it is not decoded.
    content["images"][0]["height"] += 1
    tracemalloc.reset_peak()
    with pytest.raises(UserError, match="3000 x 3000: allowed is 3000 x 3001"):
        check_segment_maps("x", Path("x"), content, tmp_path)
    assert tracemalloc.get_traced_memory()[1] < side**2
    tracemalloc.stop()


def test_of_many_maps_of_segments_some_headers_are_read(panoptic, monkeypatch):
    cfg, folder = panoptic
    monkeypatch.setattr("attnzoo.tools.data.sizes._MAPS_READ", 2)
    monkeypatch.setattr("attnzoo.tools.data.sizes._HEADERS_READ", 4)
    (folder / "3.png").write_bytes(b"x")
    check_data(cfg, ("train",))
    Image.new("RGB", (64, 32)).save(folder / "2.png")
    with pytest.raises(UserError, match=r"2\.png: 64 x 32"):
        check_data(cfg, ("train",))
