"""One thread a process: tests run in as many processes as there are cores."""

import pytest
import torch

import attnzoo  # noqa: F401  registers the models

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
