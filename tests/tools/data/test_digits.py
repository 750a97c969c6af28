import errno
import itertools
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO
from sklearn.datasets import load_digits, load_sample_images
from tools_helpers import contents

from attnzoo.tools.common import locks
from attnzoo.tools.common.errors import UserError
from attnzoo.tools.data import digits

COUNTS = {"train": 12, "val": 6}
SMALL = {"train_images": 12, "val_images": 6}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return digits.build(tmp_path_factory.mktemp("digits") / "data", **SMALL)


@pytest.fixture
def copy(built, tmp_path):
    shutil.copytree(built.root, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture(params=digits.SPLITS)
def coco(request, built):
    return COCO(built.annotations[request.param]), request.param


def test_same_parameters_same_bytes(built, tmp_path):
    assert contents(digits.build(tmp_path / "again", **SMALL).root) == contents(built.root)


@pytest.mark.parametrize("changed", [{"seed": 1}, {"size": 96}])
def test_other_parameters_other_images(built, tmp_path, changed):
    other = digits.build(tmp_path / "other", **{**SMALL, **changed})
    first = [cv2.imread(str(data.images["val"] / "000000.png")) for data in (built, other)]
    assert first[0].shape != first[1].shape or (first[0] != first[1]).any()


def test_layout(built):
    files = {path for path in contents(built.root) if path.endswith(".png")}
    wanted = {
        f"{folder}{split}/{i:06d}.png" for split, n in COUNTS.items() for i in range(n) for folder in ("", "seg_maps/")
    }
    assert files == wanted
    assert built.annotations["val"] == built.root / "annotations/instances_val.json"


def test_coco_reads_it(coco, built):
    api, split = coco
    assert len(api.getImgIds()) == COUNTS[split]
    assert [category["name"] for category in api.loadCats(api.getCatIds())] == list("0123456789")
    labels = load_digits().target
    for image in api.loadImgs(api.getImgIds()):
        assert cv2.imread(str(built.images[split] / image["file_name"])).shape == (image["height"], image["width"], 3)
        annotations = api.loadAnns(api.getAnnIds(image["id"]))
        assert 1 <= len(annotations) <= 8
        for annotation in annotations:
            assert annotation["category_id"] == labels[annotation["scan"]] + 1


def test_boxes_are_tight_and_maps_hold_the_masks(coco, built):
    api, split = coco
    for image in api.loadImgs(api.getImgIds()):
        union = np.zeros((image["height"], image["width"]), np.uint8)
        for annotation in api.loadAnns(api.getAnnIds(image["id"])):
            mask = api.annToMask(annotation)
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            tight = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
            assert annotation["bbox"] == tight
            assert annotation["area"] == mask.sum() == rle.area(annotation["segmentation"])
            assert not (union & mask).any()
            union |= mask
        stored = cv2.imread(str(built.seg_maps[split] / image["file_name"]), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(stored, union)


def test_boxes_do_not_overlap(coco):
    api, _ = coco
    for image_id in api.getImgIds():
        boxes = [annotation["bbox"] for annotation in api.loadAnns(api.getAnnIds(image_id))]
        for one, other in itertools.combinations(boxes, 2):
            assert rle.iou([one], [other], [0])[0, 0] == 0


def test_scans_are_disjoint(built):
    split = digits.split_scans()
    assert not set(split["train"]) & set(split["val"])
    assert len(split["train"]) + len(split["val"]) == 1797
    scans = load_digits().images
    assert not {scans[i].tobytes() for i in split["train"]} & {scans[i].tobytes() for i in split["val"]}
    for name, path in built.annotations.items():
        assert {annotation["scan"] for annotation in json.loads(path.read_text())["annotations"]} <= set(split[name])


def test_photo_regions_are_disjoint(built):
    photos = load_sample_images()
    for photo in photos.images:
        (ax, _, aw, _), (bx, _, bw, _) = (digits.split_region(split, *photo.shape[:2]) for split in digits.SPLITS)
        assert ax == 0 and ax + aw == bx and bx + bw == photo.shape[1]
    borders = {path.rpartition("/")[2]: digits.split_region("val", *photo.shape[:2])[0]
               for path, photo in zip(photos.filenames, photos.images, strict=True)}  # fmt: skip
    for split, path in built.annotations.items():
        images = json.loads(path.read_text())["images"]
        assert {image["photo"] for image in images} == set(borders)
        for image in images:
            x, _, width, _ = image["crop"]
            border = borders[image["photo"]]
            assert x + width <= border if split == "train" else x >= border


@pytest.mark.parametrize("split", digits.SPLITS)
def test_every_crop_stays_in_its_region(split):
    for number, photo in itertools.product(range(100), load_sample_images().images):
        background, (x, y, width, height) = digits._cut_background(np.random.default_rng(number), photo, split, 64)
        left, top, region_width, region_height = digits.split_region(split, *photo.shape[:2])
        assert left <= x and x + width <= left + region_width
        assert top <= y and y + height <= top + region_height
        assert background.shape == (64, 64, 3)


def test_complete_folder_is_reused(copy, monkeypatch):
    monkeypatch.setattr(digits, "_write_split", lambda *_: pytest.fail("built again"))
    digits.build(copy, **SMALL)


def truncate(root):
    path = root / "train/000003.png"
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    "damage",
    [lambda root: (root / "val/000001.png").unlink(), lambda root: shutil.rmtree(root / "seg_maps")],
    ids=["missing", "no-maps"],
)
def test_a_folder_that_lacks_files_is_rebuilt(built, copy, damage):
    damage(copy)
    digits.build(copy, **SMALL)
    assert contents(copy) == contents(built.root)


def another_format(root):
    stamp = json.loads((root / "digits.json").read_text())
    (root / "digits.json").write_text(json.dumps({**stamp, "author": "me"}))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (truncate, "train/000003.png has been changed"),
        (
            lambda root: (root / "annotations/instances_val.json").write_text("{}"),
            "instances_val.json has been changed",
        ),
        (lambda root: (root / "train/extra.png").write_bytes(b""), "train/extra.png is not of"),
        (lambda root: (root / "seg_maps/notes").mkdir() or (root / "seg_maps/notes/a").write_text("b"), "notes/a is"),
        (lambda root: (root / "train/link.png").symlink_to("nowhere"), "train/link.png is not of"),
        (lambda root: (root / "digits.json").unlink(), "something else"),
        (lambda root: (root / "digits.json").write_text("{"), "something else"),
        (lambda root: (root / "digits.json").write_text('{"format": 2, "images": {"train": true}}'), "something else"),
        (another_format, "something else"),
    ],
    ids=["truncated", "annotations", "extra", "folder", "link", "no-stamp", "bad-stamp", "odd-stamp", "other-stamp"],
)
@pytest.mark.parametrize("parameters", [SMALL, {"train_images": 2, "val_images": 1}], ids=["same", "other"])
def test_what_is_not_as_it_was_written_is_refused_by_name_and_stays(copy, damage, named, parameters):
    damage(copy)
    before = contents(copy)
    with pytest.raises(UserError, match=named):
        digits.build(copy, **parameters)
    assert contents(copy) == before
    assert [path.name for path in copy.parent.iterdir()] == ["data"]


