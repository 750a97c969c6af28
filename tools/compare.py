"""Train the same small detector without and with each plug-in attention, several seeds each, and print the table.

The images are those of `attnzoo demo`. Every run starts from random weights, has one thread and the same schedule, and
is evaluated once, on the held-out images, after its last iteration. The modules stand bare, as in their papers, behind
the three stages that the detector reads. Runs that are finished are kept: called again, the command does the missing
ones.

So short a training of so small a detector says how the modules behave in it, not how they rank on COCO.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .common.errors import UserError
from .common.files import LOCK, claim, locked, read_json, remove_files, write_json
from .common.progress import bar
from .config.loading import add_config_options, find_config, load_config, nearest, parse_options, require_mm
from .data import digits
from .measuring.machine import cpu_name
from .running.work_dir import new_folders, run_files

EPILOG = """\
examples:
  attnzoo compare
  attnzoo compare --modules ela cbam triplet --seeds 0 1 2 3 4
  attnzoo compare --modules ela --seeds 0 --cfg-options train_cfg.max_epochs=4

writes into the folder of --out:
  data/                    the data set, as the demo's
  runs/MODULE/seed_N/      log and result.json of each run
  comparison.json          the table, every run, versions and hardware
"""

CONFIG = "attention/gfl_resnet_2e_digits"
METRIC = "coco/bbox_mAP_50"
NONE = "none"
STAGES = (2, 3, 4)

_WORKER = "import sys; from attnzoo.tools.compare import work; work(sys.argv[1])"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--out", metavar="DIR", default="work_dirs/compare", help="where all goes (work_dirs/compare)")
    parser.add_argument("--modules", nargs="+", metavar="NAME", help="the modules to compare (all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="of training (0 1 2)")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at once, one thread each (as many as cores)")
    parser.add_argument(
        "--overwrite", action="store_true", help="remove runs of other settings, which are refused otherwise"
    )
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    results = compare(
        args.out,
        args.modules,
        args.seeds,
        args.jobs or os.cpu_count() or 1,
        parse_options(args.cfg_options),
        args.overwrite,
    )
    print(table(results))
    return 0


def names() -> list[str]:
    """All modules, without the second name of one."""
    from ..backbones.modules import NAMES

    return [name for name in NAMES if name != "ela_base"]


def compare(
    out: str | os.PathLike[str],
    modules: list[str] | None = None,
    seeds: list[int] | None = None,
    jobs: int = 1,
    options: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train and evaluate what is not there yet, and sum all up.

    Args:
        out: Where all goes.
        modules: Names of `attnzoo.backbones.modules`; all if None. The detector without attention always runs.
        seeds: Of training; 0, 1 and 2 if None.
        jobs: Runs at once.
        options: Dotted keys and values that replace those of the config, for all runs alike.
        overwrite: Remove runs of other settings that are in the way.

    Returns:
        What is written to `comparison.json`.

    Raises:
        UserError: If an argument does not fit, a library is missing, a run fails, or something else than a comparison
            or a run of other settings is in `out`, or another one at work there.
    """
    out, chosen, seeds = Path(out), [NONE, *(modules or names())], seeds or [0, 1, 2]
    for name in chosen[1:]:
        if name not in names():
            raise UserError(f"--modules: no module {name!r}{nearest(name, names())}; known are {', '.join(names())}")
    if jobs < 1 or min(seeds) < 0 or len(set(seeds)) < len(seeds) or len(set(chosen)) < len(chosen):
        raise UserError("--jobs must be positive, --seeds not negative, and no module or seed given twice")
    require_mm()
    if find_spec("sklearn") is None:
        raise UserError("the comparison needs scikit-learn: pip install 'attnzoo[mm]'")
    load_config(CONFIG, options)
    with new_folders(out), locked(out / LOCK, str(out)):
        return _compare(out, chosen, seeds, jobs, options or {}, overwrite)


