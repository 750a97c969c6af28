"""The time that a call takes, and the spread of many."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def stopwatch(device: str, cpu_time: bool) -> Callable[[Callable[[], None]], float]:
    """A function that gives the milliseconds that its argument takes."""
    import torch

    clock = time.process_time if cpu_time else time.perf_counter

    def host(call: Callable[[], None]) -> float:
        start = clock()
        call()
        return 1e3 * (clock() - start)

    def cuda(call: Callable[[], None]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize(device)
        return begin.elapsed_time(end)

    return cuda if device.startswith("cuda") else host


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    if len(values) == 1:
        return dict.fromkeys(("q1", "median", "q3"), values[0])
    return dict(zip(("q1", "median", "q3"), statistics.quantiles(values, n=4, method="inclusive"), strict=True))
