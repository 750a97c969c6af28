"""Which implementation runs: by argument, by context, by environment, and why not."""

import _thread
import asyncio
import contextvars
import os
import queue
import subprocess
import sys
import threading

import interpreters
import pytest
import torch

from attnzoo import kernels
from attnzoo.kernels import _dispatch


def chosen(backend="auto", reason=None, x=None):
    """Whether a call on the CPU takes Triton: with "auto" only where somebody asked for it."""
    return _dispatch.use_triton("op", backend, (torch.zeros(1) if x is None else x,), reason, 1)


def test_auto_is_pytorch_until_measured_otherwise():
    assert not chosen()
    assert not chosen("torch")
    assert chosen("triton")


def test_context_holds_for_auto_only_and_ends():
    with kernels.use_backend("triton"):
        assert chosen()
        assert not chosen("torch")
        with kernels.use_backend("torch"):
            assert not chosen()
            assert chosen("triton")
        with kernels.use_backend("auto"):
            assert not chosen()
        assert chosen()
    assert not chosen()
    with pytest.raises(KeyError), kernels.use_backend("triton"):
        raise KeyError
    assert not chosen()


def generator(backend):
    with kernels.use_backend(backend):
        yield
        yield


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_generators_may_end_in_any_order(order):
    generators = [generator("torch"), generator("triton")]
    for one in generators:
        next(one)
    assert chosen()
    generators[order[0]].close()
    assert chosen() == (order[0] == 0)
    generators[order[1]].close()
    assert not chosen()


def test_generator_that_another_thread_closes():
    one = generator("triton")
    next(one)
    assert chosen()
    thread = threading.Thread(target=one.close)
    thread.start()
    thread.join()
    assert not chosen()


def test_threads_and_tasks_are_apart():
    found = []
    with kernels.use_backend("triton"):
        thread = threading.Thread(target=lambda: found.append(chosen()))
        thread.start()
        thread.join()
        copied = contextvars.copy_context()
        thread = threading.Thread(target=lambda: found.append(copied.run(chosen)))
        thread.start()
        thread.join()
    assert found == [False, True]

    async def task(backend, others):
        with kernels.use_backend(backend):
            others.release()
            while others._value < 2:
                await asyncio.sleep(0)
            return chosen()

    async def both():
        others = asyncio.Semaphore(0)
        return await asyncio.gather(task("triton", others), task("torch", others))

    assert asyncio.run(both()) == [True, False]


def test_threads_of_autograd_inherit_the_choice():
    """Gradient checkpointing calls operators in them; Python did not start them, nor does it know of this one."""

    def in_thread():
        found = queue.SimpleQueue()
        _thread.start_new_thread(lambda: found.put(chosen()), ())
        return found.get(timeout=60)

    assert not in_thread()
    with kernels.use_backend("triton"):
        assert in_thread()
        with kernels.use_backend("torch"):
            assert not in_thread()
    assert not in_thread()


def test_compiled_graph_follows_the_choice():
    def function(x):
        return x + 1 if chosen(x=x) else x - 1

    torch.compiler.reset()
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    x = torch.zeros(1)
    assert compiled(x).item() == -1
    with kernels.use_backend("triton"):
        assert compiled(x).item() == 1
        found = []
        thread = threading.Thread(target=lambda: found.append(compiled(x).item()))
        thread.start()
        thread.join()
        assert found == [-1]
        with kernels.use_backend("torch"):
            assert compiled(x).item() == -1
        assert compiled(x).item() == 1
    assert compiled(x).item() == -1
    generators = [generator("triton"), generator("torch")]
    for one in generators:
        next(one)
    assert compiled(x).item() == -1
    generators[0].close()
    assert compiled(x).item() == -1
    generators[1].close()
    assert compiled(x).item() == -1


def test_refusal_says_why_and_what_would_work():
    with pytest.raises(RuntimeError, match="op: Triton cannot run: too small; backend='auto' or 'torch' would"):
        chosen("triton", "too small")
    with kernels.use_backend("triton"), pytest.raises(RuntimeError, match="op: Triton cannot run: too small"):
        chosen("auto", "too small")
    assert not chosen("torch", "too small")


@pytest.mark.parametrize("name", ["cuda", "", "Triton"])
def test_unknown_backend(name):
    with pytest.raises(ValueError, match="backend must be one of auto, triton, torch"):
        chosen(name)
    with pytest.raises(ValueError, match="backend must be one of auto, triton, torch"), kernels.use_backend(name):
        pass


@pytest.mark.parametrize("value", ["triton", "cuda"])
def test_environment(value):
    code = (
        "import torch\nfrom attnzoo.kernels import _dispatch\n"
        "print(_dispatch.use_triton('op', 'auto', (torch.zeros(1),), None, 1))"
    )
    done = interpreters.run(code, env={**os.environ, "ATTNZOO_BACKEND": value})
    if value == "cuda":
        assert "ATTNZOO_BACKEND must be one of auto, triton, torch, got 'cuda'" in done.stderr
    else:
        assert done.stdout.strip() == "True", done.stderr


def test_reasons():
    x = torch.zeros(2)
    assert "float64" in _dispatch.why_not(x.double())
    assert "differ" in _dispatch.why_not(x, None, x.half())
    assert "meta" in _dispatch.why_not(x.to("meta"))


def test_tensors_on_a_gpu_that_is_not_there():
    if torch.cuda.is_available():
        pytest.skip("it is there")
    with torch._subclasses.FakeTensorMode():
        assert "no NVIDIA GPU" in _dispatch.why_not(torch.empty(2, device="cuda"))


@pytest.mark.skipif(not _dispatch.INTERPRETED, reason="of the interpreter")
def test_interpreter_refuses_what_it_gets_wrong(monkeypatch):
    monkeypatch.setattr(_dispatch, "INTERPRETED_DTYPES", (torch.float32, torch.float16))
    assert "wrong products" in _dispatch.why_not(torch.zeros(2, dtype=torch.bfloat16))
    assert _dispatch.why_not(torch.zeros(2)) is None


@pytest.mark.skipif(not _dispatch.INTERPRETED, reason="of the interpreter")
@pytest.mark.parametrize(
    ("version", "refused"), [("3.4.0", True), ("2.10.1+rocm", True), ("3.5.0+git1", False), ("3.10.2", False)]
)
def test_versions_of_triton(version, refused, monkeypatch):
    monkeypatch.setattr("triton.__version__", version)
    reason = _dispatch.why_not(torch.zeros(2))
    assert reason == (f"Triton is {version}, it needs 3.5 or newer" if refused else None)


def test_can_run_of_an_unknown_operator():
    with pytest.raises(ValueError, match="operator must be one of"):
        kernels.can_run("attention")


@pytest.mark.long
def test_precision_of_products_follows_every_switch():
    """Each in a process of its own: switches of two kinds do not mix."""
    settings = {
        "pass": "ieee",
        "torch.backends.cuda.matmul.allow_tf32 = True": "tf32",
        "torch.set_float32_matmul_precision('high')": "tf32",
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'": "tf32",
        "torch.backends.fp32_precision = 'tf32'": "tf32",
        "torch.backends.fp32_precision = 'tf32'; torch.backends.cuda.matmul.fp32_precision = 'ieee'": "ieee",
    }
    code = f"""
import os, torch
from attnzoo.kernels import _dispatch
for setting in {list(settings)}:
    child = os.fork()
    if child == 0:
        exec(setting)
        print(_dispatch.dot_precision(), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, setting
"""
    done = interpreters.run(code)
    assert done.stdout.split() == list(settings.values()), done.stderr


@pytest.mark.long
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