def _compare(
    out: Path, chosen: list[str], seeds: list[int], jobs: int, options: dict[str, Any], overwrite: bool
) -> dict[str, Any]:
    claim(out, "attnzoo compare")
    text = find_config(CONFIG).read_text(encoding="utf-8")
    # As JSON gives it back, so that it can be compared with what a run has noted.
    settings = json.loads(json.dumps({"config": text, "options": options, "stages": STAGES}))
    runs = [(name, seed, out / "runs" / name / f"seed_{seed}") for seed in seeds for name in chosen]
    for _, _, folder in runs:
        if (folder / "settings.json").exists() and not overwrite and not _has(folder, settings):
            raise UserError(
                f"{folder}: holds a run of other settings: --overwrite removes it, --out names another folder"
            )
    data = digits.build(out / "data")
    missing = [one for one in runs if not _is_finished(one[2], settings)]
    print(f"{len(runs)} runs, {len(runs) - len(missing)} of them finished before", flush=True)
    _run_all(missing, data.root, settings, jobs)
    results = _summary(chosen, seeds, {(name, seed): _read(folder) for name, seed, folder in runs}, settings)
    write_json(out / "comparison.json", results)
    return results


def work(given: str) -> None:
    """Train and evaluate one detector, in a process of its own.

    Args:
        given: As JSON: `module`, `seed`, `folder`, `data_root` and `options`.
    """
    import torch

    from .test import evaluate
    from .train import last_checkpoint, train

    task = json.loads(given)
    torch.set_num_threads(1)
    folder = Path(task["folder"])

    def config() -> Any:
        cfg = load_config(CONFIG, {"data_root": task["data_root"], "randomness.seed": task["seed"], **task["options"]})
        cfg.work_dir = str(folder)
        cfg.train_cfg.val_interval = cfg.train_cfg.max_epochs + 1
        cfg.default_hooks.checkpoint = dict(type="CheckpointHook", interval=1, max_keep_ckpts=1)
        if task["module"] != NONE:
            cfg.model.backbone.attention = dict(type=task["module"], stages=STAGES, identity=False)
        return cfg

    cfg = config()
    cfg.resume = True
    resumed = last_checkpoint(folder) is not None
    start = time.process_time()
    model: Any = train(cfg).model
    seconds = time.process_time() - start
    backbone = model.backbone
    attention = sum(p.numel() for name, p in backbone.model.named_parameters() if name in backbone.attention_keys)
    metrics = evaluate(config(), str(last_checkpoint(folder)))
    remove_files(folder, [path for path in run_files(folder) if path.suffix == ".pth"])
    result = {
        # mmdet's metric gives nothing at all where nothing at all was detected.
        "metric": metrics.get(METRIC, 0.0),
        "metrics": metrics,
        "parameters": sum(p.numel() for p in model.parameters()),
        "attention_parameters": attention,
        # Of a run that was interrupted only the rest is known.
        "cpu_seconds_of_training": None if resumed else seconds,
    }
    write_json(folder / "result.json", result)


def _read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def _is_finished(folder: Path, settings: dict[str, Any]) -> bool:
    return (folder / "result.json").is_file() and _has(folder, settings)


def _has(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether the run in this folder was begun with these settings."""
    return read_json(folder / "settings.json") == settings


def _run_all(runs: list[tuple[str, int, Path]], data_root: Path, settings: dict[str, Any], jobs: int) -> None:
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
    if not _has(folder, settings):
        if folder.is_dir() and any(folder.iterdir()) and not isinstance(read_json(folder / "settings.json"), dict):
            raise UserError(f"{folder}: holds something else than a run of this comparison: move it away")
        # Of other settings.
        remove_files(folder, [*run_files(folder), "settings.json", "result.json", "log.txt"])
        write_json(folder / "settings.json", settings)
    task = {"module": name, "seed": seed, "folder": str(folder), "data_root": f"{data_root}/"}
    given = json.dumps({**task, "options": settings["options"]})
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    log = folder / "log.txt"
    with log.open("w") as file:
        done = subprocess.run(
            [sys.executable, "-c", _WORKER, given], stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=env
        )
    if done.returncode != 0:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        last = lines[-1] if lines else "it printed nothing"
        raise UserError(f"{name}, seed {seed}, failed: {last}; its whole output is in {log}")
    return _read(folder)


def _summary(
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
