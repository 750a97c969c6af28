"""Configs by path and by name, and their errors."""

import ast
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from attnzoo.tools.common.errors import UserError
from attnzoo.tools.config import loading as config
from attnzoo.tools.config.names import _OF_HEADS, _is_variable, _top, misspelt


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


def names_for_heads(tree):
    """What the dicts hold that are given as `train_cfg` or `test_cfg`, but for those with a type."""
    places = [
        one.value for one in ast.walk(tree) if isinstance(one, ast.keyword) and one.arg in ("train_cfg", "test_cfg")
    ]
    names = set()
    while places:
        place = places.pop()
        if isinstance(place, ast.List):
            places += place.elts
        own = {one.arg: one.value for one in getattr(place, "keywords", ()) if one.arg}
        if "type" not in own:
            names |= own.keys()
            places += own.values()
    return names


def test_names_of_all_packaged_configs_and_of_the_libraries_pass():
    """By the names that are set at the top of each file; `_base_` brings none that are not there."""
    from importlib.util import find_spec

    libraries = [Path(find_spec(name).origin).parent / ".mim" / "configs" for name in ("mmdet", "mmseg")]
    known, seen, of_heads = _top() - {"data_root"}, set(), set()
    for folder in (config.CONFIG_ROOT, *libraries):
        files = list(folder.rglob("*.py"))
        assert len(files) > 100
        for file in files:
            tree = ast.parse(file.read_text())
            of_heads |= names_for_heads(tree)
            for node in tree.body:
                for target in getattr(node, "targets", ()):
                    seen |= {name.id for name in ast.walk(target) if isinstance(name, ast.Name)}
    near = {name: misspelt(name, known) for name in seen if not _is_variable(SimpleNamespace(text=""), name, known)}
    assert {name for name in near if near[name]} == set()
    assert len(seen & known) > 20 and len(seen - known) > 100
    assert {name: near for name in of_heads if (near := misspelt(name, _OF_HEADS))} == {}
    assert len(of_heads) > 70


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train_cgf = dict()", "train_cgf is not read by anything; did you mean train_cfg?"),
        ("optim_wraper = dict()", "did you mean optim_wrapper?"),
        ("default_hook = dict()", "did you mean default_hooks?"),
        ("load_form = 'x.pth'", "did you mean load_from?"),
        ("param_schedulers = []", "did you mean param_scheduler?"),
        ("tset_dataloader = dict()\ntest_dataloader = dict(tset_dataloader=1)", "did you mean test_dataloader?"),
        ("default_hooks = dict(chekpoint=dict())", "default_hooks.chekpoint is not read by anything"),
        (
            "auto_scale_lr = dict(enabled=True)",
            "auto_scale_lr.enabled is not read by anything; did you mean auto_scale",
        ),
        (
            "model = dict(test_cfg=dict(score_thrr=1))",
            "model.test_cfg.score_thrr is not read by anything; did you mean",
        ),
        ("model = dict(train_cfg=dict(asigner=1))", "did you mean model.train_cfg.assigner?"),
        (
            "model = dict(test_cfg=dict(rcnn=[dict(max_per_imgs=1)]))",
            "did you mean model.test_cfg.rcnn[0].max_per_img?",
        ),
        (
            "model = dict(roi_head=dict(type='X', test_cfg=dict(nms_prre=1)))",
            "did you mean model.roi_head.test_cfg.nms_pr",
        ),
        (
            "train_dataloader = dict(dataset=dict(dataset=dict(type='X', filter_cfg=dict(filter_empty_gtt=True))))",
            "did you mean train_dataloader.dataset.dataset.filter_cfg.filter_empty_gt?",
        ),
        (
            "optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'a.b': dict(lr_mul=1)}))",
            "optim_wrapper.paramwise_cfg.custom_keys['a.b'].lr_mul is not read by anything; did you mean ",
        ),
        ("optim_wrapper = dict(clip_grad=dict(max_nrom=1))", "did you mean optim_wrapper.clip_grad.max_norm?"),
        (
            "optim_wrapper = dict(clip_grad=dict(limit=1))",
            "optim_wrapper.clip_grad.limit is not taken by anything; allo",
        ),
        (
            "default_hooks = dict(checkpoint=dict(type='CheckpointHook', intervall=1))",
            "default_hooks.checkpoint.intervall is not taken by anything; did you mean interval?",
        ),
        (
            "default_hooks = dict(checkpoint=dict(type='AtomicCheckpointHook', often=1))",
            "default_hooks.checkpoint.often is not taken by anything; allowed are backend_args, ",
        ),
        ("model = [1]", "model: a dict is needed, got list [1]"),
        ("model = dict(backbone=[])", "model.backbone: a dict is needed, got list []"),
        ("train_cfg = dict(val_interval='a')", "train_cfg.val_interval: a number is needed, got str 'a'"),
        ("val_dataloader, train_cfg = {}, dict(val_interval=0)", "val_interval: a number other than 0 is needed, got"),
        ("train_cfg = dict(val_begin='a')", "train_cfg.val_begin: a number is needed, got str 'a'"),
        ("default_hooks = dict(checkpoint=dict(interval='a'))", "checkpoint.interval: a number is needed, got str 'a'"),
        ("optim_wrapper = dict(clip_grad=dict(max_norm='a'))", "clip_grad.max_norm: a number is needed, got str 'a'"),
        ("custom_hooks = [3]", "custom_hooks[0]: a dict is needed, got int 3"),
        ("default_scope = '.'", "default_scope: the name of a library is needed, got str '.'"),
        ("resume = 'x.pth'", "resume: True or False is needed, got str 'x.pth'"),
    ],
)
def test_misspelt_names_and_wrong_types_are_named(tmp_path, text, said):
    path = tmp_path / "wrong.py"
    path.write_text(f"data_root = img_scale = backend_args = None\n{text}\n")
    with pytest.raises(UserError) as raised:
        config.load_config(path)
    assert said in str(raised.value) and str(path) in str(raised.value)


