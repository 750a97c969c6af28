"""What the README says is true: its commands run, its examples work, its tables are complete."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import interpreters
import pytest
import timm
import torch
from PIL import Image

import attnzoo

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def commands(program: str) -> list[str]:
    lines = [shlex.join(shlex.split(line, comments=True)) for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line.startswith(f"{program} ")]


def shell(command: str, cwd: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        command, shell=True, cwd=cwd, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"


def attnzoo_command(command: str, cwd: Path) -> None:
    """As `shell`, in a fork of an interpreter that has imported what a training needs."""
    code = f"import sys; sys.argv = {shlex.split(command)!r}; from attnzoo.tools.cli import console; console()"
    result = interpreters.run(code, cwd, imports=interpreters.TRAINING)
    assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"


def test_no_kind_of_command_is_left_out():
    programs = {shlex.split(line)[0] for block in blocks("bash") for line in block.splitlines() if line.strip()}
    assert programs == {"make", "pip", "attnzoo", "torchrun"}


def test_make_commands():
    """`make test` is what runs this; `make demo` is `attnzoo demo`, which test_demo.py runs in full where slow."""
    assert commands("make") == ["make demo", "make test"]
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    plan = subprocess.run(
        ["make", "-n", "--no-print-directory", "demo"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert plan.stdout.splitlines()[-1].endswith("/attnzoo demo")


@pytest.mark.parametrize("command", commands("pip"))
def test_pip_commands(command):
    shell(f"{sys.executable} -m {command} --quiet --dry-run --no-deps --no-build-isolation", ROOT)


@pytest.mark.long
def test_commands_and_onnx_example_in_their_order(tmp_path, capsys):
    lines = commands("attnzoo") + commands("torchrun")
    # The data set of the demo, smaller, and fewer epochs on smaller images.
    for long, short in (
        ("--data-only", "--quick --data-only --out work_dirs/demo"),
        ("--epochs 20", "--epochs 1 --size 32"),
    ):
        assert sum(long in line for line in lines) == 1
        lines = [line.replace(long, short) for line in lines]
    assert len(lines) == 9
    torch.save({"params_ema": timm.create_model("hat_small_x4").state_dict()}, tmp_path / "HAT-S_SRx4.pth")
    Image.new("RGB", (20, 36)).save(tmp_path / "photo.png")
    # That of the console, and that of torchrun, in shells; the rest without the time of imports.
    shell(lines[0], tmp_path)
    for line in lines[1:]:
        run = attnzoo_command if line.startswith("attnzoo ") else shell
        run(line, tmp_path)
    assert list((tmp_path / "seen").glob("*"))
    (large,) = (tmp_path / "large").glob("*.png")
    assert Image.open(large).size == (80, 144)
    (example,) = [block for block in blocks("python") if "onnxruntime" in block]
    shell(f"{sys.executable} -c {shlex.quote(example)}", tmp_path)


def test_attach_example(capsys):
    (example,) = [block for block in blocks("python") if "attnzoo.attach" in block]
    exec(example, {})
    assert capsys.readouterr().out == "True\n"


def test_timm_example(capsys):
    (example,) = [block for block in blocks("python") if "features_only" in block]
    exec(example, {})
    assert capsys.readouterr().out == "[(1, 128, 25, 42), (1, 256, 13, 21), (1, 512, 7, 11)] [8, 16, 32]\n"


@pytest.mark.parametrize("library", ["mmdet", "mmseg"])
def test_config_examples(library, tmp_path):
    from attnzoo.tools.config.loading import load_config
    from attnzoo.tools.running.engine import build_model

    (example,) = [block for block in blocks("python") if f"{library}::" in block]
    path = tmp_path / example.splitlines()[0].removeprefix("# ")
    path.write_text(example)
    model = build_model(load_config(path)).eval()
    with torch.inference_mode():
        outputs = model(torch.randn(1, 3, 128, 160), mode="tensor")
    assert outputs is not None


def expanded(pattern: str) -> list[str]:
    """`a_{b,c}` as a shell reads it."""
    head, brace, rest = pattern.partition("{")
    if not brace:
        return [pattern]
    choices, _, tail = rest.partition("}")
    return [head + choice + end for choice in choices.split(",") for end in expanded(tail)]


def test_the_table_has_every_model_and_no_other():
    (table,) = re.findall(r"^\| family \| models .*?\n\n", TEXT, flags=re.DOTALL | re.MULTILINE)
    patterns = [name for row in table.strip().splitlines()[2:] for name in re.findall(r"`([^`]+)`", row.split("|")[2])]
    named = [name for pattern in patterns for name in expanded(pattern)]
    assert sorted(named) == sorted(attnzoo.list_models())


def test_links_lead_somewhere():
    targets = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if not link.startswith("https://")]
    paths = targets + [name for name in re.findall(r"`([\w/.]+)`", TEXT) if name.endswith(("/", ".py", ".md"))]
    for target in paths:
        assert target == "retinanet_van_b0.py" or (ROOT / target).exists(), target
