"""Every class in the registries of attnzoo is exported and explained."""

import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest
from mmengine.registry import Registry

from attnzoo import heads
from attnzoo.heads.mm import registry

REGISTRIES = [value for value in vars(registry).values() if isinstance(value, Registry) and value.scope == "attnzoo"]


def modules() -> list[ModuleType]:
    """All of heads, so that a class whose file no package imports is registered too."""
    return [importlib.import_module(info.name) for info in pkgutil.walk_packages(heads.__path__, "attnzoo.heads.")]


def faults(name: str, kind: type) -> list[str]:
    """What is missing of a registered class, and where it belongs."""
    folder = kind.__module__.rpartition(".")[0]
    package = importlib.import_module(folder)
    found = []
    if name not in package.__all__ or getattr(heads, name, None) is not kind:
        found.append(f"{name} is registered but not exported: import it in {folder} and add it to __all__ there")
    if not inspect.cleandoc(vars(kind).get("__doc__") or ""):
        found.append(f"{name} is registered but has no docstring: {kind.__module__}")
    return found


def test_what_is_registered_is_exported_and_explained():
    modules()
    classes = {name: kind for registry in REGISTRIES for name, kind in registry.module_dict.items()}
    assert len(classes) > 10
    problems = [fault for name, kind in classes.items() for fault in faults(name, kind)]
    assert not problems, "\n".join(problems)


def test_what_is_exported_is_registered():
    registered = {kind for registry in REGISTRIES for kind in registry.module_dict.values()}
    classes = [name for name in heads.__all__ if isinstance(getattr(heads, name), type)]
    assert [name for name in classes if getattr(heads, name) not in registered] == []
    assert sorted(set(heads.__all__) - set(classes)) == ["use_operators"]
    assert len(set(heads.__all__)) == len(heads.__all__)


@pytest.mark.parametrize("doc", ["", "A head."])
def test_what_is_missing_is_told(doc):
    forgotten = type("Forgotten", (), {"__doc__": doc, "__module__": "attnzoo.heads.detection.forgotten"})
    place = "import it in attnzoo.heads.detection and add it to __all__ there"
    expected = [f"Forgotten is registered but not exported: {place}"]
    if not doc:
        expected.append("Forgotten is registered but has no docstring: attnzoo.heads.detection.forgotten")
    assert faults("Forgotten", forgotten) == expected
