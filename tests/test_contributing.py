"""The walk of CONTRIBUTING.md: a made-up family is added to a copy of the repository, and is found by what is there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
WALK = TEXT.partition("## A backbone family\n")[2].partition("\n## ")[0]


def block(name: str) -> str:
    """The Python code whose first line names a file."""
    (found,) = re.findall(rf"```python\n# {re.escape(name)}\n(.*?)```", WALK, flags=re.DOTALL)
    return found


def commands(program: str) -> list[str]:
    return re.findall(rf"^((?:PYTHONPATH=\S+ )?{program} .*)$", WALK, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the repository, with the family in it."""
    folder = tmp_path_factory.mktemp("copy") / "attnzoo"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "work_dirs", "build", "dist", "*.egg-info", "hostile")
    shutil.copytree(ROOT, folder, ignore=ignored)
    for name in ("published/boxnet.py", "backbones/boxnet.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(block(name))
    zoo = folder / "tests/zoo.py"
    head, start, rest = zoo.read_text().partition("FAMILIES = {\n")
    assert start
    zoo.write_text(head + start + block("tests/zoo.py: FAMILIES") + rest)
    return folder


def shell(command: str, copy: Path) -> str:
    bin = Path(sys.executable).parent
    env = {**os.environ, "PATH": f"{bin}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(copy.parent)}
    # The commands of the copy, not those that are installed.
    command = re.sub("^attnzoo ", "python -m attnzoo ", command)
    done = subprocess.run(command, shell=True, cwd=copy, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.long
def test_a_family_is_added(copy):
    (golden,) = commands("python tests/golden_files.py")
    assert shell(golden, copy).strip() == "tests/golden/boxnet_tiny.json"
    write, table = commands("attnzoo")
    assert shell(write, copy).strip().endswith("model_cards/boxnet.md")
    row = next(line for line in shell(table, copy).splitlines() if line.startswith("| [boxnet]"))
    readme = copy / "README.md"
    readme.write_text(re.sub(r"(\| \[biformer\].*\n)", lambda found: found[1] + row + "\n", readme.read_text()))
    (tests,) = commands("pytest")
    said = shell(f"{tests} -vv -p no:cacheprovider -W ignore", copy)
    passed = int(re.search(r"(\d+) passed", said)[1])
    assert passed > 60 and "failed" not in said
    for name in ("test_contract", "test_golden", "test_learns", "test_checkpoints", "test_provenance", "test_readme"):
        assert name in said, f"{name} is not in\n{said}"


def test_links_lead_somewhere():
    prose = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)]+)\)", prose) if not link.startswith("https://")]
    names = re.findall(r"`((?:tests|backbones|heads|tools|kernels|configs)/[\w/.]*)`", prose)
    assert len(links) > 12
    for target in {*links, *names} - {"backbones/boxnet.py"}:
        assert (ROOT / target).exists(), target
