"""A process for each model of the demo, and what it tells of its progress."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.processes import last_line, worker_environment
from ..data import digits
from .tasks import STEP, TASKS, Task

_WORKER = "import sys; from attnzoo.tools.demonstration.worker import work; work(sys.argv[1])"
_TRAINED = re.compile(r"Epoch\(train\)\s+\[(\d+)\]\[\s*(\d+)/(\d+)\].* eta: (\S+).*? loss: (\S+)")
_VALIDATED = re.compile(r"Epoch\((?:val|test)\).*?((?:coco/bbox_mAP_50|mIoU): \S+)")


def _progress(line: str) -> str | None:
    """What to show of a line that a worker printed."""
    if line.startswith(STEP):
        return f"$ {line.removeprefix(STEP)}"
    if match := _TRAINED.search(line):
        epoch, iteration, iterations, left, loss = match.groups()
        return f"epoch {epoch}, {iteration:>3}/{iterations}  loss {float(loss):.3f}  {left} to go"
    if match := _VALIDATED.search(line):
        return f"held out: {match[1]}"
    return None


def run_tasks(
    out: Path, data: digits.Digits, images: list[Path], quick: bool, seed: int, threads: int, overwrite: bool
) -> dict[str, dict[str, Any]]:
    """Run `work` for all tasks at once, show their progress, and return their reports by name."""
    env = {**worker_environment(threads), "PYTHONUNBUFFERED": "1"}
    running: dict[str, tuple[subprocess.Popen[str], threading.Thread]] = {}
    try:
        for index, task in enumerate(TASKS):
            folder = out / task.name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "report.json").unlink(missing_ok=True)
            settings = {
                "task": index,
                "out": str(folder),
                "data_root": f"{out / 'data'}/",
                "images": [str(path) for path in images],
                "quick": quick,
                "seed": seed,
                "overwrite": overwrite,
            }
            process = subprocess.Popen(
                [sys.executable, "-c", _WORKER, json.dumps(settings)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=env,
            )
            reader = threading.Thread(target=_follow, args=(task, process, folder / "log.txt"))
            reader.start()
            running[task.name] = (process, reader)
        waiting = dict(running)
        while waiting:
            time.sleep(0.2)
            for name, (process, reader) in list(waiting.items()):
                if process.poll() is None:
                    continue
                reader.join()
                if process.returncode != 0:
                    log = out / name / "log.txt"
                    raise UserError(f"the {name} failed: {last_line(log)}; its whole output is in {log}")
                del waiting[name]
    finally:
        for process, reader in running.values():
            process.kill()
            reader.join()
    return {task.name: json.loads((out / task.name / "report.json").read_text()) for task in TASKS}


def _follow(task: Task, process: subprocess.Popen[str], log: Path) -> None:
    def lines() -> Iterator[str]:
        for line in process.stdout or ():
            yield line
            if shown := _progress(line.rstrip()):
                print(f"{task.name:<9}  {shown}", flush=True)

    with suppress(OSError), log.open("w", encoding="utf-8") as file:
        for line in lines():
            file.write(line)
            file.flush()
    # Where the disk is full: a worker waits for ever for one who does not read.
    for _ in lines():
        pass
