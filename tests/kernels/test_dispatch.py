"""Which implementation runs: by argument, by context, by environment, and why not."""

import subprocess
import sys

import pytest
import torch

from attnzoo import kernels
from attnzoo.kernels import _dispatch

CPU = torch.device("cpu")
GPU = torch.device("cuda")


def test_auto_is_triton_on_a_gpu_only():
    assert _dispatch.use_triton("op", "auto", GPU, None)
    assert not _dispatch.use_triton("op", "auto", GPU, "a reason")
    assert not _dispatch.use_triton("op", "auto", CPU, None)
    assert not _dispatch.use_triton("op", "torch", GPU, None)
    assert _dispatch.use_triton("op", "triton", CPU, None)


def test_context_holds_for_auto_only_and_ends():
    with kernels.use_backend("torch"):
        assert not _dispatch.use_triton("op", "auto", GPU, None)
        assert _dispatch.use_triton("op", "triton", GPU, None)
        with kernels.use_backend("triton"):
            assert _dispatch.use_triton("op", "auto", CPU, None)
        assert not _dispatch.use_triton("op", "auto", GPU, None)
    assert _dispatch.use_triton("op", "auto", GPU, None)
    with pytest.raises(KeyError), kernels.use_backend("torch"):
        raise KeyError
    assert _dispatch.use_triton("op", "auto", GPU, None)


def test_refusal_says_why_and_what_would_work():
    with pytest.raises(RuntimeError, match="op: Triton cannot run: too small; backend='auto' or 'torch' would"):
        _dispatch.use_triton("op", "triton", GPU, "too small")


@pytest.mark.parametrize("name", ["cuda", "", "Triton"])
def test_unknown_backend(name):
    with pytest.raises(ValueError, match="backend must be one of auto, triton, torch"):
        _dispatch.use_triton("op", name, CPU, None)
    with pytest.raises(ValueError, match="backend must be one of auto, triton, torch"), kernels.use_backend(name):
        pass


@pytest.mark.parametrize("value", ["torch", "cuda"])
def test_environment(value):
    code = (
        "import torch\nfrom attnzoo.kernels import _dispatch\n"
        "print(_dispatch.use_triton('op', 'auto', torch.device('cuda'), None))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"ATTNZOO_BACKEND": value, "PATH": ""}, capture_output=True, text=True
    )
    if value == "torch":
        assert done.stdout.strip() == "False", done.stderr
    else:
        assert "ATTNZOO_BACKEND must be one of auto, triton, torch, got 'cuda'" in done.stderr


def test_reasons():
    x = torch.zeros(2)
    assert "float64" in _dispatch.why_not(x.double())
    assert "differ" in _dispatch.why_not(x, None, x.half())
    assert "meta" in _dispatch.why_not(x.to("meta"))


@pytest.mark.skipif(not _dispatch.INTERPRETED, reason="of the interpreter")
def test_interpreter_refuses_what_it_gets_wrong(monkeypatch):
    monkeypatch.setattr(_dispatch, "INTERPRETED_DTYPES", (torch.float32, torch.float16))
    assert "wrong products" in _dispatch.why_not(torch.zeros(2, dtype=torch.bfloat16))
    assert _dispatch.why_not(torch.zeros(2)) is None


def test_can_run_of_an_unknown_operator():
    with pytest.raises(ValueError, match="operator must be one of"):
        kernels.can_run("attention")


def test_without_triton():
    code = """
import sys
sys.modules["triton"] = None  # as if it were not installed
import torch, attnzoo
from attnzoo.kernels import _dispatch
assert "pip install triton" in _dispatch.why_not(torch.zeros(1, device="meta"))
assert not [name for name in sys.modules if name.startswith("attnzoo.kernels.") and name.endswith(".triton")]
x = torch.rand(1, 14, 14, 8)
assert attnzoo.kernels.routing_attention(x, x, x, 2, (7, 7), 3, 1.0).isfinite().all()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
