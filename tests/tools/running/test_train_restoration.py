"""A restoration model from a folder of photographs to scores and pictures, by the commands."""

import json
import math
import shutil

import cv2
import mmcv
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from tools_helpers import listing

from attnzoo.backbones.bodies.tiling import restore_tiled
from attnzoo.tools import cli
from attnzoo.tools.config.loading import CONFIG_ROOT
from attnzoo.tools.running.checkpoint import load_checkpoint

SIZES = dict(depths=(2,), num_heads=(2,), embed_dim=16, window_size=8, compress_ratio=2, squeeze_factor=4, num_feat=8)
ITERS = 40
CONFIG = f"""
_base_ = "{CONFIG_ROOT}/hat/hat-small_x2_500k_df2k.py"
model = dict(overlap=8, **{SIZES})
data_root = "{{root}}/"
train_pipeline = _base_.train_pipeline
train_pipeline[1].img_size = 16
train_dataloader = dict(
    batch_size=4, num_workers=0, persistent_workers=False,
    dataset=dict(data_root=data_root, data_prefix=dict(gt="gt", img=None), pipeline=train_pipeline),
)
val_dataloader = dict(num_workers=0, dataset=dict(data_root=data_root, data_prefix=dict(gt="gt", img=None)))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=5e-3))
train_cfg = dict(max_iters={ITERS}, val_interval=20)
custom_hooks = [dict(type="EMAHook", momentum=0.1)]
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=20))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Six cuttings of two photographs, none of even sides, and the config of a tiny model over them."""
    folder = tmp_path_factory.mktemp("restoration")
    (folder / "gt" / "flowers").mkdir(parents=True)
    china, flower = load_sample_images().images
    for index in range(3):
        Image.fromarray(china[150:213, 100 * index : 100 * index + 67]).save(folder / "gt" / f"{index}.png")
        Image.fromarray(flower[100:149, 90 * index : 90 * index + 61]).save(folder / "gt" / "flowers" / f"{index}.png")
    (folder / "tiny.py").write_text(CONFIG.replace("{root}", str(folder)))
    return folder


@pytest.fixture(scope="module")
def trained(place):
    torch.set_num_threads(1)
    assert cli.main(["train", str(place / "tiny.py"), "--work-dir", str(place / "run")]) == 0
    return place / "run" / f"iter_{ITERS}.pth"


