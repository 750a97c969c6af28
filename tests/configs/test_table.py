"""The table of configs is current, and tells of every config."""

import json

import pytest
from config_models import config

from attnzoo.tools import cli
from attnzoo.tools.config import table as config_table
from attnzoo.tools.config.loading import CONFIG_ROOT, list_configs

pytestmark = pytest.mark.long


def test_the_table_is_current(monkeypatch):
    monkeypatch.setattr(config_table, "load_config", config)
    text = (CONFIG_ROOT / "README.md").read_text(encoding="utf-8")
    assert text == config_table.table(), "run: attnzoo list --configs --table > configs/README.md"
    for name in list_configs():
        assert f"`attnzoo train {name}" in text
        assert f"-m attnzoo.tools.train {name} --launcher pytorch`" in text


def test_no_figure_is_left_over():
    results = json.loads((CONFIG_ROOT / "results.json").read_text(encoding="utf-8"))
    assert set(results) <= set(list_configs())
    for name, result in results.items():
        assert result["source"].startswith("https://"), name
        assert any(key in result for key in config_table.FIGURES), name
        assert set(result) <= {"source", *config_table.FIGURES}, name


@pytest.mark.parametrize("arguments", [["list", "--table"], ["list", "--configs", "van*", "--table"]])
def test_a_table_of_some_is_refused(arguments, capsys):
    assert cli.main(arguments) == 2
    assert "--table is a table of all configs" in capsys.readouterr().err