VARIABLES = [
    "data_root1", "data_root_1", "data_root_a", "data_roots", "dataroot", "val_evaluator2", "val_dataloader2", "model1",
    "train_dataloader_1", "train_cfg1", "optim_wrapper2", "model_b", "models", "ema_model",
]  # fmt: skip


@pytest.mark.parametrize("suffix", ["py", "json"])
def test_several_of_a_kind_are_variables(tmp_path, suffix):
    path = tmp_path / f"own.{suffix}"
    values = dict.fromkeys(VARIABLES, "x")
    path.write_text("".join(f"{name} = 'x'\n" for name in VARIABLES) if suffix == "py" else json.dumps(values))
    assert config.load_config(path).to_dict() == values


def test_what_a_config_uses_is_a_variable(tmp_path):
    (tmp_path / "base.py").write_text("val_evaluater = 1\n")
    (tmp_path / "own.py").write_text(
        "_base_ = 'base.py'\ntest_evaluater = [3]\ntest_dataset = dict(a=test_evaluater)\nx = _base_.val_evaluater\n"
    )
    assert config.load_config(tmp_path / "own.py").x == 1


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("max_epochs", "the config has no max_epochs: perhaps nothing reads it; did you mean train_cfg.max_epochs?"),
        ("seed", "the config has no seed: perhaps nothing reads it"),
        ("model.test_cfg.quality", "the config has no model.test_cfg.quality: perhaps nothing reads it"),
        ("bakbone.depth", "the config has no bakbone: perhaps nothing reads it"),
        ("mine.y", "the config has no mine.y: perhaps nothing reads it"),
        (
            "train_dataloader.dataset.filter_cfg.most",
            "the config has no train_dataloader.dataset.filter_cfg.most: perhaps nothing reads it",
        ),
        *[(f"train_dataloader.{name}", None) for name in ("pin_memory", "collate_fn.type", "batch_sampler.type")],
        ("randomness.deterministic", None),
        ("log_processor.by_epoch", None),
        ("optim_wrapper.accumulative_counts", None),
        ("model.test_cfg.score_voting", None),
        ("model.backbone.arguments.depth", None),
        ("train_dataloader.dataset.data_prefix.seg", None),
        ("train_dataloader.dataset.filter_cfg.min_size", None),
        ("randomness.seed", None),
        ("train_cfg.val_begin", None),
        ("model.backbone.quality", None),  # its class says whether it takes it
        ("model.init_cfg.type", None),
        ("default_hooks.visualization.type", None),
        ("optim_wrapper.paramwise_cfg.custom_keys.norm.decay_mult", None),
    ],
)
def test_a_new_key_that_perhaps_nothing_reads_is_told(tmp_path, capsys, key, said):
    path = tmp_path / "own.py"
    path.write_text(
        "train_cfg = dict(by_epoch=True, max_epochs=1)\ndefault_hooks = dict(logger=dict(type='LoggerHook'))\n"
        "model = dict(type='RetinaNet', backbone=dict(type='attnzoo.Backbone', arguments=dict(x=1)),"
        " test_cfg=dict(nms_pre=9))\n"
        "optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=2.0))))\n"
        "train_dataloader = dict(dataset=dict(data_prefix=dict(img=''), filter_cfg=dict(filter_empty_gt=True)))\n"
        "log_processor = dict(window_size=50)\nrandomness = dict(seed=0)\nmine = dict(x=1)\n"
    )
    cfg = config.load_config(path, {key: 1})
    for name in key.split("."):
        cfg = cfg[name]
    assert cfg == 1
    assert capsys.readouterr().err == (f"attnzoo: warning: --cfg-options: {said}\n" if said else "")


