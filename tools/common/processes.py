"""Processes that a command starts: their environment, and what they printed last."""

import os
from pathlib import Path


def worker_environment(threads: int) -> dict[str, str]:
    """The environment of a process that computes beside others.

    Args:
        threads: Of its own. They do not spin while they wait: each process would take the others' cores.
    """
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}


def last_line(log: Path) -> str:
    """The last line of a log that is not empty, or that there is none."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"
