"""The phase that reads the GPU's own counters by NVIDIA's profiler: how busy the kernels keep it."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys

import torch

from .context import Context
from .subjects import MAIN
from .times import one_pass

# By the names under which they are told.
METRICS = {
    "issue_percent": "sm__inst_issued.avg.pct_of_peak_sustained_active",
    "l2_percent": "lts__t_sectors.avg.pct_of_peak_sustained_elapsed",
    "dram_percent": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "registers": "launch__registers_per_thread",
    "microseconds": "gpu__time_duration.sum",
}
_PROGRAM = "from {package}.counters import run_subjects; run_subjects()"


def counters(context: Context) -> None:
    """Of one forward and backward pass of one subject of each operator."""
    profiler = shutil.which("ncu")
    if context.dry or profiler is None:
        context.results.add("counters", skipped="a dry run" if context.dry else "ncu is not on the PATH")
        return
    command = [profiler, "--csv", "--target-processes", "all", "--clock-control", "none"]
    command += ["--kernel-name", "regex:_kernel$", "--metrics", ",".join(METRICS.values())]
    command += [sys.executable, "-c", _PROGRAM.format(package=__package__)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(context.left - 1, 1))
    except subprocess.TimeoutExpired:
        context.results.add("counters", failed="out of time")
        return
    rows = read_counters(done.stdout)
    if not rows:
        context.results.add("counters", failed=(done.stdout + done.stderr).strip()[-300:])
    for row in rows:
        context.results.add("counters", **row)


def run_subjects() -> None:
    """What the profiler looks at."""
    seen = set()
    for subject in MAIN:
        if subject.operator in seen:
            continue
        seen.add(subject.operator)
        case = subject.case()
        one_pass(case.forms["triton"], case.tensors(torch.bfloat16, "cuda"), None, "backward")()
    torch.cuda.synchronize()


def read_counters(text: str) -> list[dict[str, str | float]]:
    """The profiler's table, a row for each launch: the kernel and its metrics by our names.

    Args:
        text: as ncu prints it with `--csv`, with lines of its own before the table.
    """
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    names = {metric: name for name, metric in METRICS.items()}
    launches: dict[str, dict[str, str | float]] = {}
    for row in csv.DictReader(lines[start:]):
        if row["Metric Name"] in names:
            launch = launches.setdefault(row["ID"], {"kernel": row["Kernel Name"]})
            value = float(row["Metric Value"].replace(",", ""))
            # ncu writes times in nanoseconds, unless told otherwise.
            unit = {"nsecond": 1e-3, "ns": 1e-3, "msecond": 1e3, "ms": 1e3}.get(row["Metric Unit"], 1.0)
            launch[names[row["Metric Name"]]] = value * unit
    return list(launches.values())
