"""A small data set, made once, with what the tests need to know of it."""

import numpy as np
import pytest

from attnzoo.tools.data.driving.dataset import make_driving_data

SMALL = {"seed": 3, "scenes": 1, "held_out": 1, "samples": 3, "image_size": (128, 72)}


@pytest.fixture(scope="session")
def small():
    return SMALL


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return make_driving_data(tmp_path_factory.mktemp("driving") / "data", **SMALL, processes=1)


@pytest.fixture
def rng():
    return np.random.default_rng(0)
