"""The table of commands, list and info, and what is imported for them."""

import os
import subprocess
import sys
from pathlib import Path

import interpreters
import pytest
import torch
from tools_helpers import ENVIRONMENT

from attnzoo import list_models
from attnzoo.tools import cli
from attnzoo.tools.info import describe


def test_help_shows_every_command_and_imports_no_mm_library():
    code = (
        "import sys; from attnzoo.tools.cli import main; code = main(['--help']);"
        "loaded = {name.partition('.')[0] for name in sys.modules};"
        "print('loaded', loaded & {'mmengine', 'mmcv', 'mmdet', 'mmseg', 'onnx', 'onnxruntime', 'sklearn'});"
        "sys.exit(code)"
    )
    done = interpreters.run(code, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert all(f"\n  {name} " in done.stdout for name in cli.COMMANDS)
    assert done.stdout.endswith("loaded set()\n")


@pytest.mark.long
def test_python_dash_m_runs_the_command_line():
    command = [sys.executable, "-m", "attnzoo", "list", "van_b*"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == list_models("van_b*")


def test_a_command_is_a_program_under_a_profiler_too():
    """Which leaves `__main__` to itself."""
    code = "import runpy, sys; sys.argv = ['', 'absent.py']; runpy.run_module('attnzoo.tools.train', None, '__main__')"
    done = interpreters.run(code, env=ENVIRONMENT)
    assert done.returncode == 2 and done.stderr.startswith("attnzoo: error: no config 'absent.py'"), done.stderr


def test_every_file_beside_the_folders_is_a_command_of_the_table():
    files = {path.stem for path in Path(cli.__file__).parent.glob("*.py")} - {"__init__", "cli"}
    listed = {module for module, _ in cli.COMMANDS.values()}
    for name in files - listed:
        pytest.fail(f"tools/{name}.py is no command: COMMANDS of tools/cli.py needs its line, or a folder is its place")
    assert listed <= files


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_a_command_has_examples(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    assert f"examples:\n  attnzoo {name}" in capsys.readouterr().out


def test_no_command_shows_the_table(capsys):
    assert cli.main([]) == 2
    assert "commands:" in capsys.readouterr().out


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("attnzoo 0.")


def test_list_configs(capsys, monkeypatch, tmp_path):
    from attnzoo.tools.config import loading as config

    for name in ("van/upernet_van.py", "_base_/schedule.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("x = 1")
    monkeypatch.setattr(config, "CONFIG_ROOT", tmp_path)
    assert cli.main(["list", "--configs"]) == 0
    assert capsys.readouterr().out == "van/upernet_van\n"


@pytest.mark.parametrize("name", list_models())
def test_info_of_every_model_of_the_zoo(name):
    facts = describe(name)
    assert {"parameters", "channels", "strides", "licence", "paper", "origin"} <= facts.keys()
    strides = [int(stride) for stride in facts["strides"].split(", ")]
    assert strides[-4:] == [4, 8, 16, 32] or len(set(strides)) == 1


def test_info_prints_the_published_accuracy(capsys):
    assert cli.main(["info", "van_b0"]) == 0
    shown = capsys.readouterr().out
    assert "4.11 M" in shown
    assert "75.4" in shown


def test_info_of_a_model_of_timm():
    assert describe("resnet18")["parameters"] == "11.69 M"


@pytest.mark.long
@pytest.mark.parametrize("by_torchrun", [True, False])
def test_processes_of_torchrun_are_not_taken_apart(by_torchrun):
    """What threads do while the interpreter is taken apart can abort a process whose work is done."""
    program = (
        "import atexit, sys; from attnzoo.tools.cli import console\n"
        "class Last:\n"
        "    def __del__(self): print('taken apart', flush=True)\n"
        "last = Last(); atexit.register(print, 'at exit'); console(['nothing'])"
    )
    environment = dict(os.environ)
    environment.pop("TORCHELASTIC_RUN_ID", None)
    if by_torchrun:
        environment["TORCHELASTIC_RUN_ID"] = "1"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and "no command 'nothing'" in done.stderr
    assert done.stdout.split("\n")[:-1] == ["at exit"] + ["taken apart"] * (not by_torchrun)


def test_every_command_can_be_the_first_imported():
    program = (
        "import importlib, sys; from attnzoo.tools.cli import COMMANDS\n"
        "for module, _ in COMMANDS.values():\n"
        "    for loaded in [name for name in sys.modules if name.startswith('attnzoo.tools.')]:\n"
        "        del sys.modules[loaded]\n"
        "        vars(sys.modules['attnzoo.tools']).pop(loaded.split('.')[2], None)\n"
        "    importlib.import_module(f'attnzoo.tools.{module}')"
    )
    done = interpreters.run(program)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("by", ["option before", "option behind", "environment", "nothing", "environment off"])
def test_traceback(by, tmp_path, capsys, monkeypatch):
    (tmp_path / "own.py").write_text("def broken():\n    return 1 / 0\n\n\nbroken()\n")
    arguments = ["train", str(tmp_path / "own.py")]
    if by.startswith("environment"):
        monkeypatch.setenv("ATTNZOO_TRACEBACK", "0" if by.endswith("off") else "1")
    elif by.startswith("option"):
        arguments.insert(0 if by.endswith("before") else 2, "--traceback")
    assert cli.main(arguments) == 2
    shown = capsys.readouterr().err
    line = shown.splitlines()[-1]
    assert line.startswith("attnzoo: error: ") and f"{tmp_path / 'own.py'}, line 2; --traceback shows more" in line
    if by in ("nothing", "environment off"):
        assert shown.count("\n") == 1
    else:
        assert shown.count("Traceback") >= 2 and "ZeroDivisionError" in shown and "in broken" in shown


def test_traceback_is_an_option_of_every_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["card", "--help"])
    assert "--traceback" in capsys.readouterr().out
    assert cli.main(["list", "--traceback", "van_x*"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback") and shown.splitlines()[-1].startswith("attnzoo: error: no model matches")


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "biformer/gfl_biformer_4e_digits", "--work-dir", "w\udcff"],
        ["train", "biformer/gfl_biformer_4e_digits", "--cfg-options", "data_root=d\udcff"],
        ["demo", "--quick", "--data-only", "--out", "d\udcff"],
        ["bench", "models", "test_resnet", "--sizes", "32", "--json", "n\udcff.json"],
    ],
)
def test_names_that_are_no_utf8_are_refused_at_once(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    assert "\\udcff" in (said := capsys.readouterr().err) and "is no UTF-8: give it another name" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_reads_ends_quietly(unbuffered):
    code = (
        "import os, sys; from attnzoo.tools.cli import console; read, write = os.pipe(); os.close(read);"
        "os.dup2(write, 1); console(['list'])"
    )
    environment = {**ENVIRONMENT, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory\n"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "out of memory: CUDA out of memory. Tried\n"),
        (RuntimeError("[x.cpp] . DefaultCPUAllocator: can't"), "out of memory: [x.cpp] . DefaultCPUAllocator: can't\n"),
        (RuntimeError("a fault of ours"), None),
    ],
)
def test_too_little_memory_is_one_line(monkeypatch, capsys, error, said):
    def fail(args):
        raise error

    monkeypatch.setattr("attnzoo.tools.list_models.run", fail)
    if said is None:
        with pytest.raises(RuntimeError, match="a fault of ours"):
            cli.main(["list"])
    else:
        assert cli.main(["list"]) == 2
        assert capsys.readouterr().err == f"attnzoo: error: {said}"


def test_info_of_weights_that_are_none(capsys):
    assert cli.main(["info", "van_b0.x"]) == 2
    assert capsys.readouterr().err == "attnzoo: error: van_b0 has no weights 'x'; allowed are none\n"
    assert cli.main(["info", "resnet18.nothing"]) == 2
    assert "resnet18 has no weights 'nothing'; allowed are a1_in1k, " in capsys.readouterr().err
    assert cli.main(["info", "resnet18.a1_in1k"]) == 0
