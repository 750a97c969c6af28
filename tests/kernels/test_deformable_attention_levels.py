"""Levels given as numbers are copied to the device once; as tensors they are read as they are."""

import threading

import pytest
import torch
from kernel_helpers import DEVICE, cases
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from attnzoo.kernels import _dispatch, deformable_attention
from attnzoo.kernels.deformable_attention import levels, operator

BACKENDS = ("torch", "triton") if DEVICE == "cuda" or _dispatch.INTERPRETED else ("torch",)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(levels, "_kept", {})


def tensors(name="deformable"):
    case = cases()[name]
    return case, [x.float().to(DEVICE).requires_grad_() for x in case.tensors.values()]


class HostTensors(TorchDispatchMode):
    """Counts tensors that are made of Python's numbers."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["deformable", "deformable_3d"])
def test_second_call_copies_nothing(name, backend, monkeypatch):
    case, inputs = tensors(name)

    def gradients():
        grads = torch.autograd.grad(case.call(*inputs, backend=backend).square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in grads), inputs)

    first = gradients()
    # Where copies are made.
    monkeypatch.setattr(levels, "ThreadPoolExecutor", None)
    with HostTensors() as made:
        torch.tensor(1.0)
        assert made.count == 1
        second = gradients()
    assert made.count == 1
    for got, want in zip(second, first, strict=True):
        torch.testing.assert_close(got, want)
    with pytest.raises(TypeError, match="NoneType"):
        levels.kept([1, 2], first[0].device)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_tensors_of_any_integers(dtype, backend):
    case, inputs = tensors()
    given = {key: torch.tensor(x, dtype=dtype, device=DEVICE) for key, x in case.settings.items()}
    read = operator.levels_of(*given.values(), inputs[0])
    if dtype == torch.int64:
        assert read[0] is given["spatial_shapes"] and read[1] is given["level_start_index"]
    assert all(x.dtype in (torch.int64, torch.int32) for x in read[:2])
    results = []
    for settings in (given, case.settings, {**case.settings, "level_start_index": given["level_start_index"]}):
        results.append(deformable_attention(inputs[0], *settings.values(), *inputs[1:], backend=backend))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_capture_of_new_levels_is_refused(monkeypatch):
    device = torch.device("cuda", 0)
    there = levels._kept[device, (2, 3), (4, 5)] = torch.zeros(2, 2)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert levels.kept([[2, 3], [4, 5]], device) is there
    with pytest.raises(RuntimeError, match="once before the capture, or give them as tensors"):
        levels.kept([[2, 3], [4, 6]], device)
    # On the CPU there is nothing to capture.
    assert levels.kept([[2, 3]], CPU).tolist() == [[2, 3]]


def test_no_more_are_kept_than_the_bound_and_none_is_dropped(monkeypatch):
    monkeypatch.setattr(levels, "_MOST", 2)
    first, second, third = (levels.kept([i, 7], CPU) for i in range(3))
    assert third.tolist() == [2, 7] and levels.kept([2, 7], CPU) is not third
    assert levels.kept([0, 7], CPU) is first and levels.kept((1, 7), CPU) is second
    assert len(levels._kept) == 2


def test_keeps_no_tensor_of_a_mode():
    x = torch.zeros(3)
    with torch.inference_mode():
        assert not levels.on_device([1, 2], x).is_inference()
    with FakeTensorMode() as mode:
        fake = levels.on_device([1, 3], mode.from_tensor(x))
    assert type(fake).__name__ == "FakeTensor" and len(levels._kept) == 1
    seen = []

    def note(y):
        seen.append(levels.on_device([1, 4], y))
        return (y * seen[-1].sum()).sum()

    torch.func.vmap(torch.func.grad(note))(torch.zeros(2, 3))
    assert not torch._C._functorch.is_functorch_wrapped_tensor(seen[0])
    assert seen[0].tolist() == [1, 4] and levels.on_device((1, 4), x) is seen[0]
    # Those of a trace may be changed with its graph.
    torch.jit.trace(note, (x,), check_trace=False)
    assert seen[-1] is not seen[0]


def test_threads_share_what_one_made():
    barrier, got = threading.Barrier(4), []

    def call():
        barrier.wait()
        got.append(levels.kept([5, 6], CPU))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4 and len({id(x) for x in got}) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_graphs_hold_no_tensor_of_the_host(backend):
    """Numbers are constants of a graph, or, where they change, inputs; no graph copies them to a GPU in every call."""
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph.forward

    def compiler(module, examples):
        return torch._dynamo.backends.common.aot_autograd(fw_compiler=keep)(module, examples)

    torch.compiler.reset()
    compiled = torch.compile(deformable_attention, backend=compiler, fullgraph=True)
    value, places, weights = (x.detach().requires_grad_() for x in tensors()[1])
    pyramids = [[(6, 8), (2, 3)], [(8, 6), (2, 3)], [(12, 4), (2, 3)]]
    # In PyTorch 2.9 a graph cannot sort levels that are its inputs.
    for shapes in pyramids if torch.__version__ >= "2.14" else pyramids[:1]:
        given = value, shapes, [0, 48], places, weights, backend
        out, want = compiled(*given), deformable_attention(*given)
        torch.testing.assert_close(out, want)
        grads = zip(*(torch.autograd.grad(x.square().sum(), given[3:5]) for x in (out, want)), strict=True)
        for got, expected in grads:
            torch.testing.assert_close(got, expected)
    names = [node.name for graph in graphs for node in graph.graph.nodes]
    assert names and not [name for name in names if "tensor_constant" in name or "lift" in name]
    # Forward and backward, for the first levels and for any.
    assert len(graphs) <= 2 * 2
