"""Runs in processes of their own, several at once, and what each has left."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.files import read_json, remove_files, write_json
from ..common.processes import last_line, worker_environment
from ..common.progress import bar
from ..running.work_dir import run_files
from .settings import METRIC

_WORKER = "import sys; from attnzoo.tools.comparing.worker import work; work(sys.argv[1])"


def read_result(folder: Path) -> dict[str, Any]:
    """What a finished run has written."""
    return json.loads((folder / "result.json").read_text())


def is_finished(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether a run with these settings has come to its end."""
    return (folder / "result.json").is_file() and has_settings(folder, settings)


def has_settings(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether the run in this folder was begun with these settings."""
    return read_json(folder / "settings.json") == settings


def run_all(runs: list[tuple[str, int, Path]], data_root: Path, settings: dict[str, Any], jobs: int) -> None:
    """Train and evaluate, several at once, each in a process of its own."""
    progress = bar(total=len(runs), title="runs")
    with ThreadPoolExecutor(jobs) as pool:
        started = {pool.submit(_run_one, *one, data_root, settings): one for one in runs}
        try:
            for done in as_completed(started):
                name, seed, _ = started[done]
                result = done.result()
                progress.update()
                progress.write(f"{name:<10} seed {seed}  {METRIC} {result['metric']:.3f}")
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            progress.close()


def _run_one(name: str, seed: int, folder: Path, data_root: Path, settings: dict[str, Any]) -> dict[str, Any]:
    if not has_settings(folder, settings):
        if folder.is_dir() and any(folder.iterdir()) and not isinstance(read_json(folder / "settings.json"), dict):
            raise UserError(f"{folder}: holds something else than a run of this comparison: move it away")
        # Of other settings.
        remove_files(folder, [*run_files(folder), "settings.json", "result.json", "log.txt"])
        write_json(folder / "settings.json", settings)
    task = {"module": name, "seed": seed, "folder": str(folder), "data_root": f"{data_root}/"}
    given = json.dumps({**task, "options": settings["options"]})
    log = folder / "log.txt"
    with log.open("w") as file:
        done = subprocess.run(
            [sys.executable, "-c", _WORKER, given],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=worker_environment(1),
        )
    if done.returncode != 0:
        raise UserError(f"{name}, seed {seed}, failed: {last_line(log)}; its whole output is in {log}")
    return read_result(folder)
