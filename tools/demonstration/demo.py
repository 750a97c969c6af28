"""The demo: data, both models, pictures and results."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.files import claim, new_folders, write_json
from ..common.locks import LOCK, locked
from ..config.loading import require_mm
from ..data import digits
from ..running.work_dir import trainings
from .processes import run_tasks
from .results import results_of, table, timed
from .sheets import draw_sheet
from .tasks import TASKS

_PICTURES = 4


def demo(out: str | os.PathLike[str], quick: bool = False, seed: int = 0, overwrite: bool = False) -> dict[str, Any]:
    """Build the data, train, evaluate, draw, export, and print the table.

    Both models are trained at the same time, each in a process of its own with half of the cores.

    Args:
        out: Where all goes.
        quick: A few images and iterations; the goals are then neither asked for nor reached.
        seed: Seed of the data set and of training.
        overwrite: Remove the models of an older demo.

    Returns:
        What is written to `results.json`; `reached` says whether every goal was.

    Raises:
        UserError: If `out` cannot be used, as something else or models are in it or another demo at work there, or a
            step of a model fails.
    """
    out = Path(out)
    check_libraries()
    with claimed(out):
        for task in TASKS:
            folder = out / task.name
            older = [*trainings(folder), *(name for name in ("model.onnx",) if (folder / name).exists())]
            if older and not overwrite:
                raise UserError(f"{folder}: holds {older[0]}: --overwrite removes it, --out names another folder")
        return _demo(out, quick, seed, overwrite)


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Hold the folder of a demo for it alone."""
    with new_folders(out):
        _make(out)
        with locked(out / LOCK, str(out)):
            # The folder of the data set has a stamp of its own.
            claim(out, "attnzoo demo", known=["data"])
            yield


def _demo(out: Path, quick: bool, seed: int, overwrite: bool) -> dict[str, Any]:
    start = time.perf_counter()
    cores = _cores()
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, cores // len(TASKS)))
    print(
        f"attnzoo demo: {out.absolute()}, seed {seed}, {cores} cores, threads for each model: {threads}\n", flush=True
    )

    seconds: dict[str, float] = {}
    with timed(seconds, "data"):
        data = build_data(out, quick, seed)
    pictured = _pictured(out, data)
    reports = run_tasks(out, data, [path for path, _ in pictured], quick, seed, threads, overwrite)
    with timed(seconds, "pictures"):
        for task in TASKS:
            draw_sheet(task, out, data, [number for _, number in pictured])
    for task in TASKS:
        seconds.update({f"{task.name}: {step}": value for step, value in reports[task.name]["seconds"].items()})
    seconds["all"] = time.perf_counter() - start

    results = results_of(reports, seconds, quick, seed, cores, threads)
    write_json(out / "results.json", results)
    print("\n" + table(results, out))
    return results


def check_libraries() -> None:
    """Check that all that the steps need is installed.

    Raises:
        UserError: naming what is missing.
    """
    require_mm()
    # Asked for now, since the export comes minutes later.
    missing = [name for name in ("sklearn", "onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if missing:
        raise UserError(f"the demo needs {', '.join(missing)}: pip install 'attnzoo[all]'")


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: the folder cannot be made: {error}") from error


def build_data(out: Path, quick: bool, seed: int) -> digits.Digits:
    """Build the data set below `out`, or find it there."""
    print("data set: scikit-learn's handwritten digits in scikit-learn's photographs", flush=True)
    counts = {"train_images": 24, "val_images": 8} if quick else {}
    return digits.build(out / "data", seed=seed, **counts)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pictured(out: Path, data: digits.Digits) -> list[tuple[Path, int]]:
    """The held-out images for the sheets, from each photograph in turn, with their COCO ids."""
    images = json.loads(data.annotations["val"].read_text())["images"]
    by_photo: dict[str, list[dict[str, Any]]] = {}
    for image in images:
        by_photo.setdefault(image["photo"], []).append(image)
    turns = [(turn, photo) for photo, found in by_photo.items() for turn in range(len(found))]
    chosen = [by_photo[photo][turn] for turn, photo in sorted(turns)[:_PICTURES]]
    return [(out / "data" / "val" / image["file_name"], image["id"]) for image in chosen]