@pytest.mark.parametrize("key", ["data_rot", "train_cgf.max_epochs", "train_cfg.max_epoch"])
def test_a_new_key_that_is_almost_one_that_is_read(tmp_path, key):
    (tmp_path / "own.py").write_text("train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)\n")
    with pytest.raises(UserError, match=r"--cfg-options: \S+ is not in the config; did you mean \S+\?"):
        config.load_config(tmp_path / "own.py", {key: "x"})


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("suffix", ["yaml", "yml"])
def test_yaml_runs_nothing(tmp_path, suffix, nested):
    path, mark = tmp_path / f"hostile.{suffix}", tmp_path / "ran"
    (tmp_path / "inner").mkdir()
    hostile = tmp_path / "inner" / f"base.{suffix}" if nested else path
    hostile.write_text(f"x: !!python/object/apply:os.mkdir ['{mark}']\n")
    if nested:
        path.write_text(f"_base_: inner/base.{suffix}\n")
    with pytest.raises(UserError, match="the config cannot be loaded: ConstructorError"):
        config.load_config(path)
    assert not mark.exists()
    # Outside of the commands mmengine is as it was.
    from mmengine.fileio import load

    load(hostile)
    assert mark.exists()


def test_yaml_and_json_are_read(tmp_path):
    (tmp_path / "base.yaml").write_text("model: {type: RetinaNet, x: [1, 2.5, null]}\ndefault_scope: mmdet\n")
    for suffix in ("yaml", "json"):
        (tmp_path / f"own.{suffix}").write_text('{"_base_": "base.yaml", "model": {"y": true}}')
        cfg = config.load_config(tmp_path / f"own.{suffix}")
        assert cfg.model == dict(type="RetinaNet", x=[1, 2.5, None], y=True)


def test_a_config_may_read_files_of_its_own(tmp_path):
    (tmp_path / "classes.yaml").write_text("[red, blue]")
    (tmp_path / "own.py").write_text(
        f"names = __import__('mmengine').load({str(tmp_path / 'classes.yaml')!r})\nx = len(names)"
    )
    assert config.load_config(tmp_path / "own.py").x == 2


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))


@pytest.mark.parametrize("text", ["a: &a [*a]", LAUGHS])
def test_yaml_that_grows_without_end_is_refused(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match="more than 1000000 values, or one that holds itself"):
        config.load_config(tmp_path / "x.yaml")


def test_the_line_of_a_base_that_raises_is_told(tmp_path):
    (tmp_path / "base.py").write_text("x = 1\ny = x.z\n")
    (tmp_path / "own.py").write_text("_base_ = 'base.py'\n")
    with pytest.raises(UserError, match=rf"own\.py: .*AttributeError.*\({tmp_path / 'base.py'}, line 2; --traceback"):
        config.load_config(tmp_path / "own.py")
    (tmp_path / "base.py").write_text("x = 1\ny = (\n")
    with pytest.raises(UserError, match=rf"SyntaxError.*\({tmp_path / 'base.py'}, line 2; --traceback"):
        config.load_config(tmp_path / "own.py")


@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize(
    "name", ["custom_hooks", "default_hooks", "randomness", "env_cfg", "custom_imports", "find_unused_parameters"]
)
def test_none_is_what_is_not_there(tmp_path, name, in_file):
    (tmp_path / "own.py").write_text(f"{name} = None\n" if in_file else "x = 1\n")
    assert name not in config.load_config(tmp_path / "own.py", {} if in_file else {name: None})


@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize("scope", ["mmdeet", "__main__"])
def test_a_scope_that_is_no_library(tmp_path, monkeypatch, scope, in_file):
    # As where a script is run by its path.
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    (tmp_path / "own.py").write_text(f"default_scope = {scope!r}\n" if in_file else "x = 1\n")
    with pytest.raises(UserError, match=f"own.py: default_scope: needs {scope}, as mmdet or mmseg: pip install"):
        config.load_config(tmp_path / "own.py", {} if in_file else {"default_scope": scope})
