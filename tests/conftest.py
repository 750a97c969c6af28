"""One thread a process: tests run in as many processes as there are cores."""

import gc
import os

# Before torch reads it, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import quick_draws
import torch

# Before Triton decorates a kernel: without a GPU the kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import attnzoo  # noqa: F401  registers the models

torch.set_num_threads(1)
# Until the tests are collected: a quarter of that time would go into collections of garbage.
gc.disable()
quick_draws.replace()


def pytest_addoption(parser):
    parser.addoption("--fast", action="store_true", help="the first case of each test that is neither long nor slow")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("fast"):
        return
    first = {}
    for item in items:
        if not item.get_closest_marker("long") and not item.get_closest_marker("slow"):
            first.setdefault(item.nodeid.partition("[")[0], item)
    config.hook.pytest_deselected(items=list(set(items).difference(first.values())))
    items[:] = first.values()


def pytest_collection_finish():
    freeze()
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _frozen():
    yield
    freeze()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def freeze():
    """Takes what is there by now, modules and tests, out of what garbage collections go through.

    With all of the libraries imported a collection takes a third of a second, and mmengine asks for one whenever it
    builds a data set.
    """
    gc.collect()
    gc.freeze()
