"""Low-resolution images that are made, and crops of pairs."""

import cv2
import numpy as np
import pytest

from attnzoo.heads import LoadImagePair, PairedRandomCrop
from attnzoo.heads.restoration.resize import imresize


def test_low_resolution_images_are_made(folder, pairs):
    dataset = pairs(folder, dict(type="LoadImagePair"), img=None)
    dataset.check()
    results = dataset[0]
    gt = cv2.imread(results["gt_path"])[:32, :48]
    assert np.array_equal(results["gt"], gt)
    assert np.array_equal(results["img"], np.floor(imresize(gt, 4).clip(0, 255) + 0.5).astype(np.uint8))
    raw = pairs(folder, dict(type="LoadImagePair", quantize=False), img=None)[0]
    assert raw["img"].dtype == raw["gt"].dtype == np.float32
    np.testing.assert_allclose(raw["img"], imresize(gt, 4), rtol=0, atol=1e-4)


def test_images_that_are_too_small_are_enlarged(folder, pairs):
    steps = [dict(type="LoadImagePair", quantize=False, min_size=11), dict(type="PairedRandomCrop", img_size=11)]
    dataset = pairs(folder, *[dict(step) for step in steps], img=None)
    dataset.check()
    enlarged = pairs(folder, dict(steps[0]), img=None)[0]
    gt = cv2.resize(cv2.imread(enlarged["gt_path"])[:32, :48].astype(np.float32), (48, 44))
    np.testing.assert_allclose(enlarged["gt"], gt)
    assert {results["img"].shape for results in dataset} == {(11, 11, 3)}


def test_crops_are_of_the_same_place(folder, pairs):
    np.random.seed(0)
    dataset = pairs(folder, dict(type="LoadImagePair"), dict(type="PairedRandomCrop", img_size=5), img=None)
    whole = pairs(folder, dict(type="LoadImagePair"), img=None)[0]
    places = set()
    for _ in range(40):
        results = dataset[0]
        tops, lefts = np.nonzero((whole["img"][:4, :8] == results["img"][0, 0]).all(-1))
        top, left = next(
            place
            for place in zip(tops, lefts, strict=True)
            if np.array_equal(whole["img"][place[0] :, place[1] :][:5, :5], results["img"])
        )
        assert np.array_equal(results["gt"], whole["gt"][4 * top :, 4 * left :][:20, :20])
        places.add((top, left))
    # 4 x 8 places; all are drawn, the last ones too.
    assert max(places) == (3, 7) and min(places)[0] == 0


def test_bad_transform_arguments():
    with pytest.raises(ValueError, match="min_size=0: must be 1 or more"):
        LoadImagePair(min_size=0)
    with pytest.raises(ValueError, match="img_size=0: must be 1 or more"):
        PairedRandomCrop(img_size=0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LoadImagePair(quantize=1), TypeError, r"quantize=1: must be True or False, got int"),
        (lambda: LoadImagePair(min_size="2"), TypeError, r"min_size='2': must be a whole number, got str"),
        (lambda: PairedRandomCrop(img_size=None), TypeError, r"img_size=None: must be a whole number, got NoneType"),
    ],
)
def test_arguments_of_another_type_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
