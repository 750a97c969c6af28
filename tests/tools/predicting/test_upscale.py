"""Predict with a restoration model: image files made larger."""

import sys

import golden_files
import interpreters
import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageCms
from tools_helpers import ENVIRONMENT, listing

from attnzoo.tools import cli
from attnzoo.tools.predicting import upscale
from attnzoo.tools.predicting.upscale import _open, restoration_models, upscale_image

NAME = "hat_small_x2"


def nearest(pixels: torch.Tensor) -> torch.Tensor:
    """A restoration that is known: every pixel thrice."""
    return pixels.repeat_interleave(3, 2).repeat_interleave(3, 3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A published file in its layout."""
    weights = golden_files.checkpoint(golden_files.load(NAME))
    path = tmp_path_factory.mktemp("hat") / "HAT-S_SRx2.pth"
    torch.save({"params_ema": {key: value.float() for key, value in weights.items()}}, path)
    return path


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 17, 3), np.uint8)).save(path)
    return path


def refused(capsys, *arguments, folder):
    """Run a command that must be refused; return its message."""
    before = listing(folder)
    assert cli.main(["predict", *map(str, arguments)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("attnzoo: error: ") and message.count("\n") == 1
    assert listing(folder) == before
    return message


def test_a_file_is_what_the_model_says(checkpoint, photo, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["predict", NAME, str(checkpoint), str(photo), "--out-dir", str(out)]) == 0
    assert "1 pictures in" in capsys.readouterr().out
    assert list(listing(out)) == ["photo_x2.png"]
    model = timm.create_model(NAME).eval()
    convert = sys.modules[type(model).__module__].checkpoint_filter_fn
    model.load_state_dict(convert(torch.load(checkpoint), model))
    pixels = torch.from_numpy(np.array(Image.open(photo))).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        want = (model(pixels)[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(np.array(Image.open(out / "photo_x2.png")), want)


@pytest.mark.long
def test_tiles_without_an_mm_library(checkpoint, photo, tmp_path):
    Image.open(photo).resize((40, 18)).save(tmp_path / "wide.png")
    code = (
        "import sys\n"
        "for name in ('mmengine', 'mmcv', 'mmdet', 'mmseg'): sys.modules[name] = None\n"
        "from attnzoo.tools.cli import main\n"
        f"sys.exit(main(['predict', {NAME!r}, {str(checkpoint)!r}, 'wide.png', '--tile', '32', '--out-dir', 'out']))"
    )
    done = interpreters.run(code, env=ENVIRONMENT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "out" / "wide_x2.png").size == (80, 36)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "CMYK"])
def test_kinds_of_images(mode, tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (5, 7, 4), np.uint8)
    image = Image.fromarray(colours if "A" in mode else colours[..., :3].copy()).convert(mode)
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image.save(path)
    kind = {"1": "L", "P": "RGB", "CMYK": "RGB"}.get(mode, mode)
    opened = _open(path)
    assert opened.mode == kind
    result = upscale_image(nearest, opened)
    assert (result.mode, result.size) == (kind, (21, 15))
    middles = np.array(result.convert("RGBA"))[1::3, 1::3]
    assert np.array_equal(middles[..., :3], np.array(opened.convert("RGBA"))[..., :3])
    if "A" in mode:
        assert np.abs(np.array(result.getchannel("A"))[1::3, 1::3].astype(int) - colours[..., 3]).max() < 60
        assert result.getchannel("A").getextrema() != (255, 255)


def test_orientation_and_profile_are_kept(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.new("RGB", (8, 4), (200, 10, 10))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.jpg", exif=exif, icc_profile=profile)
    opened = _open(tmp_path / "x.jpg")
    assert opened.size == (4, 8)
    assert opened.info == {"icc_profile": profile}


@pytest.mark.parametrize("kind", ["I;16", "F", "frames", "RGB;16"])
def test_what_would_lose_is_refused(kind, tmp_path, capsys):
    path = tmp_path / ("x.png" if "16" in kind else "x.tif")
    if kind == "RGB;16":
        import cv2

        cv2.imwrite(str(path), np.full((4, 4, 3), 40000, np.uint16))
    elif kind == "frames":
        Image.new("L", (4, 4)).save(path, save_all=True, append_images=[Image.new("L", (4, 4))])
    else:
        Image.fromarray(np.ones((4, 4), np.uint16 if kind == "I;16" else np.float32)).save(path)
    message = refused(capsys, NAME, "absent.pth", path, "--out-dir", tmp_path / "out", folder=tmp_path)
    assert str(path) in message
    assert ("frames" if kind == "frames" else "more than 8 bits a channel") in message


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([NAME, "absent.pth", "photo.png"], "no checkpoint 'absent.pth'"),
        ([NAME, "{checkpoint}", "absent.png"], "no image 'absent.png'"),
        ([NAME, "{checkpoint}", "photo.png", "--tile", "20"], "--tile must be a positive multiple of 16"),
        ([NAME, "{checkpoint}", "photo.png", "--tile", "0"], "--tile must be a positive multiple of 16"),
        ([NAME, "{checkpoint}", "photo.png", "--score", "0.5"], "--score and --cfg-options are not for hat_small_x2"),
        (["hat_small_x3", "{checkpoint}", "photo.png"], "the checkpoint enlarges 2 times, the model 3 times"),
        (["hat_x2", "{checkpoint}", "photo.png"], "not a checkpoint of this HAT"),
        (["hat_smal_x2", "{checkpoint}", "photo.png", "--tile", "16"], "did you mean hat_small_x2"),
        (["van_b0", "{checkpoint}", "photo.png", "--tile", "16"], "--tile is for restoration models"),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, list) else "",
)
def test_mistakes(arguments, expected, checkpoint, photo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = [argument.format(checkpoint=checkpoint) for argument in arguments]
    assert expected in refused(capsys, *arguments, "--out-dir", "out", folder=tmp_path)


def test_too_large_an_image_names_the_way_out(checkpoint, photo, tmp_path, monkeypatch, capsys):
    def exhausted(restore, image):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    monkeypatch.setattr(upscale, "upscale_image", exhausted)
    message = refused(capsys, NAME, checkpoint, photo, "--out-dir", tmp_path / "out", folder=tmp_path)
    assert "not enough memory for 17 x 9: try --tile 256" in message


def test_restoration_models_are_those_without_classes():
    names = restoration_models()
    assert {"hat_small_x4", "hat_x2", "hat_large_x3", "hat_real_x4"} <= set(names)
    assert not any(name.startswith("van") for name in names)


@pytest.mark.long
def test_no_picture_takes_the_place_of_an_input_or_of_another_file(checkpoint, photo, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [NAME, checkpoint, photo, "--out-dir", out]
    assert cli.main(["predict", *map(str, arguments)]) == 0
    first = (out / "photo_x2.png").read_bytes()
    assert cli.main(["predict", *map(str, arguments)]) == 0
    assert (out / "photo_x2.png").read_bytes() == first
    (out / "photo_x2.png").write_bytes(photo.read_bytes())
    assert "photo_x2.png: in the way" in refused(capsys, *arguments, folder=tmp_path)
    (out / "photo_x2.png").unlink()
    (out / "photo_x2.png").symlink_to(photo)
    assert "would be written over" in refused(capsys, *arguments, "--overwrite", folder=tmp_path)
    (out / "photo_x2.png").unlink()
    (out / "photo_x2.png").mkdir()
    assert "a folder is in the way" in refused(capsys, *arguments, "--overwrite", folder=tmp_path)


def test_long_names(checkpoint, photo, tmp_path):
    photo.rename(tmp_path / f"{'x' * 240}.png")
    out = tmp_path / "out"
    assert cli.main(["predict", NAME, str(checkpoint), str(tmp_path), "--out-dir", str(out)]) == 0
    ((name, _),) = listing(out).items()
    assert name.startswith("xxx") and name.endswith("x_x2.png") and len(name) < 230
