"""Pairs of a folder: found, checked and read."""

import cv2
import numpy as np
import pytest
from PIL import Image

from attnzoo.heads import PairedImageDataset


def test_pairs_are_found_and_read(folder, pairs):
    dataset = pairs(folder, dict(type="LoadImagePair"))
    assert [dataset.get_data_info(i)["gt_path"][len(str(folder)) :] for i in range(3)] == [
        "/gt/a.png", "/gt/b.png", "/gt/sub/a.png",
    ]  # fmt: skip
    dataset.check()
    for results in dataset:
        assert results["gt"].shape == (*(4 * side for side in results["img_shape"]), 3)
        assert np.array_equal(results["img"], cv2.imread(results["img_path"]))
        height, width = results["gt"].shape[:2]
        assert np.array_equal(results["gt"], cv2.imread(results["gt_path"])[:height, :width])


def test_turned_photographs_have_turned_sizes(tmp_path, pairs):
    (tmp_path / "gt").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 24)).save(tmp_path / "gt" / "x.jpg", exif=exif)
    (tmp_path / "img").mkdir()
    Image.new("RGB", (6, 10)).save(tmp_path / "img" / "xx4.jpg")
    dataset = pairs(tmp_path, dict(type="LoadImagePair"))
    dataset.check()
    assert dataset[0]["gt"].shape == (40, 24, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(scale=0), "scale=0: must be 1 or more"),
        (dict(data_prefix=dict(img="img")), "data_prefix must be dict"),
        (dict(data_prefix=dict(gt="gt", lq="img")), "data_prefix must be dict"),
    ],
)
def test_bad_data_arguments(folder, options, message):
    with pytest.raises(ValueError, match=message):
        PairedImageDataset(**{"scale": 4, "data_prefix": dict(gt="gt"), "data_root": str(folder), **options})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: PairedImageDataset(True, dict(gt="a")), TypeError, r"scale=True: must be a whole number, got bool"),
        (lambda: PairedImageDataset(2, "folder"), TypeError, r"data_prefix='folder': must be a dict, got str"),
        (lambda: PairedImageDataset(2, dict(gt=3)), TypeError, r"data_prefix\.gt=3: must be a string, got int"),
        (lambda: PairedImageDataset(2, dict(gt="a"), filename_tmpl="x4"), ValueError, r"filename_tmpl='x4': must hold"),
        (lambda: PairedImageDataset(2, dict(gt="a"), filename_tmpl="{}{}"), ValueError, r"filename_tmpl='\{\}\{\}'"),
        (lambda: PairedImageDataset(2, dict(gt="a"), filename_tmpl=4), TypeError, r"filename_tmpl=4: must be a string"),
        (lambda: PairedImageDataset(2, dict(gt="a"), pipeline="x"), TypeError, r"pipeline='x': must be a list"),
    ],
)
def test_arguments_of_another_type_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
