"""A quick start of mmengine's runs: what is the same each time is left out, and none waits for the next second."""

import ast
import functools
import time
from collections.abc import Callable
from types import SimpleNamespace

import mmengine._strategy.base
import mmengine.dataset.base_dataset
import mmengine.runner.runner
import yapf.yapflib.yapf_api

from attnzoo.tools.running import engine


def _unformatted(text: str, **options: object) -> tuple[str, bool]:
    ast.parse(text)  # yapf raises, too, for what is no Python
    return text, True


class _Clock(SimpleNamespace):
    """The module `time` of those who name runs by the second: to wait, it runs ahead."""

    ahead = 0.0

    def __init__(self) -> None:
        super().__init__(**vars(time))
        self.time = lambda: time.time() + self.ahead
        self.strftime = lambda form, when=None: time.strftime(form, when or time.localtime(self.time()))

        def sleep(seconds: float) -> None:
            self.ahead += seconds

        self.sleep = sleep


def replace(setattr: Callable[[object, str, object], None] = setattr) -> None:
    """Replace, by a `setattr` that may know the way back."""
    # A run lays out the text of its config several times, which takes most of its start.
    setattr(yapf.yapflib.yapf_api, "FormatCode", _unformatted)
    setattr(mmengine.runner.runner, "collect_env", functools.cache(mmengine.runner.runner.collect_env))
    # Two runs of one process do not begin in the same second: the second one waits.
    clock = _Clock()
    for module in (engine, mmengine.runner.runner, mmengine._strategy.base):
        setattr(module, "time", clock)
    # A collection whenever a data set is built.
    setattr(mmengine.dataset.base_dataset, "gc", SimpleNamespace(collect=int))
