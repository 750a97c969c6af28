"""The parts of super-resolution: MATLAB's downscale, data, scores, and weights taken over from another scale."""

import cv2
import golden_files
import numpy as np
import pytest
import timm
import torch
from mmengine.structures import BaseDataElement
from PIL import Image

from attnzoo.heads import PSNR, SSIM, LoadImagePair, PairedImageDataset, PairedRandomCrop, Restorer
from attnzoo.heads.restoration import imresize
from attnzoo.heads.restoration.metrics import luma, psnr, ssim

SIZES = dict(depths=(1,), num_heads=(2,), embed_dim=8, window_size=8, compress_ratio=2, squeeze_factor=4, num_feat=4)

# imresize(reshape(0:n*n-1, n, n)', 1/factor, 'bicubic') as MATLAB R2019b gives it: test_answer/down_down_x*_aa.mat of
# https://github.com/sanghyun-son/bicubic_pytorch. Inside it goes on evenly, at the border the mirror shows.
MATLAB = {
    2: [
        [4.04296875, 6.08203125, 8.10546875, 10.14453125],
        [20.35546875, 22.39453125, 24.41796875, 26.45703125],
        [36.54296875, 38.58203125, 40.60546875, 42.64453125],
        [52.85546875, 54.89453125, 56.91796875, 58.95703125],
    ],
    3: [
        [14.41975309, 17.50617284, 20.51851852, 23.5308642, 26.61728395],
        [60.71604938, 63.80246914, 66.81481481, 69.82716049, 72.91358025],
        [105.90123457, 108.98765432, 112.0, 115.01234568, 118.09876543],
        [151.08641975, 154.17283951, 157.18518519, 160.19753086, 163.28395062],
        [197.38271605, 200.4691358, 203.48148148, 206.49382716, 209.58024691],
    ],
    4: [[12.38378906, 16.63183594], [46.36816406, 50.61621094]],
    5: [[29.1072, 34.288, 39.4688], [106.8192, 112.0, 117.1808], [184.5312, 189.712, 194.8928]],
}


@pytest.mark.parametrize("factor", MATLAB)
def test_imresize_is_matlabs(factor):
    expected = np.array(MATLAB[factor])
    side = len(expected) * factor
    image = np.arange(side**2, dtype=np.float64).reshape(side, side, 1)
    np.testing.assert_allclose(imresize(image, factor)[..., 0], expected, rtol=0, atol=1e-8)


def test_imresize_by_hand():
    """A step at scale 1/2: the weights of Keys' cubic at distances of 1/4, 3/4, 5/4 and 7/4, on both sides."""
    weights = np.array([0.8671875, 0.2265625, -0.0703125, -0.0234375])
    assert weights.sum() == 1
    step = np.repeat([[0.0] * 8 + [1.0] * 8], 2, axis=0)[..., None]
    line = imresize(step, 2)[0, :, 0]
    # Pixel 2i + 1/2 is the middle; to the right of it stand the pixels at 1/2, 3/2, 5/2 and 7/2, halved by the factor.
    expected = [0, 0, weights[3] / 2, weights[1:].sum() / 2, 1 - weights[1:].sum() / 2, 1 - weights[3] / 2, 1, 1]
    np.testing.assert_allclose(line, expected, rtol=0, atol=1e-12)


def test_imresize_of_one_pixel_and_of_floats_in_colour():
    assert imresize(np.full((4, 4, 3), 7, np.uint8), 4).tolist() == [[pytest.approx([7.0] * 3)]]
    image = np.random.default_rng(0).random((12, 18, 3))
    np.testing.assert_allclose(imresize(image, 3)[..., 1], imresize(image[..., 1:2], 3)[..., 0], rtol=0, atol=1e-12)
    assert imresize(image, 1) == pytest.approx(image, abs=1e-12)


