"""Configs by path and by name, and their errors."""

import pytest

from attnzoo.tools import config
from attnzoo.tools.errors import UserError


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    folder = tmp_path / "configs"
    (folder / "van").mkdir(parents=True)
    (folder / "van" / "upernet_van_b0.py").write_text("depth = 3\nmodel = dict(size=[1, 2])")
    monkeypatch.setattr(config, "CONFIG_ROOT", folder)
    return folder


@pytest.mark.parametrize("name", ["van/upernet_van_b0", "van/upernet_van_b0.py"])
def test_short_names(packaged, name):
    assert config.load_config(name).depth == 3


def test_a_path_comes_first(packaged, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "van").mkdir()
    (tmp_path / "van" / "upernet_van_b0.py").write_text("depth = 4")
    assert config.load_config("van/upernet_van_b0.py").depth == 4


def test_options_replace_values(packaged):
    options = config.parse_options(["depth=5", "model.size=[3,4]", "model.name=van", "new.rate=1e-3"])
    cfg = config.load_config("van/upernet_van_b0", options)
    assert (cfg.depth, cfg.model, cfg.new.rate) == (5, dict(size=[3, 4], name="van"), 1e-3)


@pytest.mark.parametrize("name", ["van/upernet_van_bo", "upernet_van_b0", "van/upernet-van-b0.py"])
def test_unknown_name_gives_the_nearest(packaged, name):
    with pytest.raises(UserError, match=r"did you mean (van/)?upernet_van_b0"):
        config.load_config(name)


@pytest.mark.parametrize(
    ("text", "cause"),
    [("open('absent_file')", "absent_file"), ("x = (", "SyntaxError"), ("x = 1 / 0", "ZeroDivisionError"),
     ("_base_ = 'absent.py'", "absent.py"), ("_base_ = 'mmdet::absent/absent.py'", "absent")],
)  # fmt: skip
def test_a_config_that_raises_is_named_with_the_cause(tmp_path, text, cause):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(UserError, match=cause) as raised:
        config.load_config(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("option", ["depth", "model.size.7=1"])
def test_options_that_do_not_fit(packaged, option):
    with pytest.raises(UserError, match="--cfg-options"):
        config.load_config("van/upernet_van_b0", config.parse_options([option]))


@pytest.mark.parametrize(
    ("base", "scope"),
    [("mmseg::_base_/models/fpn_r50.py", "EncoderDecoder"), ("mmdet::_base_/models/retinanet_r50_fpn.py", "RetinaNet")],
)
def test_bases_of_both_libraries(tmp_path, base, scope):
    path = tmp_path / "based.py"
    path.write_text(f"_base_ = {base!r}")
    assert config.load_config(path).model.type == scope
