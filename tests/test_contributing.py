"""The walk of CONTRIBUTING.md: a made-up family is added to a copy of the repository, and is found by what is there."""

import re
import shlex
import shutil
from pathlib import Path

import interpreters
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


def run(command: str, copy: Path) -> str:
    """What a command of the copy prints, in a fork of an interpreter that has imported torch."""
    words = shlex.split(command)
    paths = [str(copy.parent)]
    if words[0].startswith("PYTHONPATH="):
        paths.append(str(copy / words.pop(0).removeprefix("PYTHONPATH=")))
    program = words.pop(0)
    start = f"run_path({words.pop(0)!r}" if program == "python" else f"run_module({program!r}"
    code = f"import runpy, sys; sys.path[:0] = {paths}; sys.argv = {[program, *words]}; "
    done = interpreters.run(f"{code} runpy.{start}, run_name='__main__')", cwd=copy)
    assert done.returncode == 0, f"{command}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.long
def test_a_family_is_added(copy):
    (golden,) = commands("python tests/golden_files.py")
    assert run(golden, copy).strip() == "tests/golden/boxnet_tiny.json"
    write, table = commands("attnzoo")
    assert run(write, copy).strip().endswith("model_cards/boxnet.md")
    row = next(line for line in run(table, copy).splitlines() if line.startswith("| [boxnet]"))
    readme = copy / "README.md"
    readme.write_text(re.sub(r"(\| \[biformer\].*\n)", lambda found: found[1] + row + "\n", readme.read_text()))
    (tests,) = commands("pytest")
    said = run(f"{tests} -vv -p no:cacheprovider -W ignore", copy)
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
