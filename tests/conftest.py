"""One thread a process: tests run in as many processes as there are cores."""

import gc
import os

import pytest
import torch

# Before Triton decorates a kernel: without a GPU the kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import attnzoo  # noqa: F401  registers the models

torch.set_num_threads(1)


def pytest_collection_finish():
    """Takes all that is there by now, modules and tests, out of what garbage collections go through."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
