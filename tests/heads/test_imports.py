"""What importing attnzoo asks for; each case is a fresh interpreter in which some packages seem not to be installed."""

import json
import subprocess
import sys

import interpreters
import pytest
from PIL import Image

pytestmark = pytest.mark.long

HIDE = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {names} else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def python_without(names: tuple[str, ...], code: str) -> str:
    """The last line that the code prints."""
    done = interpreters.run(HIDE.format(names=names) + code)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_attnzoo_needs_torch_and_timm_alone():
    """In a really fresh interpreter: torchvision imports Triton where it is."""
    optional = ("mmengine", "mmcv", "mmdet", "mmseg", "triton", "onnx", "onnxruntime", "onnxscript")
    code = "import attnzoo, timm; timm.create_model('van_b0'); print(attnzoo.list_models('van_b0'))"
    command = [sys.executable, "-c", HIDE.format(names=optional) + code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout == "['van_b0']\n", done.stderr


# What pip installs with torch has none of these.
BESIDE_TORCH = ("timm", "torchvision", "numpy", "PIL", "yaml", "safetensors", "huggingface_hub", "tqdm")
BESIDE_TORCH += ("mmengine", "mmcv", "mmdet", "mmseg", "triton", "onnx", "onnxruntime", "onnxscript")
WITH_TORCH_ALONE = f"{HIDE.format(names=BESIDE_TORCH)}\nimport torch"


def python_with_torch_alone(code: str) -> list[str]:
    """The lines that the code prints where nothing but torch is installed."""
    done = interpreters.run(code, imports=WITH_TORCH_ALONE)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_operators_need_torch_alone():
    code = """
import sys, torch
from attnzoo import kernels
from attnzoo.kernels import natten_compat
x = torch.rand(1, 8, 8, 4, requires_grad=True)
samples = torch.rand(1, 2, 4, 1, 1, 2), torch.rand(1, 2, 4, 1, 1)
for out in (
    kernels.neighborhood_attention(x, x, x, 2, 3),
    kernels.window_attention(x, x, x, 2, 4, shift=2),
    kernels.routing_attention(x, x, x, 2, (2, 2), 2, 0.5),
    kernels.depthwise_conv(x.permute(0, 3, 1, 2), torch.rand(4, 1, 3, 3)),
    kernels.deformable_attention(x.view(1, 16, 4, 4), [(4, 4)], [0], *samples),
    kernels.flash_bias_attention(x, x, x, torch.rand(8, 8, 2), torch.rand(8, 8, 2)),
    kernels.block_sparse_attention(x, x, x, 2),
    natten_compat.na2d(*x.view(1, 8, 8, 2, 2)[None].expand(3, -1, -1, -1, -1, -1), 3, stride=2),
    natten_compat.NeighborhoodAttention2D(4, 2, 3)(x),
):
    out.sum().backward()
print(x.grad.isfinite().all().item())
try:
    kernels.can_run("neighborhood_attention", x, x, x, 2, 3, raise_error=True)
except RuntimeError as error:
    print(error)
names = {name.partition(".")[0] for name, module in sys.modules.items() if module is not None}
print(sorted(names & set(BESIDE_TORCH)))
"""
    computed, refused, imported = python_with_torch_alone(code.replace("BESIDE_TORCH", str(BESIDE_TORCH)))
    assert computed == "True" and imported == "[]"
    assert refused == "neighborhood_attention: Triton cannot run: triton is not installed (pip install triton)"


def test_shifted_windows_need_no_numpy():
    """Without it their masks are made in another way."""
    code = """
import torch
from attnzoo import kernels
from attnzoo.kernels.window_attention import naive
q, k, v = torch.rand(3, 2, 8, 6, 8, dtype=torch.float64)
table = torch.rand(35, 2, dtype=torch.float64, requires_grad=True)
given = dict(num_heads=2, window_size=(4, 3), shift=(1, 2), bias_table=table)
grads = []
for function in (kernels.window_attention, naive.window_attention):
    grads.append(torch.autograd.grad(function(q, k, v, **given).square().sum(), table)[0])
print((grads[0] - grads[1]).abs().max().item() < 1e-12)
"""
    assert python_with_torch_alone(code) == ["True"]


def test_without_timm_the_models_say_so():
    code = """
import attnzoo
print(hasattr(attnzoo, "no_such_name"))
for line in (
    "attnzoo.list_models()", "attnzoo.attention", "from attnzoo import attach", "import attnzoo.backbones",
    "from attnzoo.backbones import van", "import attnzoo.backbones.modules",
):
    try:
        exec(line)
    except ImportError as error:
        print(error.name, error)
import attnzoo.heads
try:
    attnzoo.heads.Backbone
except ImportError as error:
    print(error)
"""
    first, *errors, heads = python_with_torch_alone(code)
    assert first == "False"
    missing = "timm attnzoo's models need timm (No module named 'timm'): pip install timm."
    assert len(errors) == 6 and set(errors) == {f"{missing} attnzoo.kernels works without it"}
    assert heads == "attnzoo.heads needs timm: pip install 'attnzoo[mm]'"


def test_what_comes_with_timm_may_be_missing_too():
    code = """
try:
    import attnzoo
    attnzoo.list_models
except ImportError as error:
    print(error.name, error)
"""
    imports = f"{HIDE.format(names=('torchvision',))}\nimport torch"
    done = interpreters.run(code, imports=imports)
    said = "attnzoo's models need timm (No module named 'torchvision'): pip install timm."
    assert done.stdout == f"torchvision {said} attnzoo.kernels works without it\n", done.stderr


def test_attnzoo_imports_no_optional_library_that_is_there():
    optional = ("mmengine", "mmcv", "mmdet", "mmseg", "triton", "onnx", "onnxruntime", "onnxscript")
    code = (
        "import torch, timm; before = set(sys.modules); import attnzoo\n"
        f"print([name for name in {optional} if name in set(sys.modules) - before])"
    )
    assert python_without((), code) == "[]"


@pytest.mark.parametrize(
    ("name", "warned"),
    [
        ("mmengine", []),
        # mmengine, which is there, would say no more than that it does not know the name.
        ("mmseg", ["attnzoo.heads needs mmseg: pip install 'attnzoo[mm]'"]),
    ],
)
def test_a_missing_extra_is_named(name, warned):
    code = """
import warnings
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import attnzoo.heads
warned = [str(one.message) for one in seen if "attnzoo.heads" in str(one.message)]
known = hasattr(attnzoo.heads, "no_such_name"), hasattr(attnzoo.heads.restoration, "no_such_name")
errors = set()
for package in (attnzoo.heads, attnzoo.heads.detection, attnzoo.heads.mm, attnzoo.heads.restoration):
    for name in package.__all__:
        try:
            getattr(package, name)
        except ImportError as error:
            errors.add((type(error).__name__, str(error)))
print(warned, known, len(attnzoo.heads.__all__) > 10, errors)
"""
    errors = {("ImportError", f"attnzoo.heads needs {name}: pip install 'attnzoo[mm]'")}
    assert python_without((name,), code) == f"{warned} {(False, False)} True {errors}"


def test_probing_needs_no_mm_library(tmp_path):
    """As a library, and as a command on an image folder."""
    for name, grey in (("dark", 40), ("light", 210)):
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.new("RGB", (40, 40), (grey + i,) * 3).save(tmp_path / name / f"{i}.png")
    code = f"""
import sys, timm, torch
from attnzoo.heads.probing import FrozenBackbone, ProbeHead
from attnzoo.tools.cli import main
backbone = FrozenBackbone(timm.create_model("test_resnet"))
assert ProbeHead(backbone.channels, 2)(backbone(torch.rand(2, 3, 32, 32))).shape == (2, 2)
code = main(["probe", "test_resnet", "--data", {str(tmp_path)!r}, "--size", "32", "--epochs", "2", "--seeds", "0",
             "--batch", "4", "--out", {str(tmp_path / "out")!r}])
print(code, sorted(sys.modules.keys() & {{"mmengine", "mmcv", "mmdet", "mmseg", "sklearn"}}))
"""
    assert python_without(("mmengine", "mmcv", "mmdet", "mmseg", "sklearn"), code) == "0 []"
    assert (tmp_path / "out" / "result.json").is_file()


def test_mmdet_may_be_imported_first():
    code = """
import sys
import mmseg.models  # which tries mmdet's heads, too
import mmdet.structures.mask.structures as masks
from attnzoo.heads.mm.ops import _is_fallback
def left():
    modules = [m for name, m in sys.modules.items() if name.startswith("mmdet.")]
    return [key for m in modules for key, value in vars(m).items() if _is_fallback(value)]
from mmcv.ops import batched_nms, roi_align
from mmdet.models.dense_heads import base_dense_head
print([masks.roi_align is roi_align, base_dense_head.batched_nms is batched_nms, left()])
"""
    assert python_without((), code) == "[True, True, []]"


MM = ("mmengine", "mmcv", "mmdet", "mmseg")


def test_no_mm_library_is_imported_without_heads():
    steps = [
        "import attnzoo",
        "import attnzoo.kernels",
        "import attnzoo.backbones, attnzoo.backbones.modules",
        "import attnzoo.tools.cli",
        "attnzoo.tools.cli.main(['list', 'van*'])",
        "attnzoo.tools.cli.main(['info', 'van_b0'])",
    ]
    look = f"found.append(sorted(set({MM}) & {{name.partition('.')[0] for name in sys.modules}}))"
    code = "\n".join(line for step in steps for line in (step, look))
    assert python_without((), f"import sys\nfound = []\n{code}\nprint(found)") == str([[]] * len(steps))


# Everything that attnzoo.heads imports is there before, with a stub for mmcv's operators, so that what differs
# afterwards was changed by attnzoo.
CHANGES = """
import importlib, json, os, sys, types

class Stub:
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name == "mmcv._ext" else None
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        def operator(name):
            if name.startswith("__"):
                raise AttributeError(name)
            return print
        module.__getattr__ = operator

stub = Stub()
sys.meta_path.append(stub)
for name in json.loads(open({names!r}).read()):
    try:
        importlib.import_module(name)
    except ImportError:
        pass
sys.meta_path.remove(stub)

from mmengine.registry import Registry
registries = {{}}

def contents(value):
    # Of what holds other things, their identities; modules become attributes of their packages when imported.
    if isinstance(value, Registry):
        # Modules export them under many names.
        registries[f"{{value.scope}}.{{value.name}}"] = [*value.module_dict, *value.children]
        return None
    if isinstance(value, dict):
        return [(repr(key), id(item)) for key, item in value.items()]
    if isinstance(value, (list, set)):
        return [id(item) for item in value]
    return id(value)

def snapshot():
    registries.clear()
    seen = {{}}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in {mm} or not isinstance(module, types.ModuleType):
            continue
        for key, value in list(vars(module).items()):
            if key.startswith("__") or isinstance(value, types.ModuleType):
                continue
            seen[f"{{name}}.{{key}}"] = contents(value)
            if isinstance(value, type) and value.__module__ == name:
                for attribute, part in list(vars(value).items()):
                    if not attribute.startswith("__") or callable(part):
                        seen[f"{{name}}.{{key}}.{{attribute}}"] = contents(part)
    return seen

modules, before, environment, finders = set(sys.modules), snapshot(), dict(os.environ), list(sys.meta_path)
names_before = dict(registries)
import attnzoo.heads
after = snapshot()
from mmengine.runner import CheckpointLoader
print(json.dumps(dict(
    new=sorted(n for n in set(sys.modules) - modules if n.partition(".")[0] in {mm}),
    changed=sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key)),
    registries={{key: sorted(set(registries[key]) - set(names)) for key, names in names_before.items()
                if registries[key] != names}},
    environment=sorted(key for key in os.environ if os.environ[key] != environment.get(key)),
    finders=[type(finder).__module__ for finder in sys.meta_path if finder not in finders],
    last=sys.meta_path[-1] not in finders,
    loaders=sorted({{loader.__module__.partition(".")[0] for loader in CheckpointLoader._schemes.values()}}),
)))
"""


def test_importing_heads_changes_what_it_says_and_nothing_else(tmp_path):
    names = str(tmp_path / "names.json")
    code = "import json, attnzoo.heads; names = [name for name in sys.modules if 'attnzoo' not in name]\n"
    python_without((), f"{code}json.dump(names, open({names!r}, 'w')); print(len(names))")
    facts = json.loads(python_without((), CHANGES.format(names=names, mm=MM)))
    assert facts["new"] == []
    assert facts["environment"] == []
    assert facts["finders"] == ["attnzoo.heads.mm.ops"]
    assert facts["last"]
    # The one thing that another of attnzoo's modules may have changed: whose loaders these are is asked below.
    assert set(facts["changed"]) <= {"mmengine.runner.checkpoint.CheckpointLoader._schemes"}
    kinds = ("data sampler", "dataset", "metric", "model", "optimizer wrapper constructor", "transform")
    assert facts["registries"] == {f"mmengine.{kind}": ["attnzoo"] for kind in kinds}
    assert set(facts["loaders"]) <= {"mmengine", "attnzoo"}
