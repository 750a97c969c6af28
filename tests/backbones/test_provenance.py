"""What families say of their models, and of what these were compared with, is so."""

import ast
import re
from pathlib import Path

import golden_files
import interpreters
import pytest
import timm
import torch
import zoo

import attnzoo
from attnzoo.backbones.contract import facts
from attnzoo.backbones.contract.facts import Check, Facts, Group, Variant
from attnzoo.backbones.contract.provenance import abbreviated, comparison

ROOT = Path(__file__).resolve().parents[2]
NAMES = attnzoo.list_models()
GROUPS = list({id(group): group for group in map(facts.group_of, NAMES)}.values())


def test_every_family_has_an_entry_of_test_data():
    missing = facts.families().keys() - zoo.FAMILIES.keys()
    assert not missing, f"tests/zoo.py: FAMILIES has no entry for {', '.join(sorted(missing))}"
    left = zoo.FAMILIES.keys() - facts.families().keys()
    assert not left, f"tests/zoo.py: FAMILIES has an entry for {', '.join(sorted(left))}, which is no family"


def test_a_missing_entry_is_named(monkeypatch):
    monkeypatch.delitem(zoo.FAMILIES, "van")
    with pytest.raises(LookupError, match=r"van_b0: tests/zoo.py has no entry for the family 'van'"):
        zoo.shallow("van_b0")


def test_every_module_is_a_family():
    """Each file of the folder registers models, under its own name."""
    modules = {path.stem for path in (ROOT / "backbones").glob("*.py")} - {"__init__"}
    assert facts.families().keys() == modules
    for family, names in facts.families().items():
        assert {timm.model_entrypoint(name).__module__ for name in names} == {f"attnzoo.backbones.{family}"}


def test_every_model_has_a_configuration_and_no_configuration_is_left_over():
    import importlib

    for family, names in facts.families().items():
        assert set(importlib.import_module(f"attnzoo.backbones.{family}").default_cfgs) == set(names)


def test_golden_files_are_there_and_each_is_of_one_model():
    declared = [file for name in NAMES for file in comparison(name).golden]
    assert len(declared) == len(set(declared))
    files = {path.stem for path in golden_files.FOLDER.glob("*.json")}
    assert set(declared) <= files, f"tests/golden has no {', '.join(sorted(set(declared) - files))}.json"
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    unused = [file for file in files - set(declared) if f'"{file}"' not in tests]
    assert not unused, f"tests/golden: no model declares {', '.join(unused)}, and no test loads it"


@pytest.mark.parametrize("file", sorted(path.stem for path in golden_files.FOLDER.glob("*.json")))
def test_a_golden_file_says_what_it_is_of(file):
    golden = golden_files.load(file)
    assert all(isinstance(golden[fact], str) and golden[fact] for fact in ("model", "source", "license", "paper"))
    assert golden["outputs"]


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: next(iter(group.variants)))
def test_a_group_has_a_golden_file_or_says_why_not(group):
    has = any(variant.golden for variant in group.variants.values())
    names = ", ".join(group.variants)
    assert has or group.no_golden, f"{names}: none declares a golden file, and `no_golden` does not say why"
    assert not (has and group.no_golden), f"{names}: have a golden file, so `no_golden` is wrong"
    assert has or group.checks, f"{names}: no golden file, so some other comparison is needed (`checks`)"


@pytest.mark.parametrize("check", {check: 0 for group in GROUPS for check in group.checks}, ids=lambda c: c.test)
def test_checks_are_there(check):
    file, _, function = check.test.partition("::")
    path = ROOT / file
    assert path.is_file(), f"{check.against}: no file {file}"
    names = {node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if hasattr(node, "name")}
    assert function in names, f"{check.against}: {file} has no {function}"
    assert function.startswith("test_"), f"{check.against}: {function} is no test"


def layers_of(model: torch.nn.Module) -> frozenset:
    """The layers of a model, each with its place but for numbers, and with what is no size: of two, if they differ."""
    return frozenset((re.sub(r"\d+", "#", place), layer(module)) for place, module in model.named_modules())


