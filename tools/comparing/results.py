"""The results of a comparison: means, spreads and differences, as a table."""

from __future__ import annotations

import os
import platform
import statistics
from importlib.metadata import version
from typing import Any

from ..common.machine import cpu_name
from .settings import METRIC, NONE


def summary(
    chosen: list[str], seeds: list[int], runs: dict[tuple[str, int], dict[str, Any]], settings: dict[str, Any]
) -> dict[str, Any]:
    """Mean and spread of every module, and the difference to the detector without one, seed by seed."""
    rows = []
    for name in chosen:
        own = [runs[name, seed] for seed in seeds]
        values = [result["metric"] for result in own]
        differences = [value - runs[NONE, seed]["metric"] for value, seed in zip(values, seeds, strict=True)]
        seconds = [s for result in own if (s := result["cpu_seconds_of_training"]) is not None]
        rows.append(
            {
                "module": name,
                "values": values,
                "mean": statistics.mean(values),
                "spread": statistics.stdev(values) if len(seeds) > 1 else None,
                "difference": statistics.mean(differences),
                "difference_spread": statistics.stdev(differences) if len(seeds) > 1 else None,
                "parameters": own[0]["parameters"],
                "attention_parameters": own[0]["attention_parameters"],
                "cpu_seconds_of_training": statistics.mean(seconds) if seconds else None,
            }
        )
    packages = ("attnzoo", "torch", "timm", "onedl-mmengine", "onedl-mmdetection")
    return {
        "metric": METRIC,
        "seeds": seeds,
        "rows": rows,
        "runs": [{"module": name, "seed": seed, **result} for (name, seed), result in runs.items()],
        "settings": settings,
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "threads_per_run": 1},
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
    }


def table(results: dict[str, Any]) -> str:
    """The results as text: mean and standard deviation over the seeds."""

    def spread(value: float | None) -> str:
        return f" ± {value:.3f}" if value is not None else ""

    seeds = ", ".join(map(str, results["seeds"]))
    lines = [f"{results['metric']} on held-out images, mean ± standard deviation over the seeds {seeds}", ""]
    lines += [f"{'module':<12}{'AP50':<17}{'to none':<18}{'parameters':>11}{'CPU s':>8}   each seed"]
    for row in results["rows"]:
        mean, difference = f"{row['mean']:.3f}{spread(row['spread'])}", ""
        if row["module"] != NONE:
            difference = f"{row['difference']:+.3f}{spread(row['difference_spread'])}"
        values = " ".join(f"{value:.3f}" for value in row["values"])
        seconds = row["cpu_seconds_of_training"]
        lines.append(
            f"{row['module']:<12}{mean:<17}{difference:<18}{row['attention_parameters']:>+11,}"
            f"{'' if seconds is None else f'{seconds:.0f}':>8}   {values}"
        )
    base = results["rows"][0]
    machine = results["machine"]
    lines += ["", f"parameters: the attention's, on top of {base['parameters']:,}"]
    lines += [f"{machine['cpu']}, one thread a run"]
    return "\n".join(lines)