@pytest.mark.parametrize(("shape", "factor"), [((8, 9, 3), 2), ((9, 8, 3), 4), ((8, 8, 3), 0)])
def test_imresize_takes_multiples(shape, factor):
    with pytest.raises(ValueError, match=f"divide both sides of the image {shape[0]} x {shape[1]}, got {factor}"):
        imresize(np.zeros(shape), factor)


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
    for metric in (PSNR(crop_border=border), SSIM(crop_border=border)):
        samples = [dict(pred=pred, gt=gt, scale=2, gt_path="x.png") for pred, gt in zip(*images, strict=True)]
        for sample in samples:
            if cut:
                sample["pred"][:, :cut] = 0
                sample["pred"][:, :, -cut:] = 0
        metric.process(None, samples)
        name = type(metric).__name__
        score = {"PSNR": psnr, "SSIM": ssim}[name]
        inner = lambda x: luma(x[:, cut : 30 - cut, cut : 40 - cut].permute(1, 2, 0).numpy())  # noqa: E731
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
        (lambda: LoadImagePair(quantize=1), TypeError, r"quantize=1: must be True or False, got int"),
        (lambda: LoadImagePair(min_size="2"), TypeError, r"min_size='2': must be a whole number, got str"),
        (lambda: PairedRandomCrop(img_size=None), TypeError, r"img_size=None: must be a whole number, got NoneType"),
        (lambda: PairedImageDataset(True, dict(gt="a")), TypeError, r"scale=True: must be a whole number, got bool"),
        (lambda: PairedImageDataset(2, "folder"), TypeError, r"data_prefix='folder': must be a dict, got str"),
        (lambda: PairedImageDataset(2, dict(gt=3)), TypeError, r"data_prefix\.gt=3: must be a string, got int"),
        (lambda: PairedImageDataset(2, dict(gt="a"), filename_tmpl="x4"), ValueError, r"filename_tmpl='x4': must hold"),
        (lambda: PairedImageDataset(2, dict(gt="a"), filename_tmpl="{}{}"), ValueError, r"filename_tmpl='\{\}\{\}'"),
        (lambda: PairedImageDataset(2, dict(gt="a"), filename_tmpl=4), TypeError, r"filename_tmpl=4: must be a string"),
        (lambda: PairedImageDataset(2, dict(gt="a"), pipeline="x"), TypeError, r"pipeline='x': must be a list"),
        (lambda: Restorer("hat_small_x2", tile="64"), TypeError, r"tile='64': must be a whole number, got str"),
        (lambda: Restorer("hat_small_x2", overlap=16.0), TypeError, r"overlap=16\.0: must be a whole number"),
        (lambda: Restorer("hat_small_x2", with_cp=1), TypeError, r"with_cp=1: must be True or False, got int"),
        (lambda: imresize(np.zeros((4, 4, 3)), 2.0), TypeError, r"factor=2\.0: must be a whole number, got float"),
    ],
)
def test_arguments_of_another_type_are_refused(make, error, message):
    with torch.device("meta"), pytest.raises(error, match=message):
        make()


@pytest.fixture
def folder(tmp_path):
    """Three images in two folders, with low-resolution ones as DIV2K names them."""
    generator = np.random.default_rng(0)
    for name, size in (("a", (33, 50)), ("b", (40, 36)), ("sub/a", (32, 32))):
        for place in ("gt", "img"):
            (tmp_path / place / name).parent.mkdir(parents=True, exist_ok=True)
        image = generator.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(image).save(tmp_path / "gt" / f"{name}.png")
        small = Image.fromarray(image).resize((size[1] // 4, size[0] // 4))
        small.save(tmp_path / "img" / f"{name}x4.png")
    return tmp_path


def pairs(folder, *steps, img="img", **options):
    options = dict(filename_tmpl="{}x4", data_root=str(folder), scale=4, data_prefix=dict(gt="gt", img=img), **options)
    return PairedImageDataset(pipeline=[dict(type=f"attnzoo.{step.pop('type')}", **step) for step in steps], **options)


def test_pairs_are_found_and_read(folder):
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


def test_low_resolution_images_are_made(folder):
    dataset = pairs(folder, dict(type="LoadImagePair"), img=None)
    dataset.check()
    results = dataset[0]
    gt = cv2.imread(results["gt_path"])[:32, :48]
    assert np.array_equal(results["gt"], gt)
    assert np.array_equal(results["img"], np.floor(imresize(gt, 4).clip(0, 255) + 0.5).astype(np.uint8))
    raw = pairs(folder, dict(type="LoadImagePair", quantize=False), img=None)[0]
    assert raw["img"].dtype == raw["gt"].dtype == np.float32
    np.testing.assert_allclose(raw["img"], imresize(gt, 4), rtol=0, atol=1e-4)


def test_images_that_are_too_small_are_enlarged(folder):
    steps = [dict(type="LoadImagePair", quantize=False, min_size=11), dict(type="PairedRandomCrop", img_size=11)]
    dataset = pairs(folder, *[dict(step) for step in steps], img=None)
    dataset.check()
    enlarged = pairs(folder, dict(steps[0]), img=None)[0]
    gt = cv2.resize(cv2.imread(enlarged["gt_path"])[:32, :48].astype(np.float32), (48, 44))
    np.testing.assert_allclose(enlarged["gt"], gt)
    assert {results["img"].shape for results in dataset} == {(11, 11, 3)}


def test_crops_are_of_the_same_place(folder):
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


def test_turned_photographs_have_turned_sizes(tmp_path):
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


def test_bad_transform_arguments():
    with pytest.raises(ValueError, match="min_size=0: must be 1 or more"):
        LoadImagePair(min_size=0)
    with pytest.raises(ValueError, match="img_size=0: must be 1 or more"):
        PairedRandomCrop(img_size=0)


def test_the_loss_is_the_mean_absolute_error():
    model = Restorer("hat_small_x2", overlap=8, **SIZES).eval()
    inputs = [torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8) for _ in range(2)]
    samples = [BaseDataElement(gt=torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)) for _ in range(2)]
    data = model.data_preprocessor(dict(inputs=inputs, data_samples=samples), training=True)
    loss = model(**data, mode="loss")
    restored = model.model(torch.stack(inputs) / 255)
    expected = (restored - torch.stack([sample.gt for sample in samples]) / 255).abs().mean()
    torch.testing.assert_close(loss, {"loss_l1": expected})


