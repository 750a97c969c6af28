"""Importing attnzoo leaves timm as it is, and takes a timm that changes."""

import os

import interpreters
import pytest

pytestmark = pytest.mark.long

# Registries to which a model's registration adds by design; all else must be the same objects.
SNAPSHOT = '''
import json, sys, types, warnings
import timm, timm.models
from timm.models import _registry as registry


def attributes():
    """Every attribute of timm's modules, and of the classes in them, by the identity of its value."""
    found = {}
    for name, module in sorted(sys.modules.items()):
        if isinstance(module, types.ModuleType) and (name == "timm" or name.startswith("timm.")):
            for key, value in vars(module).items():
                found[f"{name}:{key}"] = value
                if isinstance(value, type) and value.__module__.startswith("timm."):
                    for inner, part in vars(value).items():
                        found[f"{name}:{key}.{inner}"] = part
                if isinstance(value, list | tuple) and module is not registry:
                    found[f"{name}:{key}[]"] = tuple(value)
    return found


def entries():
    """What the registry says of each model."""
    return {
        name: (
            entrypoint,
            registry._model_to_module[name],
            registry._model_default_cfgs.get(name),
            tuple(registry._model_with_tags[name]),
            [registry._model_pretrained_cfgs[tag] for tag in registry._model_with_tags[name]],
        )
        for name, entrypoint in registry._model_entrypoints.items()
    }


__PATCH__
before, models = attributes(), entries()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import attnzoo
after, models_after, ours = attributes(), entries(), set(attnzoo.list_models())
# timm's own registration functions note where they were called from.
changed = [key for key in before if key not in after or not (after[key] is before[key] or after[key] == before[key])]
other = [name for name, entry in models.items() if name not in ours and models_after[name] != entry]
gone = [key for key in after if key not in before and key.split(":")[0] in {k.split(":")[0] for k in before}]
print(json.dumps(dict(changed=changed, added=gone, other=other, ours=sorted(ours), theirs=sorted(models),
                      warnings=[str(w.message) for w in caught])))
__CHECK__
'''


def imported(patch: str = "", check: str = "") -> dict:
    return printed(patch, check)[0]


def printed(patch: str = "", check: str = "") -> list:
    import json

    code = SNAPSHOT.replace("__PATCH__", patch).replace("__CHECK__", check)
    env = {**os.environ, "PYTHONWARNINGS": "ignore"}
    result = interpreters.run(code, env=env)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_nothing_of_timm_changes_but_the_entries_of_coat():
    found = imported()
    assert found["changed"] == [] and found["added"] == [] and found["other"] == [] and found["warnings"] == []
    taken = set(found["ours"]) & set(found["theirs"])
    assert taken == {name for name in found["ours"] if name.startswith("coat_")} and len(taken) == 8


NEW_MODEL = """
import timm.models.coat
from dataclasses import replace
from timm.models import register_model
def coat_huge(pretrained=False, **kwargs):
    return timm.models.coat.coat_tiny(pretrained, **kwargs)
coat_huge.__module__ = "timm.models.coat"
timm.models.coat.default_cfgs["coat_huge"] = timm.models.coat.default_cfgs["coat_tiny"]
register_model(coat_huge)
"""
ARGUMENT = """
import timm.models.coat
class CoaT(timm.models.coat.CoaT):
    def __init__(self, dropkey=0.0, **kwargs):
        super().__init__(**kwargs)
timm.models.coat.CoaT = CoaT
"""
NO_CLASS = """
import timm.models.coat
timm.models.coat.CoscaleTransformer = timm.models.coat.CoaT
del timm.models.coat.CoaT
"""
NO_NAME = """
import timm.models.coat
del timm.models.coat.default_cfgs["coat_mini"]
"""
NO_MODULE = """
del timm.models.coat
sys.modules["timm.models.coat"] = None
"""


def test_a_new_model_of_coat_stays_timms():
    check = "import timm; assert type(timm.create_model('coat_tiny', device='meta')).__module__.startswith('attnzoo')\n"
    check += "assert timm.model_entrypoint('coat_huge') is coat_huge"
    found = imported(NEW_MODEL, check)
    assert found["changed"] == found["added"] == found["other"] == []
    assert "coat_huge" not in found["ours"] and "coat_tiny" in found["ours"]
    (warning,) = found["warnings"]
    assert "stay as timm has them: coat_huge" in warning


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        (ARGUMENT, "takes other arguments: .*dropkey"),
        (NO_CLASS, "no CoaT where it was: .*no attribute 'CoaT'"),
        (NO_NAME, "timm has no more coat_mini"),
        (NO_MODULE, "no CoaT where it was"),
    ],
    ids=["argument", "class", "name", "module"],
)
def test_a_changed_coat_stays_timms(patch, message):
    import re

    check = """
import timm
assert timm.model_entrypoint("coat_tiny").__module__ == "timm.models.coat"
assert timm.create_model("van_b0", device="meta").num_classes == 1000
try:
    import attnzoo.backbones.coat
except ImportError as error:
    assert "timm" in str(error)
else:
    raise SystemExit("imported")
"""
    found = imported(patch, check)
    assert found["changed"] == found["added"] == found["other"] == []
    assert not [name for name in found["ours"] if name.startswith("coat_")] and "van_b0" in found["ours"]
    (warning,) = found["warnings"]
    assert re.search(message, warning) and "stay as timm has them" in warning


def test_the_order_in_which_families_are_found_does_not_matter():
    patch = "import pkgutil; forwards = pkgutil.iter_modules\n"
    patch += "pkgutil.iter_modules = lambda *args: reversed(list(forwards(*args)))"
    check = "from attnzoo.backbones.contract.facts import families\nprint(json.dumps([*families().items()]))"
    found, families = printed(patch, check)
    import attnzoo
    from attnzoo.backbones.contract import facts

    assert found["ours"] == sorted(attnzoo.list_models()) and found["warnings"] == []
    assert families == [list(entry) for entry in facts.families().items()]


def test_names_of_levels_are_what_transformers_needs():
    """Its `TimmBackbone` asks for the module of each level by name, and refuses two of one name."""
    import timm

    import attnzoo

    for name in attnzoo.list_models():
        model = timm.create_model(name, device="meta")
        names = [level["module"] for level in model.feature_info]
        assert len(set(names)) == len(names), name
        assert set(names) <= dict(model.named_modules()).keys(), name
    features = timm.create_model("coat_tiny", features_only=True, device="meta")
    assert len(set(features.feature_info.module_name())) == 4
