"""The memory that a pass takes: on a GPU of CUDA's allocator, on the CPU in a process of its own."""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path


def resident(field: str) -> int:
    """Bytes of the resident set: now (VmRSS, which also resets the peak) or at its peak (VmHWM)."""
    status = Path("/proc/self/status")
    if not status.exists():
        import resource

        # The peak since the process began: what a model took while it was made is then part of it.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if field == "VmRSS":
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in status.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def fresh_processes() -> ProcessPoolExecutor:
    """Runs each call in a new process, forked from one that has the libraries loaded already."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["torch", "timm", __name__.rpartition(".tools.")[0]])
    return ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1)
