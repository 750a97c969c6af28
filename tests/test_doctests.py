"""The examples in docstrings say what Python says."""

import doctest
import importlib
from pathlib import Path

import pytest

import attnzoo

ROOT = Path(attnzoo.__file__).parent
# Configs are no modules, and tests have no examples.
PACKAGES = ("backbones", "heads", "kernels", "tools")


def modules() -> list[str]:
    """Names of the modules with examples, found in their text, so that collecting the tests imports none of them."""
    paths = [*ROOT.glob("*.py"), *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))]
    found = []
    for path in sorted(paths):
        if ">>> " in path.read_text():
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append(".".join(("attnzoo", *(part for part in parts if part != "__init__"))))
    return found


@pytest.mark.parametrize("name", modules())
def test_examples(name):
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(verbose=False)
    report: list[str] = []
    for test in doctest.DocTestFinder().find(module):
        runner.run(test, out=report.append)
    assert runner.tries > 0, "its examples are not in docstrings"
    assert runner.failures == 0, "".join(report)
