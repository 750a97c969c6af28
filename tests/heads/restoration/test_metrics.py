"""PSNR and SSIM as published results have them."""

import numpy as np
import pytest
import torch

from attnzoo.heads import PSNR, SSIM
from attnzoo.heads.restoration.metrics import luma, psnr, ssim


def test_luma_of_corners():
    """MATLAB's rgb2ycbcr of black, white, red, green and blue, in 255ths."""
    colours = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    assert luma(colours)[0].tolist() == pytest.approx([16, 235, 81.481, 144.553, 40.966])


def test_scores_by_hand():
    left = np.zeros((16, 16))
    assert psnr(left, left + 5) == pytest.approx(10 * np.log10(255**2 / 25))
    assert psnr(left, left) == float("inf")
    assert ssim(left + 100, left + 100) == 1
    # Of two flat images the structure is equal and the luminance term is left.
    c1 = (0.01 * 255) ** 2
    assert ssim(left + 100, left + 110) == pytest.approx((2 * 100 * 110 + c1) / (100**2 + 110**2 + c1))


@pytest.mark.parametrize("border", [None, 0, 3])
def test_metrics_leave_the_border_out(border):
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (2, 3, 30, 40), generator=generator, dtype=torch.uint8) for _ in range(2)]
    cut = 2 if border is None else border

    def inner(x):
        return luma(x[:, cut : 30 - cut, cut : 40 - cut].permute(1, 2, 0).numpy())

    for metric in (PSNR(crop_border=border), SSIM(crop_border=border)):
        samples = [dict(pred=pred, gt=gt, scale=2, gt_path="x.png") for pred, gt in zip(*images, strict=True)]
        for sample in samples:
            if cut:
                sample["pred"][:, :cut] = 0
                sample["pred"][:, :, -cut:] = 0
        metric.process(None, samples)
        name = type(metric).__name__
        score = {"PSNR": psnr, "SSIM": ssim}[name]
        expected = np.mean([score(inner(sample["pred"]), inner(sample["gt"])) for sample in samples])
        assert metric.evaluate(2) == {name: pytest.approx(expected)}


def test_metrics_refuse_another_size():
    sample = dict(pred=torch.zeros(3, 20, 20), gt=torch.zeros(3, 20, 22), scale=2, gt_path="x.png")
    with pytest.raises(ValueError, match=r"x\.png: the prediction is \(3, 20, 20\), the image \(3, 20, 22\)"):
        PSNR().process(None, [sample])
    with pytest.raises(ValueError, match="crop_border=-1: must be 0 or more"):
        SSIM(crop_border=-1)


@pytest.mark.parametrize(
    ("score", "error", "message"),
    [
        (lambda image: ssim(image, image), ValueError, r"must have 2 dimensions, got \(12, 13, 3\)"),
        (lambda image: psnr(image[0, 0], image[0, 0]), ValueError, r"must have 2 or 3 dimensions, got \(3,\)"),
        (lambda image: psnr(image > 3, image > 3), TypeError, "array of real numbers, got bool"),
        (lambda image: ssim([1.0], [1.0]), TypeError, "array of real numbers, got list"),
        (lambda image: luma(image[..., 0]), ValueError, r"shape \(H, W, 3\), got \(12, 13\)"),
    ],
)
def test_what_is_no_image_is_refused(score, error, message):
    with pytest.raises(error, match=message):
        score(np.zeros((12, 13, 3)))


def test_metrics_take_every_real_dtype_and_rgb_alone():
    pred, gt = torch.arange(2 * 3 * 20 * 20).reshape(2, 3, 20, 20) % 251
    scores = []
    for dtype in (torch.uint8, torch.bfloat16, torch.float64):
        metric = PSNR()
        sample = dict(pred=pred.to(dtype), gt=gt.to(dtype), scale=2, gt_path="x.png")
        metric.process(None, [sample | dict(pred=sample["pred"].requires_grad_(dtype.is_floating_point))])
        scores += metric.results
    assert scores == [scores[0]] * 3
    with pytest.raises(ValueError, match=r"x\.png: PSNR is of RGB images \(3, H, W\), got \(1, 20, 20\)"):
        PSNR().process(None, [dict(pred=pred[:1], gt=gt[:1], scale=2, gt_path="x.png")])


def flat(height, width, value=9):
    gt = torch.full((3, height, width), value, dtype=torch.uint8)
    return dict(pred=gt + 1, gt=gt, scale=2, gt_path="set/tiny.png")


@pytest.mark.parametrize(
    ("metric", "options", "size", "message"),
    [
        (PSNR, {}, (4, 30), r"set/tiny\.png: PSNR of 30 x 4 pixels, 2 left out at each side: 26 x 0 pixels .* 1 x 1"),
        (PSNR, dict(crop_border=16), (30, 40), r"tiny\.png: PSNR of 40 x 30 pixels, 16 .*: 8 x 0 pixels"),
        (PSNR, dict(crop_border=0), (0, 3), r"tiny\.png: PSNR of 3 x 0 pixels, 0 left"),
        (SSIM, {}, (14, 40), r"tiny\.png: SSIM of 40 x 14 pixels, 2 left .*: 36 x 10 pixels .*at least 11 x 11"),
        (SSIM, dict(crop_border=20), (30, 30), r"tiny\.png: SSIM of 30 x 30 pixels, 20 .*: 0 x 0 pixels"),
    ],
)
def test_metrics_refuse_an_image_that_is_too_small(metric, options, size, message):
    metric = metric(**options)
    metric.process(None, [flat(60, 60)])
    with pytest.raises(ValueError, match=message):
        metric.process(None, [flat(*size)])


def test_the_smallest_images_have_scores():
    for metric, size in ((PSNR(), (5, 5)), (SSIM(), (15, 15))):
        metric.process(None, [flat(*size)])
        assert np.isfinite(list(metric.evaluate(1).values())).all()


def test_equal_images_count_as_published():
    for metric, expected in ((PSNR(), float("inf")), (SSIM(), 1.0)):
        sample = flat(20, 20)
        metric.process(None, [flat(20, 20), dict(sample, pred=sample["gt"])])
        value = metric.evaluate(2)[type(metric).__name__]
        assert value == expected if metric.__class__ is PSNR else 0.9 < value < expected


@pytest.mark.parametrize("metric", [PSNR, SSIM])
def test_no_score_is_nan(metric):
    sample = flat(20, 20)
    sample["pred"] = sample["pred"].float()
    sample["pred"][0, 9, 9] = float("nan")
    with pytest.raises(ValueError, match=r"tiny\.png: .* values that are not finite"):
        metric().process(None, [sample])
    with pytest.raises(ValueError, match=f"{metric.__name__}: there is no image to score"):
        metric().compute_metrics([])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: PSNR(crop_border=1.5), TypeError, r"crop_border=1\.5: must be a whole number, got float"),
        (lambda: SSIM(crop_border=True), TypeError, r"crop_border=True: must be a whole number, got bool"),
    ],
)
def test_arguments_of_another_type_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
