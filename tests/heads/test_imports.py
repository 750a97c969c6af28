"""What importing attnzoo asks for; each case is a fresh interpreter in which some packages seem not to be installed."""

import subprocess
import sys

import pytest

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


@pytest.mark.parametrize("name", ["mmengine", "mmseg"])
def test_a_missing_extra_is_named(name):
    code = """
try:
    import attnzoo.heads
except ImportError as error:
    print(type(error).__name__, error)
"""
    assert python_without((name,), code) == f"ImportError attnzoo.heads needs {name}: pip install 'attnzoo[mm]'"


def test_mmdet_may_be_imported_first():
    code = """
import mmdet.structures.mask.structures as masks
import attnzoo.heads
from mmcv.ops.roi_align import roi_align
print(masks.roi_align is roi_align)
"""
    assert python_without((), code) == "True"
