"""The floors and rooms of the package: which file may import which, at its top or inside functions."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("kernels", "backbones", "heads", "tools")
# Of tools: the folders that others stand on, lowest first. The rest stand on these and not on each other, but for the
# demo, which does what the others do. Commands, the files beside the folders, stand on all folders, not on each other.
GROUND = ("common", "config", "data", "running")
SUMMIT = "demonstration"
# Of backbones: what families are made of, lowest first.
MATERIAL = ("checkpoints", "contract", "bodies", "modules")


def module_files(root: Path) -> dict[str, Path]:
    """The files of the package by the names of their modules."""
    files = [root / "__init__.py", root / "__main__.py"]
    files += [path for floor in FLOORS for path in (root / floor).rglob("*.py")]
    return {".".join(("attnzoo", *path.relative_to(root).with_suffix("").parts)): path for path in files}


def imports(name: str, source: str, names: set[str]) -> set[str]:
    """The modules of the package that a module imports, anywhere in its source, by relative or absolute names.

    A name that is taken from a package is one of its modules, or else something in its `__init__`. Of
    `importlib.import_module` counts every module that the text of its argument may name.
    """
    package = name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {target for alias in node.names if (target := _file_of(alias.name, names))}
        elif isinstance(node, ast.ImportFrom):
            path = ".".join([*package[: len(package) + 1 - node.level], *filter(None, [node.module])])
            path = path if node.level else node.module
            found |= {_file_of(f"{path}.{alias.name}", names) or _file_of(path, names) for alias in node.names}
        elif isinstance(node, ast.Call) and _called(node) == "import_module" and node.args:
            found |= _named(node.args[0], package, names)
    return {target for target in found if target} - {name}


def _called(node: ast.Call) -> str:
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def _file_of(path: str, names: set[str]) -> str | None:
    return next((name for name in (path, f"{path}.__init__") if name in names), None)


def _named(argument: ast.expr, package: list[str], names: set[str]) -> set[str]:
    """Of a text with holes in it, all modules that it fits: a hole is a name without dots. Of what is no text, none."""
    if not isinstance(argument, ast.JoinedStr | ast.Constant):
        return set()
    parts = argument.values if isinstance(argument, ast.JoinedStr) else [argument]
    text = "".join(re.escape(part.value) if isinstance(part, ast.Constant) else r"\w+" for part in parts)
    level = len(re.match(r"(?:\\\.)*", text)[0]) // 2
    if level:
        text = ".".join([*package[: len(package) + 1 - level], text[2 * level :]])
    return {name for name in names if re.fullmatch(text, name.removesuffix(".__init__"))}


def graph(root: Path = ROOT) -> dict[str, set[str]]:
    """Which module imports which: what its source names, and the folders on the way there, whose `__init__` runs."""
    files = module_files(root)
    edges = {name: imports(name, path.read_text(encoding="utf-8"), set(files)) for name, path in files.items()}
    for name, targets in edges.items():
        own = {f"{package}.__init__" for package in _packages(name)}
        targets |= {init for x in targets for p in _packages(x) if (init := f"{p}.__init__") in files} - own
    return edges


def _packages(name: str) -> list[str]:
    """The folders that a module is in, the package among them."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Modules each of which imports the next, and the last the first; empty if there are none."""
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name not in done:
            for target in sorted(edges[name]):
                if found := visit(target, [*way, name]):
                    return found
            done.add(name)
        return []

    return next((found for name in sorted(edges) if (found := visit(name, []))), [])


EDGES = graph()


def place(name: str) -> list[str]:
    """The folders and the file of a module, below the package."""
    return name.split(".")[1:]


