"""Times on a GPU: by replays of CUDA graphs, in which the CPU has no part, and by plain calls, as users make them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

Call = Callable[[], Any]
# Of each figure.
SAMPLES = 20
# Milliseconds: shorter calls are timed several at once, as the clock's own error is some microseconds.
_LEAST = 0.5


def graph(calls: Sequence[Call]) -> list[Call]:
    """Replays of what the calls do on the GPU; each call must have run before."""
    import torch

    replays: list[Call] = []
    for call in calls:
        captured = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(captured):
            # Kept, so that its memory is not given to the next call of the graph.
            kept = call()
        replays.append(_Replay(captured, kept))
    return replays


class _Replay:
    def __init__(self, captured: Any, kept: Any) -> None:
        self.captured, self.kept = captured, kept

    def __call__(self) -> None:
        self.captured.replay()


def median(calls: Sequence[Call], device: str, samples: int = SAMPLES, seconds: float = 0.2) -> float:
    """Median of a call's milliseconds over calls in rotation, whose inputs the cache has then lost.

    Args:
        calls: the same work on other tensors; each must have run before.
        device: "cuda", or "cpu" in a dry run.
        samples: most that are taken.
        seconds: after which no further sample is taken.
    """
    if samples == 1:
        return _sample(calls, device, 1)
    begin = time.perf_counter()
    once = _sample(calls, device, 1)
    repeats = max(1, min(50, round(_LEAST / max(once, 1e-3))))
    taken: list[float] = []
    while len(taken) < samples and (not taken or time.perf_counter() - begin < seconds):
        taken.append(_sample(calls, device, repeats))
    return statistics.median(taken)


def _sample(calls: Sequence[Call], device: str, repeats: int) -> float:
    import torch

    count = repeats * len(calls)
    if device == "cpu":
        start = time.perf_counter()
        for _ in range(repeats):
            for call in calls:
                call()
        return 1e3 * (time.perf_counter() - start) / count
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(repeats):
        for call in calls:
            call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / count


def peak_bytes(call: Call) -> int:
    """The most of the GPU's memory that a call takes beyond what is there before."""
    import torch

    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