def test_predictions_of_any_size_are_pictures():
    model = Restorer("hat_small_x2", overlap=8, **SIZES).eval()
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((9, 12), (16, 7))]
    data = dict(inputs=images, data_samples=[BaseDataElement(), BaseDataElement()])
    for image, sample in zip(images, model.test_step(data), strict=True):
        with torch.no_grad():
            restored = model.model(image[None] / 255)[0]
        assert torch.equal(sample.pred, (restored.clamp(0, 1) * 255).round().to(torch.uint8))


def test_activations_are_recomputed():
    plain, saving = (Restorer("hat_small_x2", overlap=8, with_cp=cp, **SIZES) for cp in (False, True))
    saving.load_state_dict(plain.state_dict())
    assert [stage.grad_checkpointing for stage in saving.model.stages] == [True]
    torch.testing.assert_close(saving(torch.ones(1, 3, 8, 8)), plain(torch.ones(1, 3, 8, 8)))


def test_a_larger_scale_takes_over_what_fits(tmp_path):
    """As the published ×4 models start from ×2: all but the second enlargement."""
    source = Restorer("hat_small_x2", overlap=8, **SIZES)
    torch.save({"state_dict": source.state_dict(), "meta": {}}, tmp_path / "x2.pth")
    init = dict(type="Pretrained", checkpoint=str(tmp_path / "x2.pth"), model_name="hat_small_x2")
    model = Restorer("hat_small_x4", overlap=8, init_cfg=init, **SIZES)
    before = {key: value.clone() for key, value in model.model.state_dict().items()}
    model.init_weights()
    there, here = source.model.state_dict(), model.model.state_dict()
    body = [key for key in here if not key.startswith("head.")]
    assert body and all(torch.equal(here[key], there[key]) for key in body)
    # Ours number the layers of the reconstruction: convolution, enlargement, (enlargement,) convolution.
    for new, old in ((0, 0), (2, 2), (6, 4)):
        assert torch.equal(here[f"head.{new}.weight"], there[f"head.{old}.weight"])
    assert torch.equal(here["head.4.weight"], before["head.4.weight"])
    model = Restorer("hat_small_x3", overlap=8, init_cfg=init, **SIZES)
    kept = model.model.head[2].weight.clone()
    model.init_weights()
    assert torch.equal(model.model.head[2].weight, kept)
    assert torch.equal(model.model.head[4].weight, source.model.head[4].weight)


def test_published_files_are_read(tmp_path):
    golden = golden_files.load("hat_small_x2")
    weights = {key: value.float() for key, value in golden_files.checkpoint(golden).items()}
    torch.save({"params_ema": weights}, tmp_path / "x2.pth")
    model = Restorer("hat_small_x2")
    model.load_checkpoint(tmp_path / "x2.pth")
    assert torch.equal(model.model.stem.weight, weights["conv_first.weight"])
    larger = Restorer("hat_small_x4")
    larger.load_checkpoint(tmp_path / "x2.pth", "hat_small_x2")
    assert torch.equal(larger.model.head[-1].weight, weights["conv_last.weight"])


def test_a_trained_checkpoint_is_one_of_the_timm_model(tmp_path):
    model = Restorer("hat_small_x2", overlap=8, **SIZES)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "ours.pth")
    overlay = dict(file=str(tmp_path / "ours.pth"))
    bare = timm.create_model("hat_small_x2", pretrained=True, pretrained_cfg_overlay=overlay, **SIZES)
    assert all(torch.equal(value, model.model.state_dict()[key]) for key, value in bare.state_dict().items())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("van_b0", {}, "model_name='van_b0': gives no image"),
        ("hat_x5", {}, "did you mean hat_x"),
        ("hat_small_x2", dict(tile=24), "tile must be a positive multiple of 16"),
        ("hat_small_x2", dict(overlap=8), "overlap must be 0 or a multiple of 16"),
        ("hat_small_x2", dict(init_cfg=dict(type="Pretrained")), "init_cfg="),
    ],
)
def test_bad_model_arguments(name, options, message):
    with pytest.raises(ValueError, match=message):
        Restorer(name, **options)


def test_other_weights_are_refused(tmp_path):
    model = Restorer("hat_small_x2", overlap=8, **SIZES)
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        model.load_checkpoint(tmp_path / "absent.pth")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "x2.pth")
    with pytest.raises(RuntimeError, match=r"x2\.pth: no checkpoint of 'hat_small_x4'"):
        Restorer("hat_small_x4", overlap=8, **SIZES).load_checkpoint(tmp_path / "x2.pth")
    with pytest.raises(ValueError, match="mode must be 'loss', 'predict' or 'tensor', got 'train'"):
        model(torch.ones(1, 3, 8, 8), mode="train")