def test_imports_that_cannot_be_followed_are_few():
    """Modules that import what a variable names, and what that is."""
    known = {
        "attnzoo.backbones.__init__": "the families, which must not import it",
        "attnzoo.heads.mm.ops.__init__": "two modules of mmcv",
        "attnzoo.tools.exporting.export": "the ONNX libraries",
    }
    found = set()
    for name, path in module_files(ROOT).items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _called(node) == "import_module":
                followed = node.args and isinstance(node.args[0], ast.Constant | ast.JoinedStr)
                if not followed:
                    found.add(name)
            elif isinstance(node, ast.Name | ast.Attribute):
                assert getattr(node, "id", getattr(node, "attr", "")) not in ("__import__", "run_module"), name
            elif isinstance(node, ast.ImportFrom | ast.Import):
                assert not [x for x in node.names if x.name.endswith("import_module") and x.asname], name
    assert found == known.keys()


def test_no_circle():
    assert circle(EDGES) == []


def test_imports_run_downwards():
    def floor(name: str) -> int:
        first = place(name)[0]
        return FLOORS.index(first) if first in FLOORS else {"__init__": 1.5, "__main__": 4}[first]

    up = [f"{name} -> {target}" for name in EDGES for target in EDGES[name] if floor(target) > floor(name)]
    assert not up


def test_tasks_of_heads_stand_on_the_bridge_alone():
    """What deploys models stands on the tasks, and none of them on it."""
    wrong = [
        f"{name} -> {target}"
        for name in EDGES
        for target in EDGES[name]
        if place(name)[0] == place(target)[0] == "heads" and len(place(name)) > 2 < len(place(target))
        if place(target)[1] not in ("mm", place(name)[1]) and place(name)[1] != "deploy"
    ]
    assert not wrong


def test_families_do_not_import_each_other():
    """Nor do the rooms that they are made of import families."""

    def height(name: str) -> int:
        second = place(name)[1]
        return MATERIAL.index(second) if second in MATERIAL else 4 if second != "__init__" else 5

    inside = [
        (name, target) for name in EDGES for target in EDGES[name] if place(name)[0] == place(target)[0] == "backbones"
    ]
    sideways = [
        f"{name} -> {target}"
        for name, target in inside
        if height(target) > height(name) or height(name) == height(target) == 4
    ]
    assert len(inside) > 20 and not sideways


def test_commands_stand_on_folders_and_folders_on_their_ground():
    def height(name: str) -> int:
        second = place(name)[1]
        if len(place(name)) == 2:
            return {"__init__": -1, "cli": 10}.get(second, 9)
        if second == SUMMIT:
            return len(GROUND) + 1
        return GROUND.index(second) if second in GROUND else len(GROUND)

    wrong = [
        f"{name} -> {target}"
        for name in EDGES
        for target in EDGES[name]
        if place(name)[0] == place(target)[0] == "tools"
        if height(target) > height(name)
        or (height(target) == height(name) >= len(GROUND) and place(name)[1] != place(target)[1])
    ]
    assert not wrong


@pytest.mark.parametrize(
    "line",
    [
        "from . import b",
        "from .b import x",
        "from attnzoo.tools import b",
        "import attnzoo.tools.b",
        "import attnzoo.tools.b as other",
        "from ..tools.b import x",
        "def f():\n    from .b import x",
        "def f():\n    import attnzoo.tools.b",
        "class A:\n    def f(self):\n        if True:\n            from . import b",
        "import importlib\nimportlib.import_module('.b', __package__)",
        "import importlib\nimportlib.import_module('attnzoo.tools.b')",
        "from importlib import import_module\nimport_module(f'.{name}', __package__)",
    ],
)
def test_an_import_is_seen_wherever_it_stands(line, tmp_path):
    for floor in FLOORS:
        (tmp_path / floor).mkdir()
    for name in ("__init__", "__main__", "tools/__init__"):
        (tmp_path / f"{name}.py").touch()
    (tmp_path / "tools/a.py").write_text(line)
    (tmp_path / "tools/b.py").write_text("def f():\n    from .a import f\n")
    found = circle(graph(tmp_path))
    assert set(found) == {"attnzoo.tools.a", "attnzoo.tools.b"}


def test_every_module_is_found():
    assert importlib.util.find_spec("attnzoo") and len(EDGES) > 150
    assert all(name.startswith("attnzoo.") for name in EDGES)
