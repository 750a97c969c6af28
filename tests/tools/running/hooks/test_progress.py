"""When a training has begun, and what a terminal shows of it."""

import logging

from tools_helpers import DETECTOR, write_config

from attnzoo.tools.config.loading import load_config
from attnzoo.tools.running.arguments import set_work_dir


def test_a_training_begins_before_it_saves():
    """As a resumed one may, by a validation before its first iteration."""
    from attnzoo.tools.running.hooks.progress import ProgressHook

    begun = []
    hook = ProgressHook(lambda: begun.append(True))
    for _ in range(2):
        hook.before_save_checkpoint(None, {})
        assert begun == [True]


def test_bars_on_a_terminal_take_the_place_of_the_log_lines(data, tmp_path, monkeypatch, capsys):
    from attnzoo.tools.common import progress
    from attnzoo.tools.running.engine import ProgressHook, build_runner

    cfg = load_config(write_config(tmp_path / "bars.py", DETECTOR, data, epochs=1))
    set_work_dir(cfg, str(tmp_path / "w"))
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    runner = build_runner(cfg, ProgressHook())
    runner.train()
    shown = capsys.readouterr()
    assert "train: 100%" in shown.err
    assert "4/4" in shown.err
    assert "loss=" in shown.err
    assert "Epoch(train)" not in shown.out
    assert "Epoch(train)" in next((tmp_path / "w").glob("*/*.log")).read_text()
    assert any(isinstance(handler, logging.FileHandler) for handler in runner.logger.handlers)