def test_a_data_set_of_the_users_own_stays(tmp_path):
    for name in ("train/a.jpg", "val/b.jpg", "annotations/instances_train.json", "seg_maps/train/a.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text("years of work")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="something else"):
        digits.build(tmp_path / "data", **SMALL)
    assert contents(tmp_path) == before


def test_an_empty_folder_is_taken(built, tmp_path):
    (tmp_path / "data").mkdir()
    assert contents(digits.build(tmp_path / "data", **SMALL).root) == contents(built.root)


def test_what_a_killed_process_left_is_removed_and_nothing_else(built, tmp_path):
    stamp = {key: value for key, value in json.loads((built.root / "digits.json").read_text()).items()}
    del stamp["sha256"]
    kinds = {"ours": stamp, "mixed": stamp, "theirs": {"format": 2}}
    for kind, content in kinds.items():
        folder = tmp_path / f".data.{kind}.partial"
        (folder / "train").mkdir(parents=True)
        (folder / "digits.json").write_text(json.dumps(content))
        (folder / "train/000000.png").write_bytes(b"half")
    (tmp_path / ".data.mixed.partial/train/mine.png").write_bytes(b"mine")
    (tmp_path / ".data.new.partial").mkdir()
    digits.build(tmp_path / "data", **SMALL)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob(".data*/**/*") if path.is_file()}
    assert left == {
        ".data.mixed.partial/train/mine.png",
        ".data.theirs.partial/train/000000.png",
        ".data.theirs.partial/digits.json",
    }


def test_two_builds_at_once(tmp_path):
    with locks.locked(tmp_path / ".data.lock", "it"), pytest.raises(UserError, match=rf"data: .*process {os.getpid()}"):
        digits.build(tmp_path / "data", **SMALL)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said_with_the_name(tmp_path, monkeypatch):
    write = Path.write_bytes

    def full(path, content):
        write(path, content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device: .*data"):
        digits.build(tmp_path / "data", **SMALL)
    assert not list(tmp_path.iterdir())


def test_other_parameters_replace(copy):
    digits.build(copy, train_images=2, val_images=1)
    assert len(list((copy / "train").iterdir())) == 2


def test_failure_leaves_the_old_one(built, copy, monkeypatch):
    write = digits._write_split

    def fail(root, split, *rest):
        if split == "val":
            raise OSError("disk full")
        write(root, split, *rest)

    monkeypatch.setattr(digits, "_write_split", fail)
    with pytest.raises(OSError, match="disk full"):
        digits.build(copy, train_images=2, val_images=1)
    assert contents(copy) == contents(built.root)
    assert [path.name for path in copy.parent.iterdir()] == ["data"]


def test_other_peoples_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="something else"):
        digits.build(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    "bad", [{"train_images": 0}, {"val_images": -1}, {"size": 32}, {"seed": -1}], ids=lambda bad: next(iter(bad))
)
def test_bad_arguments(tmp_path, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        digits.build(tmp_path / "data", **bad)
    assert not (tmp_path / "data").exists()