def weights_of(length, factor):
    """Row i: what MATLAB's bicubic imresize takes from each pixel of a line for the pixel i of a shorter one."""
    matrix = np.zeros((length // factor, length))
    for i in range(1, length // factor + 1):
        center = i * factor + 0.5 * (1 - factor)
        taps = np.arange(math.floor(center - 2 * factor), math.ceil(center + 2 * factor) + 1)
        x = np.abs(center - taps) / factor
        cubic = np.where(x <= 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))
        mirrored = (taps - 1) % (2 * length)
        np.add.at(matrix[i - 1], np.where(mirrored < length, mirrored, 2 * length - 1 - mirrored), cubic / cubic.sum())
    return matrix


def pair(path, factor=2):
    """The image without what exceeds a multiple of the factor, and its bicubic downscale, 8 bits, by the definition."""
    large = np.array(Image.open(path).convert("RGB"))
    large = large[: len(large) // factor * factor, : large.shape[1] // factor * factor]
    rows, columns = weights_of(large.shape[0], factor), weights_of(large.shape[1], factor)
    small = np.einsum("ih,hwc,jw->ijc", rows, large.astype(np.float64), columns)
    return large, np.floor(small.clip(0, 255) + 0.5).astype(np.uint8)


def scores(left, right, border=2):
    """PSNR and SSIM of the luma by BasicSR's definitions, written with OpenCV."""
    left, right = (
        (image[border:-border, border:-border].astype(np.float64) @ [65.481, 128.553, 24.966]) / 255 + 16
        for image in (left, right)
    )
    psnr = 10 * math.log10(255**2 / np.mean((left - right) ** 2))
    kernel = cv2.getGaussianKernel(11, 1.5)
    mean = lambda x: cv2.filter2D(x, -1, kernel @ kernel.T)[5:-5, 5:-5]  # noqa: E731
    a, b = mean(left), mean(right)
    va, vb, cov = mean(left**2) - a**2, mean(right**2) - b**2, mean(left * right) - a * b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return psnr, np.mean((2 * a * b + c1) * (2 * cov + c2) / ((a**2 + b**2 + c1) * (va + vb + c2)))


def timm_model(checkpoint, tmp_path):
    """The trained model without the mm libraries, through timm's own loading."""
    state = {key.removeprefix("model."): value for key, value in load_checkpoint(checkpoint)["state_dict"].items()}
    torch.save(state, tmp_path / "weights.pth")
    overlay = dict(file=str(tmp_path / "weights.pth"))
    return timm.create_model("hat_small_x2", pretrained=True, pretrained_cfg_overlay=overlay, **SIZES).eval()


def restored(model, small, tile=None):
    with torch.no_grad():
        pixels = torch.from_numpy(small).permute(2, 0, 1)[None] / 255
        out = model(pixels) if tile is None else restore_tiled(model, pixels, tile, 8)
    return (out[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def losses(run):
    lines = next(run.glob("*/vis_data/scalars.json")).read_text().splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]


@pytest.mark.long
def test_the_loss_falls(trained):
    values = losses(trained.parent)
    assert len(values) == ITERS and np.isfinite(values).all()
    assert np.mean(values[-10:]) < 0.6 * np.mean(values[:10])


@pytest.mark.parametrize("tile", [None, 16])
def test_scores_are_those_of_their_definitions(place, trained, tmp_path, tile):
    out = tmp_path / "metrics.json"
    options = ["--cfg-options", f"model.tile={tile}"] if tile else []
    arguments = ["test", place / "tiny.py", trained, "--out", out, "--work-dir", tmp_path / "t", *options]
    assert cli.main([*map(str, arguments)]) == 0
    model = timm_model(trained, tmp_path)
    expected = []
    for path in sorted((place / "gt").rglob("*.png")):
        large, small = pair(path)
        expected.append(scores(restored(model, small, tile), large))
    metrics = json.loads(out.read_text())
    assert metrics == pytest.approx(dict(zip(("PSNR", "SSIM"), np.mean(expected, 0), strict=True)), abs=1e-6)
    assert metrics["PSNR"] > 12


def test_validation_has_scored_the_averaged_weights(trained, place, tmp_path):
    entries = map(json.loads, next(trained.parent.glob("*/vis_data/scalars.json")).read_text().splitlines())
    validated = [entry["PSNR"] for entry in entries if "PSNR" in entry]
    model = timm_model(trained, tmp_path)
    pairs = [pair(path) for path in sorted((place / "gt").rglob("*.png"))]
    assert validated[-1] == pytest.approx(np.mean([scores(restored(model, small), large)[0] for large, small in pairs]))
    content = load_checkpoint(trained)
    raw = {key.removeprefix("module."): value for key, value in content["ema_state_dict"].items()}
    assert any(not torch.equal(value, raw[key]) for key, value in content["state_dict"].items())


@pytest.mark.parametrize("tile", [None, 16])
def test_predict_by_config(place, trained, tmp_path, tile):
    Image.fromarray(pair(place / "gt" / "0.png")[1]).save(tmp_path / "small.png")
    tiles = ["--tile", str(tile)] if tile else []
    arguments = ["predict", place / "tiny.py", trained, tmp_path / "small.png", "--out-dir", tmp_path / "out", *tiles]
    assert cli.main([*map(str, arguments)]) == 0
    assert list(listing(tmp_path / "out")) == ["small_x2.png"]
    got = np.array(Image.open(tmp_path / "out" / "small_x2.png")).astype(int)
    model = timm_model(trained, tmp_path)
    if tile is None:
        assert np.array_equal(got, restored(model, np.array(Image.open(tmp_path / "small.png"))))
    assert got.shape == (62, 66, 3)


@pytest.mark.long
def test_resumed_is_undisturbed(place, trained, tmp_path):
    arguments = ["train", str(place / "tiny.py"), "--work-dir", str(tmp_path)]
    assert cli.main([*arguments, "--cfg-options", "train_cfg.max_iters=20"]) == 0
    assert cli.main([*arguments, "--resume"]) == 0
    left, right = load_checkpoint(tmp_path / f"iter_{ITERS}.pth"), load_checkpoint(trained)
    for part in ("state_dict", "ema_state_dict"):
        for key, value in right[part].items():
            torch.testing.assert_close(left[part][key], value, rtol=0, atol=1e-6, msg=key)


def cut_off(folder):
    path = folder / "gt" / "flowers" / "1.png"
    path.write_bytes(path.read_bytes()[:-200])
    return str(path), "not an image that can be read"


def not_an_image(folder):
    path = folder / "gt" / "1.jpg"
    path.write_text("text")
    return str(path), "not an image that can be read"


def too_small(folder):
    path = folder / "gt" / "small.png"
    Image.new("RGB", (40, 31)).save(path)
    return str(path), "40 x 31 pixels, too small: at least 32 x 32 are needed"


def of_another_size(folder):
    (folder / "config.py").open("a").write("\ntrain_dataloader['dataset']['data_prefix']['img'] = 'img'\n")
    for path in (folder / "gt").rglob("*.png"):
        small = folder / "img" / path.relative_to(folder / "gt")
        small.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pair(path)[1][:, :-1] if path.stem == "2" else pair(path)[1]).save(small)
    return str(folder / "img" / "2.png"), "32 x 31 pixels; at scale 2 the 67 x 63 of", "need 33 x 31"


def without_its_pair(folder):
    of_another_size(folder)
    (folder / "img" / "0.png").unlink()
    return str(folder / "img" / "0.png"), "1 of the 6 low-resolution images are missing"


def an_empty_folder(folder):
    shutil.rmtree(folder / "gt")
    (folder / "gt").mkdir()
    return str(folder / "gt"), "no images in it"


def no_folder(folder):
    shutil.rmtree(folder / "gt")
    return str(folder / "gt"), "no folder"


DAMAGES = [cut_off, not_an_image, too_small, of_another_size, without_its_pair, an_empty_folder, no_folder]


@pytest.mark.parametrize("damage", DAMAGES)
def test_bad_data_is_named_before_the_first_step(place, tmp_path, monkeypatch, capsys, damage):
    shutil.copytree(place / "gt", tmp_path / "gt")
    (tmp_path / "config.py").write_text(CONFIG.replace("{root}", str(tmp_path)))
    expected = damage(tmp_path)
    before = listing(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "config.py"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("attnzoo: error: train_dataloader.dataset") and message.count("\n") == 1
    assert all(part in message for part in expected), message
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["model.model_name=hat_smal_x2"], "did you mean hat_small_x"),
        (["model.tile=20"], "tile must be a positive multiple of 8"),
        (["model.overlap=5"], "overlap must be 0 or a multiple of 8"),
        (["model.init_cfg.type=Kaiming"], "init_cfg={'type': 'Kaiming'}"),
        (["model.init_cfg.type=Pretrained", "model.init_cfg.checkpoint=absent.pth"], "absent.pth"),
        (["train_dataloader.dataset.scale=3"], "train_dataloader.dataset.scale: 3, but the model enlarges 2 times"),
        (["train_dataloader.dataset.pipeline.2.transforms.0.type=D5"], "type='D5' is no transform of albumentations"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_options(place, tmp_path, monkeypatch, capsys, options, expected):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", str(place / "tiny.py"), "--cfg-options", *options]) == 2
    message = capsys.readouterr().err
    assert expected in message and message.count("\n") == 1


def test_bgr_and_rgb_are_not_mixed_up(place):
    """mm reads BGR: the first channel of what the model gets is red."""
    from attnzoo.tools.config.loading import load_config

    cfg = load_config(place / "tiny.py")
    from mmengine.registry import DATASETS

    sample = DATASETS.build(cfg.test_dataloader.dataset)[0]
    large, small = pair(sample["data_samples"].gt_path)
    assert np.array_equal(sample["inputs"].permute(1, 2, 0).numpy(), small)
    assert np.array_equal(sample["data_samples"].gt.permute(1, 2, 0).numpy(), large)
    assert not np.array_equal(mmcv.imread(sample["data_samples"].gt_path)[: len(large), : large.shape[1]], large)
