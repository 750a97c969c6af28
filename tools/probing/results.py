"""The results of a probing as a table."""

from __future__ import annotations

from typing import Any


def table(results: dict[str, Any]) -> str:
    """The results as text: mean and standard deviation over the seeds."""
    data, rows = results["data"], results["rows"]
    seeds = ", ".join(map(str, results["settings"]["seeds"]))
    lines = [
        f"top-1 accuracy on {data['val']} held-out images of {data['name']} ({len(data['classes'])} classes, "
        f"{data['train']} to train), mean over the seeds {seeds}",
        "",
    ]
    width = max(len("model"), *(len(row["model"]) for row in rows)) + 2
    lines += [f"{'model':<{width}}{'pooling':<11}{'top-1':<16}{'head':>10}{'features':>12}   weights"]
    for row in rows:
        mean = f"{row['mean']:.4f}" + ("" if row["spread"] is None else f" ± {row['spread']:.4f}")
        features = f"{row['places']} x {row['channels']}"
        lines.append(
            f"{row['model']:<{width}}{row['pooling']:<11}{mean:<16}{row['head_parameters']:>10,}{features:>12}   "
            f"{row['weights']}"
        )
    return "\n".join([*lines, "", "head: its parameters; features: places x channels of the last level"])
