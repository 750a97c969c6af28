"""The package as its users get it."""

import configparser
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import interpreters
import pytest

import attnzoo

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("backbones", "heads", "kernels", "tools")
FLOORS = tuple(f"{folder}/" for folder in FOLDERS)


def python(code: str, cwd, **env: str) -> str:
    import os

    result = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_setup_lists_every_package():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    inits = [path for folder in FOLDERS for path in (ROOT / folder).rglob("__init__.py")]
    assert listed == {"attnzoo", *(f"attnzoo.{'.'.join(p.parent.relative_to(ROOT).parts)}" for p in inits)}


def test_the_oldest_versions_are_the_declared_ones():
    """What `make test-oldest` installs is what setup.cfg allows at the least."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    wanted = [setup["options"]["install_requires"], *(setup["options.extras_require"][key] for key in ("mm", "onnx"))]
    floors = dict(re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(wanted), re.MULTILINE))
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "tests" / "oldest.txt").read_text(), re.MULTILINE))
    assert floors == pinned


@pytest.mark.long
def test_wheel(tmp_path):
    pip = [sys.executable, "-m", "pip", "--quiet"]
    # Away from the source: setuptools leaves a build folder behind.
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if names.returncode:
        pytest.skip("not a git checkout")
    for name in names.stdout.splitlines():
        if (ROOT / name).is_file():
            (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "source" / name).write_bytes((ROOT / name).read_bytes())
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(tmp_path / "source")]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    assert {"attnzoo/__init__.py", "attnzoo/backbones/van.py", "attnzoo/model_cards/van.md"} <= inside
    assert "attnzoo/py.typed" in inside
    modules = {
        f"attnzoo/{name}" for name in names.stdout.splitlines() if name.startswith(FLOORS) and name[-3:] == ".py"
    }
    assert len(modules) > 200 and modules <= inside
    configs = {f"attnzoo/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.py")}
    assert configs and configs <= inside
    assert not [name for name in inside if "tests" in name or name.endswith("setup.py")]

    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    code = "import attnzoo; from attnzoo.tools.config import loading; print(attnzoo.__file__, *loading.list_configs())"
    file, *names = python(code, tmp_path, PYTHONPATH=str(site)).split()
    assert Path(file).is_relative_to(site) and len(names) == len([c for c in configs if "/_" not in c])


@pytest.mark.long
def test_import_needs_little_and_is_quick(tmp_path):
    code = (
        "import sys, time; t = time.perf_counter(); import {0}; print(time.perf_counter() - t); "
        "print(*{{m.split('.')[0] for m in sys.modules}} & {{'mmengine', 'mmcv', 'mmdet', 'mmseg', 'onnx', 'sklearn'}})"
    )
    seconds: dict[str, float] = {"timm": 1e9, "attnzoo": 1e9}
    # Interleaved, the best of each: another process may be at work beside this one.
    for _ in range(2):
        for name in seconds:
            taken, loaded = python(code.format(name), tmp_path).split("\n")[:2]
            seconds[name] = min(seconds[name], float(taken))
            assert loaded == ""
        if seconds["attnzoo"] <= 1.5 * seconds["timm"]:
            return
    pytest.fail(f"{seconds}")


@pytest.mark.parametrize("target", ["demo", "test", "test-fast", "test-slow", "test-hostile", "test-oldest", "lint"])
def test_make_knows_the_target(target):
    result = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_one_version_and_licence_everywhere():
    yaml = pytest.importorskip("yaml")
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == setup["metadata"]["version"] == attnzoo.__version__
    assert citation["license"] == setup["metadata"]["license"]
    assert f"\n## {attnzoo.__version__} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_workflows_run_what_the_makefile_has():
    yaml = pytest.importorskip("yaml")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    run = set()
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values():
            called = [step["run"] for step in job["steps"] if "run" in step]
            choices = job.get("strategy", {}).get("matrix", {}).get("target", [""])
            run |= {line.replace("${{ matrix.target }}", choice) for line in called for choice in choices}
    assert {"make lint", "make test", "make test-oldest", "make test-slow", "make test-hostile"} == run
    assert {line.removeprefix("make ") for line in run} <= targets


@pytest.mark.long
def test_fast_takes_the_first_case_of_each_quick_test():
    """Of a file with tests of every sort, by a real collection."""
    name = "tests/kernels/test_routing_attention_triton.py"

    def collected(*options):
        arguments = [name, "--collect-only", "-q", "-p", "no:cacheprovider", *options]
        done = interpreters.run(f"import sys, pytest; sys.exit(pytest.main({arguments}))", cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
        return [line.partition("::")[2] for line in done.stdout.splitlines() if line.startswith(name)]

    kept, first = collected("--fast"), {}
    for case in collected("-m", "not slow and not long"):
        first.setdefault(case.partition("[")[0], case)
    assert len(first) > 5 and kept == list(first.values())
    assert not [case for case in kept if case.startswith("test_drawn_shapes")], "which is long"
