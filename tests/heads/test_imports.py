"""What importing attnzoo asks for; each case is a fresh interpreter in which some packages seem not to be installed."""

import subprocess
import sys

import pytest
from PIL import Image

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
    command = [sys.executable, "-c", HIDE.format(names=names) + code]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip().splitlines()[-1]


def test_attnzoo_needs_torch_and_timm_alone():
    optional = ("mmengine", "mmcv", "mmdet", "mmseg", "triton", "onnx", "onnxruntime", "onnxscript")
    code = "import attnzoo, timm; timm.create_model('van_b0'); print(attnzoo.list_models('van_b0'))"
    assert python_without(optional, code) == "['van_b0']"


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
known = hasattr(attnzoo.heads, "no_such_name")
try:
    attnzoo.heads.Backbone
except ImportError as error:
    print(warned, known, type(error).__name__, error)
"""
    error = f"ImportError attnzoo.heads needs {name}: pip install 'attnzoo[mm]'"
    assert python_without((name,), code) == f"{warned} False {error}"


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
import mmdet.structures.mask.structures as masks
import attnzoo.heads
from mmcv.ops.roi_align import roi_align
print(masks.roi_align is roi_align)
"""
    assert python_without((), code) == "True"
