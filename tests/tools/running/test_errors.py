"""Errors of disks, of libraries and of code of one's own: one line with the cause."""

import errno
import sys
from pathlib import Path

import interpreters
import pytest
from tools_helpers import DETECTOR, ENVIRONMENT, SEGMENTOR, error_line, run_training, write_config

from attnzoo.tools.common.errors import UserError
from attnzoo.tools.config.loading import load_config
from attnzoo.tools.running.arguments import set_work_dir
from attnzoo.tools.running.training import train

pytestmark = pytest.mark.long


def test_a_full_disk_is_one_line(data, tmp_path, capsys, monkeypatch):
    config = write_config(tmp_path / "config.py", SEGMENTOR, data, epochs=3)
    write, count = Path.write_bytes, []

    def full(path, content):
        count.append(path)
        if len(count) == 2:
            write(path, content[:1000])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert run_training(config, tmp_path / "work") == 2
    said = error_line(capsys)
    assert "epoch_2.pth: No space left on device: the training has stopped" in said
    assert f"the last complete checkpoint is {tmp_path / 'work' / 'epoch_1.pth'}, from which --resume goes on" in said
    names = sorted(path.name for path in (tmp_path / "work").iterdir() if path.is_file())
    assert names == ["config.py", "epoch_1.pth", "last_checkpoint"]
    monkeypatch.undo()
    assert run_training(config, tmp_path / "work", "--resume") == 0


def test_a_limit_on_the_size_of_files_is_one_line(data, tmp_path):
    """Of every file, so that logs cannot be written either."""
    config = write_config(tmp_path / "config.py", SEGMENTOR, data, epochs=3)
    # What is printed goes into a file, too, in this test.
    code = (
        "import os, resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "os.dup2(os.open(os.devnull, os.O_WRONLY), 1)\n"
        "from attnzoo.tools.cli import console\n"
        f"console(['train', {str(config)!r}, '--work-dir', {str(tmp_path / 'work')!r}])"
    )
    done = interpreters.run(code, env=ENVIRONMENT, imports=interpreters.TRAINING)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and "File too large" in done.stderr.splitlines()[-1], done.stderr[-3000:]
    assert not list((tmp_path / "work").rglob("*.pth"))


OWN = """
from mmdet.datasets import CocoDataset
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS

@HOOKS.register_module(force=True)
class BrokenHook(Hook):
    def __init__(self, when):
        self.when = when
        if when == "built":
            raise ValueError("mine, when built")

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if self.when == "run":
            raise KeyError("mine, when run")

@DATASETS.register_module(force=True)
class BrokenDataset(CocoDataset):
    def load_data_list(self):
        raise ZeroDivisionError("mine, in the data")
"""


@pytest.mark.parametrize(
    ("extra", "error", "text"),
    [
        ("custom_hooks = [dict(type='BrokenHook', when='built')]", ValueError, "mine, when built"),
        ("custom_hooks = [dict(type='BrokenHook', when='run')]", KeyError, "mine, when run"),
        ("train_dataloader['dataset']['type'] = 'BrokenDataset'", ZeroDivisionError, "mine, in the data"),
    ],
)
def test_errors_in_code_of_ones_own_name_their_place(data, tmp_path, monkeypatch, extra, error, text):
    (tmp_path / "own_parts.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_parts", raising=False)
    imports = '\ncustom_imports["imports"].append("own_parts")\n'
    config = write_config(tmp_path / "config.py", DETECTOR, data, extra=imports + extra)
    if "run" in text:  # a run that has begun fails with the error itself
        with pytest.raises(error, match=text):
            train_it(config, tmp_path / "work")
        return
    with pytest.raises(UserError, match=rf"{error.__name__}: {text} .*own_parts\.py, line \d+; --traceback") as raised:
        train_it(config, tmp_path / "work")
    assert raised.value.__cause__ is not None
    assert not (tmp_path / "work").exists()


def train_it(config, work_dir):
    cfg = load_config(config)
    set_work_dir(cfg, str(work_dir))
    return train(cfg)


def test_errors_of_libraries_in_building_are_one_line_with_their_cause(data, tmp_path):
    config = write_config(tmp_path / "config.py", DETECTOR, data, extra="\ncustom_hooks = [dict(type='NoSuchHook')]\n")
    with pytest.raises(UserError, match="the run cannot be built: KeyError") as raised:
        train_it(config, tmp_path / "work")
    assert isinstance(raised.value.__cause__, KeyError)
    assert not (tmp_path / "work").exists()
