"""Pairs of images."""

import numpy as np
import pytest
from PIL import Image

from attnzoo.heads import PairedImageDataset


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


def paired(folder, *steps, img="img", **options):
    options = dict(filename_tmpl="{}x4", data_root=str(folder), scale=4, data_prefix=dict(gt="gt", img=img), **options)
    return PairedImageDataset(pipeline=[dict(type=f"attnzoo.{step.pop('type')}", **step) for step in steps], **options)


@pytest.fixture
def pairs():
    """Makes the data set of a folder, with the steps of a pipeline."""
    return paired
