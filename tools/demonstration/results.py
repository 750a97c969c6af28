"""The results of the demo: steps timed, goals compared, all as a table."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..common.machine import cpu_name
from .tasks import GOAL_SECONDS, TASKS, Task


@contextmanager
def timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Note how long the block takes."""
    start = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - start


def report(
    task: Task, checkpoint: str, model: Any, metrics: dict[str, float], exported: Any, seconds: dict[str, float]
) -> dict[str, Any]:
    """What a worker hands on about its model.

    Args:
        task: Its task.
        checkpoint: The last one.
        model: The trained model.
        metrics: Of the held-out images.
        exported: The `ExportReport`.
        seconds: Of each step.
    """
    differences = [(name, value) for check in exported.checks for name, value in check.errors.items()]
    return {
        "config": task.config,
        "checkpoint": checkpoint,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "metrics": metrics,
        "onnx": {
            "path": str(exported.path),
            "bytes": exported.size,
            "images": [list(check.shape) for check in exported.checks],
            "compared": sum(check.compared for check in exported.checks),
            "largest_difference": {name: max(v for n, v in differences if n == name) for name, _ in differences},
        },
        "seconds": seconds,
    }


def results_of(
    reports: dict[str, dict[str, Any]], seconds: dict[str, float], quick: bool, seed: int, cores: int, threads: int
) -> dict[str, Any]:
    """Everything that the table shows, and what it was measured on."""
    goals = []
    for task in TASKS:
        # mmdet's metric gives nothing at all where nothing at all was detected.
        value = reports[task.name]["metrics"].get(task.metric, 0.0) / task.unit
        goals.append(
            {"title": task.title, "value": value, "goal": f">= {task.goal:.2f}", "reached": value >= task.goal}
        )
    within = seconds["all"] <= GOAL_SECONDS
    goals.append(
        {"title": "seconds, all", "value": seconds["all"], "goal": f"<= {GOAL_SECONDS:.0f}", "reached": within}
    )
    if quick:
        goals = [{**goal, "reached": False} for goal in goals]
    packages = ("torch", "timm", "onedl-mmengine", "onedl-mmdetection", "onedl-mmsegmentation", "onnxruntime")
    return {
        "reached": all(goal["reached"] for goal in goals),
        "quick": quick,
        "seed": seed,
        "goals": goals,
        "models": reports,
        "seconds": seconds,
        "machine": {
            "cpu": cpu_name(),
            "cores": cores,
            "threads_per_model": threads,
            "python": platform.python_version(),
        },
        "versions": {package: version(package) for package in packages},
    }


def table(results: dict[str, Any], out: Path) -> str:
    """The results as text."""
    lines = [f"{'held-out images':<36}{'value':>9}{'goal':>10}  reached"]
    for goal in results["goals"]:
        reached = "not asked (--quick)" if results["quick"] else "yes" if goal["reached"] else "NO"
        lines.append(f"{goal['title']:<36}{goal['value']:>9.3f}{goal['goal']:>10}  {reached}")
    lines += ["", f"{'ONNX Runtime against PyTorch':<36}{'MiB':>9}{'compared':>10}  largest difference"]
    for task in TASKS:
        onnx = results["models"][task.name]["onnx"]
        errors = ", ".join(f"{name} {value:.1e}" for name, value in onnx["largest_difference"].items())
        lines.append(f"{task.name:<36}{onnx['bytes'] / 2**20:>9.1f}{onnx['compared']:>10}  {errors}")
    lines += ["", f"{'seconds (both models at once)':<36}"]
    lines += [f"{step:<36}{value:>9.1f}" for step, value in results["seconds"].items()]
    lines += ["", "written"]
    lines += [str(out / name) for name in ("data", *(task.sheet for task in TASKS), "results.json")]
    for task in TASKS:
        model = results["models"][task.name]
        lines += [f"{model['checkpoint']}  ({model['parameters'] / 1e6:.1f} M parameters)", model["onnx"]["path"]]
    missed = [goal["title"] for goal in results["goals"] if not goal["reached"]]
    if results["quick"]:
        verdict = "quick run: every step ran; the goals are for the full demo."
    elif missed:
        verdict = f"goal missed: {'; '.join(missed)}."
    else:
        verdict = "all goals reached."
    return "\n".join([*lines, "", verdict])
