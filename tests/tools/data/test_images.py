"""The reader of images: the pixels that OpenCV gives, every format but those promised shut, and what is no file."""

import os
import socket

import cv2
import numpy as np
import pytest
from PIL import Image

from attnzoo.tools.common.errors import UserError
from attnzoo.tools.data.images import find_images, image_size, read_image


def smooth(channels: int) -> np.ndarray:
    """Pixels as in a photograph, (61, 83, channels)."""
    noise = np.random.default_rng(0).integers(0, 256, (61, 83, channels), np.uint8)
    return cv2.blur(noise, (9, 9)).reshape(61, 83, channels)


RGB, RGBA = Image.fromarray(smooth(3)), Image.fromarray(smooth(4))
SIXTEEN = Image.fromarray(smooth(1)[..., 0].astype(np.uint16) * 256 + 77)
ORDINARY = {
    "full.jpg": (RGB, dict(quality=95, subsampling=0)),
    "halved.jpg": (RGB, dict(quality=40, subsampling=2)),
    "grey.jpg": (RGB.convert("L"), {}),
    "inks.jpg": (RGB.convert("CMYK"), {}),
    "progressive.jpg": (RGB, dict(progressive=True)),
    "colour.png": (RGB, {}),
    "clear.png": (RGBA, {}),
    "grey.png": (RGB.convert("L"), {}),
    "grey-clear.png": (RGBA.convert("LA"), {}),
    "palette.png": (RGB.quantize(20), {}),
    "palette-clear.png": (RGB.quantize(20), dict(transparency=3)),
    "bits.png": (RGB.convert("1"), {}),
    "sixteen.png": (SIXTEEN, {}),
    "sixteen.tif": (SIXTEEN, {}),
    "colour.tif": (RGB, dict(compression="tiff_lzw")),
    "inks.tif": (RGB.convert("CMYK"), {}),
    "colour.bmp": (RGB, {}),
    "palette.bmp": (RGB.quantize(20), {}),
    "colour.webp": (RGB, dict(quality=80)),
    "clear.webp": (RGBA, dict(lossless=True)),
    "colour.ppm": (RGB, {}),
}  # fmt: skip


def as_mmcv(path) -> np.ndarray:
    """RGB."""
    return cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


@pytest.mark.parametrize("name", ORDINARY)
def test_pixels_are_those_of_mmcv(tmp_path, name):
    image, options = ORDINARY[name]
    image.save(tmp_path / name, **options)
    assert np.array_equal(np.asarray(read_image(tmp_path / name)), as_mmcv(tmp_path / name))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_exif_data_say(tmp_path, suffix, orientation, mode):
    if mode == "CMYK" and suffix in ("png", "webp"):
        pytest.skip("no such file")
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain, turned = tmp_path / f"plain.{suffix}", tmp_path / f"turned.{suffix}"
    RGB.convert(mode).save(plain)
    RGB.convert(mode).save(turned, exif=exif)
    moves = {
        1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2), 6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
        8: lambda x: np.rot90(x),
    }  # fmt: skip
    pixels = np.asarray(read_image(turned))
    assert np.array_equal(pixels, moves[orientation](np.asarray(read_image(plain))))
    assert image_size(turned) == pixels.shape[1::-1]
    if suffix != "webp":  # whose orientation OpenCV does not read
        assert np.array_equal(pixels, as_mmcv(turned))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_what_cannot_be_had_in_eight_bits_is_refused(tmp_path, mode):
    Image.new(mode, (4, 4)).save(tmp_path / "x.tif")
    with pytest.raises(UserError, match=r"x\.tif: not an image that can be read .*32 bits a channel"):
        read_image(tmp_path / "x.tif")


@pytest.mark.parametrize("kind", ["EPS", "GIF", "ICO", "JPEG2000"])
def test_a_suffix_does_not_open_another_format(tmp_path, kind, monkeypatch):
    path = tmp_path / "photo.jpg"
    RGB.save(path, format=kind)
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(UserError, match=r"photo\.jpg: not an image that can be read"):
        read_image(path)
    assert not (tmp_path / "ran").exists()


def test_a_suffix_may_be_wrong_among_the_formats(tmp_path):
    RGB.save(tmp_path / "photo.jpg", format="PNG")
    assert np.array_equal(np.asarray(read_image(tmp_path / "photo.jpg")), np.asarray(RGB))


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder", "dangling", "loop"])
@pytest.mark.parametrize("given", ["file", "folder"])
def test_what_is_no_file_is_refused_and_not_opened(tmp_path, monkeypatch, kind, given):
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    path = "x.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(path)
    elif kind == "folder" and given == "file":
        pytest.skip("a folder is looked into")
    elif kind == "folder":
        os.mkdir(path)
    else:
        os.symlink({"device": "/dev/zero", "dangling": "nowhere", "loop": "x.png"}[kind], path)
    with pytest.raises(UserError, match=r"x\.png: not (a regular file|an image that can be read)"):
        find_images([path if given == "file" else "."])


def test_a_bomb_is_refused(tmp_path):
    (tmp_path / "x.ppm").write_bytes(b"P6 40000 40000 255\n" + bytes(100))
    with pytest.raises(UserError, match=r"x\.ppm: not an image that can be read .*DecompressionBombError"):
        find_images([tmp_path])


def test_broken_exif_data_do_not_matter(tmp_path):
    RGB.save(tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(5))
    assert read_image(tmp_path / "x.jpg").size == RGB.size


def test_strips(tmp_path):
    for size in ((1, 5000), (5000, 1), (1, 1)):
        Image.new("RGB", size, (1, 2, 3)).save(tmp_path / "x.png")
        assert np.asarray(read_image(tmp_path / "x.png")).shape == (size[1], size[0], 3)
