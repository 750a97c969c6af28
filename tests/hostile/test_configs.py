"""Configs and options drawn to be wrong: they pass all checks, or one line names what is wrong; YAML runs nothing."""

import copy
import json
import random
from pathlib import Path

import pytest
import yaml
from campaign import campaign
from tools_helpers import DETECTOR, SEGMENTOR, make_data, write_config

from attnzoo.tools.common.errors import UserError
from attnzoo.tools.config.fields import check_types
from attnzoo.tools.config.loading import list_configs, load_config, parse_options
from attnzoo.tools.config.names import check_names, check_options

VALUES = [
    None, True, False, 0, 1, -1, 7, 2**70, 1.5, float("nan"), float("inf"), "", "x", "mmdet", "os.system", "a.b", ".",
    "é\n", "/", "auto", "x" * 1000, b"bytes", [], [None], [1, "a"], [[]], (), (1, 2), {}, {1: 2}, {"type": None},
    {"type": 3}, {"type": "FPN"}, {"type": "Nope"}, [{"type": "FPN"}], {"a": {"b": []}}, {"dataset": 3},
    {"datasets": [3]},
]  # fmt: skip
WORDS = [
    "model", "backbone", "type", "in_channels", "train_cfg", "train_cgf", "optim_wraper", "default_hook", "x", "0", "",
    "99", "pipeline", "dataset", "ann_file", "metainfo", "classes", "with_cp", "wiht_cp", "out_indices", "norm_eval",
    "lr", "é", "_delete_", "_scope_", "_base_", "filename", "custom_imports", "randomness", "seed", "a b", "keys",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data, and with a detector and a segmentor that have no bases and so are read fast."""
    folder = tmp_path_factory.mktemp("configs")
    data = make_data(folder / "data")
    for name, text in (("detector", DETECTOR), ("segmentor", SEGMENTOR)):
        write_config(folder / f"{name}.py", text, data)
    return folder


def branches(value, path=()):
    """The paths to all values of a config, those of whole branches among them."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in entries:
        yield (*path, key)
        yield from branches(part, (*path, key))


def mutate(rng: random.Random, content: dict) -> None:
    path = rng.choice(list(branches(content)))
    # The upper levels are what commands read themselves.
    path = path[: rng.choice([1, 2, 2, 3, len(path)])]
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    how = rng.randrange(5)
    if how == 0:
        del parent[path[-1]]
    elif how == 1 and isinstance(parent, dict):
        key = str(path[-1])
        at = rng.randrange(len(key) + 1)
        parent[key[:at] + rng.choice(["x", "_", ""]) + key[at + 1 :]] = parent.pop(path[-1])
    elif how == 2 and isinstance(parent, dict):
        parent[rng.choice([word for word in WORDS if word])] = copy.deepcopy(rng.choice(VALUES))
    else:
        parent[path[-1]] = copy.deepcopy(rng.choice(VALUES))


def pass_checks(cfg, whole: bool) -> None:
    """What train, test and predict do with a config before they write anything."""
    from attnzoo.tools.data.checks import check_data
    from attnzoo.tools.predicting.prediction import _pipeline
    from attnzoo.tools.running.channels import check_channels
    from attnzoo.tools.running.engine import build_model, check_optimizer

    check_types(cfg)
    check_names(cfg)
    check_data(cfg, ("train", "val", "test"))
    if cfg.get("model") is None:
        return
    if whole:
        build_model(cfg)
    else:
        check_channels(cfg)
    if cfg.get("optim_wrapper"):
        check_optimizer(cfg)
    if cfg.get("test_dataloader"):
        _pipeline(cfg)


def test_drawn_configs(place):
    from mmengine.config import Config

    packaged = [name for name in list_configs() if name.startswith(("biformer/", "van/", "hat/"))]
    loaded = [load_config(place / "detector.py"), load_config(place / "segmentor.py")]
    loaded += [load_config(name) for name in (packaged[0], packaged[len(packaged) // 2], packaged[-1])]
    contents = [cfg.to_dict() for cfg in loaded]

    def draw(seed: int) -> str:
        rng = random.Random(seed)
        content = copy.deepcopy(rng.choice([*contents[:2], *contents]))
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            mutate(rng, content)
        whole = rng.random() < 0.03
        try:
            # mmengine's own word for a key that it keeps for itself, which load_config passes on.
            cfg = Config({key: value for key, value in content.items() if isinstance(key, str) and key != "filename"})
        except (IndexError, RecursionError):
            return "no config"
        object.__setattr__(cfg, "_filename", "drawn.py")
        try:
            pass_checks(cfg, whole)
        except UserError as error:
            assert len(str(error)) < 3000
            return "refused"
        return "passed, and built" if whole else "passed"

    campaign("configs in memory", draw, 500, seconds=60)


def an_option(rng: random.Random, keys: list[str]) -> str:
    key = rng.choice(keys)
    how = rng.randrange(4)
    if how == 0:
        at = rng.randrange(len(key) + 1)
        key = key[:at] + rng.choice(["x", ".", "", "_", "0"]) + key[at + 1 :]
    elif how == 1:
        key = ".".join([*key.split(".")[: rng.randrange(3)], *rng.choices(WORDS, k=rng.choice([1, 2, 3]))])
    value = rng.choice([
        "(1,", "[", "]", "(1,2)", "[1,[2,3]]", "(", ")(", "None", "True", "1e999", "nan", "9" * 5000, "'a", "dict(a=1)",
        "", "=", "a=b", "(" * 3000 + ")" * 3000, "[[]]", "()", "é", "1", "__import__('os').system('true')", "{'a': 1}",
    ])  # fmt: skip
    return key + rng.choice(["=", "=", "=", "=", "=", "", "==", " = "]) + value


def test_drawn_options(place):
    keys = []
    for path in branches(load_config(place / "detector.py").to_dict()):
        keys.append(".".join(map(str, path)))

    def draw(seed: int) -> str:
        rng = random.Random(seed)
        given = [an_option(rng, keys) for _ in range(rng.choice([1, 1, 2, 3]))]
        try:
            cfg = load_config(place / "detector.py", parse_options(given))
            pass_checks(cfg, whole=False)
        except UserError as error:
            assert len(str(error)) < 3000
            return "refused"
        return "passed"

    campaign("options", draw, 250, seconds=60)


def a_payload(rng: random.Random, mark: Path) -> str:
    """YAML that makes a file, where it is run."""
    command = f"touch {mark}"
    return rng.choice([
        f"!!python/object/apply:os.system ['{command}']",
        f"!!python/object/apply:subprocess.check_call [['touch', '{mark}']]",
        f"!!python/object/new:os.system ['{command}']",
        "!!python/object/new:type {args: ['z', !!python/tuple [], {extend: !!python/name:exec }], "
        f"listitems: \"open('{mark}', 'w')\"}}",
        f"!!python/object/apply:builtins.open ['{mark}', 'w']",
        f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{mark}']]",
        "!!python/module:os\n",
        "!!python/name:os.system",
        "!!python/object:pathlib.PosixPath {}",
        "\"{{ '__import__(chr(111)+chr(115)).system(chr(116))' }}\"",
        f"\"__import__('os').system('{command}')\"",
    ])  # fmt: skip


def a_file(rng: random.Random, folder: Path, mark: Path) -> Path:
    """A YAML or JSON config that is hostile, or broken, or has a base that is."""
    suffix = rng.choice([".yaml", ".yml", ".json"])
    payload, how = a_payload(rng, mark), rng.randrange(9)
    depth = rng.choice([10, 900, 5000, 100_000])
    honest = {"model": {"type": "RetinaNet"}, "default_scope": "mmdet", "x": [1, 2]}
    text = yaml.safe_dump(honest) if suffix != ".json" else json.dumps(honest)
    if how == 0:
        text = f"model: {payload}\n"
    elif how == 1:
        text = f"model:\n  - {payload}\nx: {{y: {payload}}}\n"
    elif how == 2:
        text = f"? {payload}\n: 1\n"
    elif how == 3:
        (folder / f"base{suffix}").write_text(f"a: {payload}\n")
        text = json.dumps({"_base_": rng.choice([f"base{suffix}", [f"base{suffix}"], f"./base{suffix}"]), **honest})
    elif how == 4:
        text = "a0: &a0 [x, x]\n" + "".join(
            f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, rng.choice([5, 60]))
        )
    elif how == 5:
        text = rng.choice(["a: &a [*a]", "a: &a {b: *a}", "<<: &x {<<: *x}", "a: *b", "&a a: *a"])
    elif how == 6:
        text = '{"a": ' + rng.choice(["[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth]) + "}"
    elif how == 7:
        text = rng.choice(
            ["", "[]", "3", "null", "\0", "{", "a: b: c", "\t", "a: 1\na: 2", '{"a": 1, "a": 2}', "1: 2", "- a"]
        )
    elif how == 8:
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(["\0", "{", "!!", "&", "*", "\ufeff", "%", "é"]) + text[at + 1 :]
    path = folder / f"config{suffix}"
    path.write_text(text, encoding="utf-8")
    return path


def test_drawn_files(tmp_path):
    load_config(list_configs()[0])

    def draw(seed: int) -> str:
        rng = random.Random(seed)
        folder, mark = tmp_path / str(seed), tmp_path / f"ran-{seed}"
        folder.mkdir()
        path = a_file(rng, folder, mark)
        try:
            cfg = load_config(path)
        except UserError as error:
            assert str(path) in str(error) and len(str(error)) < 1000
            outcome = "refused"
        else:
            assert all(isinstance(key, str) for key in cfg)
            outcome = "read"
        assert not mark.exists(), path.read_text()
        return outcome

    campaign("YAML and JSON configs", draw, 250, seconds=20)


TAKEN = """
model.backbone.with_cp=True strategy.type=FSDPStrategy strategy.blocks=True load_from=a.pth resume=True
optim_wrapper.clip_grad.max_norm=1.0 optim_wrapper.accumulative_counts=2 default_hooks.checkpoint.save_best=auto
train_dataloader.persistent_workers=True randomness.deterministic=1 env_cfg.cudnn_benchmark=True
model.train_cfg.anything=1 optim_wrapper.paramwise_cfg.norm_decay_mult=0.0 model.neck.num_outs=2
model.neck.add_extra_convs=on_output train_dataloader.dataset.indices=4 train_dataloader.dataset.filter_cfg.min_size=3
val_evaluator.classwise=True model.bbox_head.loss_cls.gamma=1.0 train_dataloader.dataset.pipeline.2.direction=vertical
model.backbone.drop_path_rate=0.1 a_variable=3 model.neck.norm_cfg.requires_grad=True
"""


def test_options_that_are_taken_pass(place):
    """New keys that something takes; each is given in mm's documentation or ours."""
    cfg = load_config(place / "detector.py")
    for option in TAKEN.split():
        check_options(cfg, parse_options([option]))


@pytest.mark.parametrize(
    ("option", "place_of_it", "meant"),
    [
        ("wiht_cp=True", "model.backbone", "with_cp"),
        ("num_out=2", "model.neck", "num_outs"),
        ("bacth_size=2", "train_dataloader", "batch_size"),
        ("direcion=vertical", "train_dataloader.dataset.pipeline.2", "direction"),
        ("clip_gard.max_norm=1", "optim_wrapper", "clip_grad"),
        ("weight_dcay=1", "optim_wrapper.optimizer", "weight_decay"),
        ("optim_wraper.type=AmpOptimWrapper", "", "optim_wrapper"),
        ("train_cgf.max_epochs=3", "", "train_cfg"),
        ("chekpoint.interval=3", "default_hooks", "checkpoint"),
        ("cudnn_benchmrk=True", "env_cfg", "cudnn_benchmark"),
        ("scor_thr=0.1", "model.test_cfg", "score_thr"),
    ],
)
def test_misspelt_options_are_named(place, option, place_of_it, meant):
    prefix = f"{place_of_it}." if place_of_it else ""
    with pytest.raises(UserError, match=f"did you mean {prefix}{meant}"):
        load_config(place / "detector.py", parse_options([prefix + option]))


@pytest.mark.parametrize(
    ("option", "said"), [("x=(1,", "no value can be read"), ("a..b=1", "not of the form key=value")]
)
def test_broken_options_are_named(option, said):
    with pytest.raises(UserError, match=said):
        parse_options([option])
