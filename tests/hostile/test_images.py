"""Image files drawn to be wrong: pixels as OpenCV reads them, or one refusal that names the file."""

import contextlib
import io
import os
import random
import socket
import struct
import subprocess
import zlib
from pathlib import Path

import cv2
import numpy as np
from campaign import campaign
from PIL import Image

from attnzoo.tools.common.errors import UserError
from attnzoo.tools.data.images import FORMATS, SUFFIXES, find_images, image_size, read_image
from attnzoo.tools.predicting.upscale import _open

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n9 9 moveto showpage\n%%EOF\n"


def some_pixels(rng: random.Random) -> Image.Image:
    generator = np.random.default_rng(rng.randrange(2**32))
    width, height = rng.choice([(1, 1), (1, rng.randrange(1, 3000)), (rng.randrange(1, 3000), 1), (17, 9), (64, 40)])
    noise = generator.integers(0, 256, (height, width, 4), np.uint8)
    if rng.random() < 0.5:
        noise = cv2.blur(noise, (5, 5))
    mode = rng.choice(["RGB", "RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "F", "I", "YCbCr", "LAB"])
    if mode in ("I;16", "F", "I"):
        values = noise[..., 0].astype({"I;16": np.uint16, "F": np.float32, "I": np.int32}[mode])
        return Image.fromarray(values * (257 if mode != "F" else 1))
    image = Image.fromarray(noise if mode in ("RGBA", "LA") else noise[..., :3].copy())
    return image if mode == "LAB" else image.convert(mode)


def encoded(rng: random.Random) -> tuple[bytes, str]:
    """A file of some format, and which."""
    while True:
        image = some_pixels(rng)
        kind = rng.choice([*FORMATS, *FORMATS, "GIF", "JPEG2000", "TGA", "ICO", "PCX", "EPS", "SGI", "DDS"])
        options: dict = {}
        if rng.random() < 0.3 and kind in ("JPEG", "PNG", "WEBP", "TIFF"):
            exif = Image.Exif()
            exif[0x0112] = rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 65535])
            options["exif"] = exif
        if rng.random() < 0.2 and kind in ("PNG", "TIFF", "WEBP", "GIF"):
            options |= {"save_all": True, "append_images": [image, image]}
        if kind == "JPEG" and rng.random() < 0.3:
            options |= {"progressive": True, "quality": rng.choice([1, 50, 95])}
        if kind == "TIFF" and rng.random() < 0.5:
            options["compression"] = rng.choice(["tiff_lzw", "tiff_deflate", "packbits", "jpeg"])
        file = io.BytesIO()
        with contextlib.suppress(OSError, ValueError, KeyError, SystemError, AttributeError, TypeError, RuntimeError):
            image.save(file, format=kind, **options)
            return file.getvalue(), kind


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(rng: random.Random) -> bytes:
    """A small file that says that it is a huge image."""
    side = rng.choice([20_000, 65_535, 2**20, 2**31 - 1])
    how = rng.randrange(4)
    if how == 0:
        header = struct.pack(">IIBBBBB", side, side, 8, rng.choice([0, 2, 6]), 0, 0, 0)
        data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + data
    if how == 1:
        return b"P6 %d %d 255\n" % (side, side) + bytes(1000)
    if how == 2:
        return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    text = zlib.compress(bytes(200_000_000)) if rng.random() < 0.05 else zlib.compress(bytes(5_000_000))
    header = struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"zTXt", b"a\0\0" + text) + chunk(b"IDAT", b"")