def layer(module: torch.nn.Module) -> tuple:
    names = ["eps", "approximate", "affine", "padding_mode"]
    if isinstance(module, torch.nn.Conv2d):
        names += ["kernel_size", "stride", "padding", "dilation"]
    return type(module), module._parameters.get("bias", 0) is None, *(str(vars(module).get(name)) for name in names)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (dict(norm_eps=1e-3), "van_b2"),
        (dict(block_args=dict(attn_layer=attnzoo.attention("ela"))), "resnet34_cbam"),
        (dict(qkv_bias=False), "coat_tiny"),
    ],
)
def test_another_layer_is_seen(name, change):
    same, other = (timm.create_model(name, device="meta", **kwargs) for kwargs in ({}, change))
    assert layers_of(same) != layers_of(other)


@pytest.mark.parametrize(
    "group", [group for group in GROUPS if not group.no_golden], ids=lambda group: next(iter(group.variants))
)
def test_kin_have_the_same_layers(group):
    """In full size: layers of a model that none with a golden file has are what `beyond` names."""
    kinds = {name: layers_of(timm.create_model(name, device="meta")) for name in group.variants}
    compared = frozenset().union(*(kinds[name] for name, variant in group.variants.items() if variant.golden))
    for name, variant in group.variants.items():
        more = sorted(str(kind) for kind in kinds[name] - compared)
        assert bool(more) == bool(variant.beyond), (
            f"{name}: `beyond` is {variant.beyond!r}, but {more} were not compared"
        )


def test_comparisons_in_words():
    assert str(comparison("van_b0")) == "published code of this model (golden files van_b0, van_b0_200x264)"
    assert str(comparison("van_b0.in1k")) == str(comparison("van_b0"))
    kin = "published code of resnet18_cbam: the same layers in other sizes, but for timm's bottleneck block"
    assert str(comparison("resnet50_cbam")).startswith(kin)
    assert str(comparison("mscan_base")).endswith("in other sizes; feature maps alone: no classifier is published")
    assert str(comparison("resnet18_ela")).startswith("no golden file (no public code); also compared with the paper")
    assert comparison("resnet18") is None


def test_names_are_abbreviated_as_a_shell_reads_them():
    assert abbreviated(["van_b0", "van_b1", "resnet18_cbam"]) == ["van_{b0,b1}", "resnet18_cbam"]
    assert abbreviated(["alone"]) == ["alone"]


def test_facts_of_timms_own_models():
    model = timm.create_model("test_vit", device="meta")
    state = model.state_dict()
    assert facts.convert_checkpoint(state, model).keys() == state.keys()
    plain = torch.nn.Linear(1, 1)
    state = plain.state_dict()
    assert facts.convert_checkpoint(state, plain) is state
    assert facts.stage_norm_prefix(model) == "extra_norms."
    assert not facts.gives_images(model) and not facts.restores("test_vit")
    # Its configuration has no classes, which says nothing of what it gives.
    assert not facts.restores("vit_small_patch14_dinov2")


def test_facts_of_a_class_hold_for_those_that_inherit_it():
    class Mine(type(timm.create_model("nat_mini", device="meta"))):
        pass

    assert facts.stage_norm_prefix(Mine(device="meta")) == "norm"


def test_a_restorer_without_its_head_gives_no_images():
    model = zoo.shallow("hat_small_x2", device="meta")
    assert facts.restores("hat_small_x2") and facts.restores("hat_real_x4.gan") and facts.gives_images(model)
    model.reset_classifier(0)
    assert not facts.gives_images(model)


def test_wrong_declarations_are_refused():
    known = facts.group_of("van_b0").facts
    with pytest.raises(ValueError, match="van_b0: declared by van and other"):
        facts.declare(Group("other", known, {"van_b0": Variant("", {})}))
    with pytest.raises(ValueError, match="VisualAttentionNetwork: declared twice, with different facts"):
        facts.declare(Group("other", Facts(known.model_cls, known.checkpoint_filter, stage_norms="n"), {}))
    assert isinstance(facts.group_of("coat_tiny").checks[0], Check)


@pytest.mark.long
def test_a_family_can_be_loaded_again():
    """As notebooks do with a file that has been edited."""
    code = (
        "import importlib, timm; from attnzoo.backbones import van; importlib.reload(van); timm.create_model('van_b0')"
    )
    done = interpreters.run(code)
    assert done.returncode == 0, done.stderr