def damaged(rng: random.Random, content: bytes) -> bytes:
    data = bytearray(content)
    how = rng.randrange(5)
    if how == 0:
        return content[: rng.randrange(len(content) + 1)]
    if how == 1:
        for _ in range(rng.choice([1, 3, 30])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif how == 2:
        for _ in range(rng.choice([1, 5])):  # headers are at the beginning
            data[rng.randrange(min(len(data), 64))] = rng.choice([0, 1, 127, 128, 255])
    elif how == 3:
        at = rng.randrange(len(data))
        data[at:at] = rng.randbytes(rng.choice([1, 4, 100]))
    else:
        at = rng.randrange(len(data))
        data[at : at + rng.choice([4, 50])] = b"\xff" * rng.choice([0, 4, 50])
    return bytes(data)


def no_file(rng: random.Random, path: Path) -> None:
    """Something of that name that is no regular file."""
    how = rng.randrange(6)
    if how == 0:
        os.mkfifo(path)
    elif how == 1:
        path.symlink_to(path.parent / "nowhere")
    elif how == 2:
        path.symlink_to(path)
    elif how == 3:
        path.symlink_to("/dev/zero")
    elif how == 4:
        path.mkdir()
    else:
        # The path of a socket must be short, and the name is not.
        short = path.parent.parent / f"s{os.getpid()}"
        socket.socket(socket.AF_UNIX).bind(str(short))
        short.rename(path)


def a_name(rng: random.Random, suffix: str) -> str:
    stem = rng.choice(
        ["photo", "a b", "-x", "new\nline", "\x1b[31mred", "é" * 100, "x" * 230, "'", '"', "%s{0}", "..x", "."]
    )
    return stem + rng.choice([suffix, suffix.upper()])


def as_opencv(content: bytes) -> np.ndarray | None:
    """RGB as mmcv gives it, None where OpenCV cannot read it."""
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return None
    return None if image is None else image[..., ::-1]


def started(program: str) -> bool:
    """Whether this process has a child of that name."""
    children = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "comm="], capture_output=True, text=True).stdout
    return program in children.split()


def test_drawn_images(tmp_path, monkeypatch):
    # A Ghostscript that tells when it is started, as Pillow starts it for EPS.
    mark, tools = tmp_path / "ran", tmp_path / "bin"
    tools.mkdir()
    (tools / "gs").write_text(f"#!/bin/sh\ntouch {mark}\n")
    (tools / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")

    def draw(seed: int) -> str:
        rng = random.Random(seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        path = folder / a_name(rng, rng.choice(SUFFIXES))
        how = rng.choice(["whole", "whole", "damaged", "damaged", "damaged", "EPS", "bomb", "no file", "text"])
        content, kind = b"", ""
        if how in ("whole", "damaged"):
            content, kind = encoded(rng)
            if how == "damaged":
                content = damaged(rng, content)
        elif how == "EPS":
            content = rng.choice([EPS, b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 30, len(EPS)) + bytes(18) + EPS])
        elif how == "bomb":
            content = bomb(rng)
        elif how == "text":
            content = rng.choice(
                [b"", b"text", rng.randbytes(100), b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0" * 9]
            )
        if how == "no file":
            no_file(rng, path)
        else:
            path.write_bytes(content)
        try:
            outcome = looked_at(rng, folder, path, how, content, kind)
        except UserError as error:
            assert how != "whole" or kind not in FORMATS or any(text in str(error) for text in ("32 bits", "LAB")), (
                error
            )
            assert str(path) in str(error) or str(folder) in str(error)
            outcome = "refused" if how != "whole" else "whole, of another format or kind: refused"
        assert not mark.exists() and not started("gs")
        return outcome

    campaign("images", draw, 1500, seconds=60)


def looked_at(rng: random.Random, folder: Path, path: Path, how: str, content: bytes, kind: str) -> str:
    listed = find_images([rng.choice([folder, path])])
    if not listed or how == "no file":
        raise AssertionError(f"{how}: accepted")
    pixels = np.asarray(read_image(path))
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    assert image_size(path) == (pixels.shape[1], pixels.shape[0]), kind
    with contextlib.suppress(UserError):
        exact = _open(path)
        assert exact.size == (pixels.shape[1], pixels.shape[0]) and exact.mode in ("L", "LA", "RGB", "RGBA")
    if how != "whole":
        return f"{how}, accepted"
    theirs = as_opencv(content)
    if theirs is None:
        return "whole, accepted; OpenCV cannot read it"
    if kind == "WEBP" or (kind == "TIFF" and _has_alpha(content)):  # the two differences that are documented
        return "whole, accepted"
    assert theirs.shape == pixels.shape
    difference = np.abs(theirs.astype(int) - pixels).max()
    assert difference <= (0 if kind != "TIFF" else 1), f"{kind}: {difference}"
    return "whole, as OpenCV reads it"


def _has_alpha(content: bytes) -> bool:
    with Image.open(io.BytesIO(content)) as image:
        return image.mode in ("RGBA", "LA")
