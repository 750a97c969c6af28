"""Train a small detector and a small segmentor of the zoo from scratch, on real images, in minutes on two cores.

The images are scikit-learn's scans of handwritten digits, set into scikit-learn's photographs. A BiFormer learns to
find the ten digits, a VAN to separate digit from photograph; both are evaluated on scans and parts of the photographs
that training never saw, draw what they see, and are exported to ONNX and compared with ONNX Runtime.

The exit code is 0 if every goal was reached and 1 if one was missed. The checkpoint is that of the last epoch, not the
best on the held-out images, since these also give the score.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common.errors import UserError
from .common.files import LOCK, atomic_path, claim, locked, write_json
from .config.loading import load_config, require_mm
from .data import digits
from .measuring.machine import cpu_name
from .running.work_dir import new_folders, trainings

if TYPE_CHECKING:
    import numpy as np

EPILOG = """\
examples:
  attnzoo demo
  attnzoo demo --quick              every step on a handful of images, in about a minute; no goal can be reached
  attnzoo demo --data-only          only build the data set

writes into the folder of --out:
  data/             the data set, COCO's format
  detector/         logs, checkpoint, metrics, predictions, model.onnx
  segmentor/        the same
  detections.png    truth and prediction of held-out images
  segmentation.png
  results.json      the table of the end, with versions and hardware
"""

GOAL_SECONDS = 600.0
_PICTURES = 4
_SCALE = 3  # of the 160-pixel images in the sheets, so that labels can be read
_SCORE = 0.4
# What `--quick` replaces in both configs.
_QUICK = {"train_cfg.max_epochs": 1, "train_cfg.val_interval": 1, "default_hooks.logger.interval": 1}

_STEP = "demo step: "
_WORKER = "import sys; from attnzoo.tools.demo import work; work(sys.argv[1])"
_TRAINED = re.compile(r"Epoch\(train\)\s+\[(\d+)\]\[\s*(\d+)/(\d+)\].* eta: (\S+).*? loss: (\S+)")
_VALIDATED = re.compile(r"Epoch\((?:val|test)\).*?((?:coco/bbox_mAP_50|mIoU): \S+)")


@dataclass(frozen=True)
class Task:
    """One model of the demo.

    Attributes:
        name: Its folder, and its name in the progress.
        config: Short name of its config.
        metric: Key of the metric with the goal, as `attnzoo test` gives it.
        title: The metric's name in the table.
        unit: What the key's value is divided by to be in 0…1.
        goal: The least value that counts as reached.
        sheet: File of the picture.
    """

    name: str
    config: str
    metric: str
    title: str
    unit: float
    goal: float
    sheet: str


TASKS = (
    Task(
        "detector", "biformer/gfl_biformer_4e_digits", "coco/bbox_mAP_50", "box AP50, ten digits", 1.0, 0.80,
        "detections.png",
    ),
    Task(
        "segmentor", "van/semfpn_van_3e_digits", "mIoU", "mIoU, {photo, digit}", 100.0, 0.85,
        "segmentation.png",
    ),
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "--out", metavar="DIR", help="where all goes (work_dirs/demo, with --quick work_dirs/demo_quick)"
    )
    parser.add_argument("--quick", action="store_true", help="a few images and iterations, to see that every step runs")
    parser.add_argument("--data-only", action="store_true", help="build the data set and stop")
    parser.add_argument(
        "--overwrite", action="store_true", help="remove the models of an older demo, which is refused otherwise"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the data set and of training (0)")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.seed < 0:
        raise UserError(f"--seed must not be negative, got {args.seed}")
    out = Path(args.out or ("work_dirs/demo_quick" if args.quick else "work_dirs/demo"))
    if args.data_only:
        _check_libraries()
        with _claimed(out):
            print(_build_data(out, args.quick, args.seed).root)
        return 0
    results = demo(out, args.quick, args.seed, args.overwrite)
    return 0 if results["reached"] or args.quick else 1


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
    _check_libraries()
    with _claimed(out):
        for task in TASKS:
            folder = out / task.name
            older = [*trainings(folder), *(name for name in ("model.onnx",) if (folder / name).exists())]
            if older and not overwrite:
                raise UserError(f"{folder}: holds {older[0]}: --overwrite removes it, --out names another folder")
        return _demo(out, quick, seed, overwrite)


@contextmanager
def _claimed(out: Path) -> Iterator[None]:
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
    with _timed(seconds, "data"):
        data = _build_data(out, quick, seed)
    pictured = _pictured(out, data)
    reports = _run_tasks(out, data, [path for path, _ in pictured], quick, seed, threads, overwrite)
    with _timed(seconds, "pictures"):
        for task in TASKS:
            _draw_sheet(task, out, data, [number for _, number in pictured])
    for task in TASKS:
        seconds.update({f"{task.name}: {step}": value for step, value in reports[task.name]["seconds"].items()})
    seconds["all"] = time.perf_counter() - start

    results = _results(reports, seconds, quick, seed, cores, threads)
    write_json(out / "results.json", results)
    print("\n" + _table(results, out))
    return results


def _check_libraries() -> None:
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


def _build_data(out: Path, quick: bool, seed: int) -> digits.Digits:
    print("data set: scikit-learn's handwritten digits in scikit-learn's photographs", flush=True)
    counts = {"train_images": 24, "val_images": 8} if quick else {}
    return digits.build(out / "data", seed=seed, **counts)


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - start


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


def work(settings: str) -> None:
    """Do everything for one model, in a process of its own.

    Args:
        settings: As JSON: `task` (index in `TASKS`), `out`, `data_root`, `images`, `quick`, `seed` and
            `overwrite`.
    """
    given = json.loads(settings)
    task, out = TASKS[given["task"]], Path(given["out"])
    place = {"data_root": given["data_root"]}
    schedule = {"randomness.seed": given["seed"], **(_QUICK if given["quick"] else {})}

    from .export import export
    from .predict import predict
    from .test import evaluate
    from .train import last_checkpoint, train

    def begin(command: str, arguments: str, options: dict[str, Any]) -> Any:
        """Show the command that does the same, and give the config that it would have."""
        overrides = " ".join(f"{key}={value}" for key, value in options.items())
        print(f"{_STEP}attnzoo {command} {task.config} {arguments} --cfg-options {overrides}", flush=True)
        cfg = load_config(task.config, options)
        cfg.work_dir = str(out)
        return cfg

    seconds: dict[str, float] = {}
    images, replacing = given["images"], " --overwrite" if given["overwrite"] else ""
    with _timed(seconds, "train"):
        cfg = begin("train", f"--work-dir {out}{replacing}", {**place, **schedule})
        model = train(cfg, overwrite=given["overwrite"]).model
    checkpoint = str(last_checkpoint(out))
    with _timed(seconds, "test"):
        metrics = evaluate(begin("test", f"{checkpoint} --work-dir {out}", place), checkpoint)
    with _timed(seconds, "predict"):
        cfg = begin("predict", f"{checkpoint} {' '.join(images)} --out-dir {out / 'predictions'}", place)
        predict(cfg, checkpoint, images, out / "predictions", score=_SCORE)
    with _timed(seconds, "export"):
        cfg = begin("export", f"{checkpoint} --out {out / 'model.onnx'}{replacing} --image {images[0]}", place)
        exported = export(cfg, checkpoint, out / "model.onnx", image=images[0], overwrite=given["overwrite"])
    differences = [(name, value) for check in exported.checks for name, value in check.errors.items()]
    write_json(
        out / "report.json",
        {
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
        },
    )


def _progress(line: str) -> str | None:
    """What to show of a line that a worker printed."""
    if line.startswith(_STEP):
        return f"$ {line.removeprefix(_STEP)}"
    if match := _TRAINED.search(line):
        epoch, iteration, iterations, left, loss = match.groups()
        return f"epoch {epoch}, {iteration:>3}/{iterations}  loss {float(loss):.3f}  {left} to go"
    if match := _VALIDATED.search(line):
        return f"held out: {match[1]}"
    return None


def _run_tasks(
    out: Path, data: digits.Digits, images: list[Path], quick: bool, seed: int, threads: int, overwrite: bool
) -> dict[str, dict[str, Any]]:
    """Run `work` for all tasks at once, show their progress, and return their reports by name."""
    # Waiting threads must not spin: each process would take the other's core.
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
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
                    raise UserError(f"the {name} failed: {_last_line(log)}; its whole output is in {log}")
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


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"


def _draw_sheet(task: Task, out: Path, data: digits.Digits, image_ids: list[int]) -> None:
    """Write the picture of a task: held-out images side by side, the truth above, the prediction below."""
    from PIL import Image, ImageDraw, ImageFont

    coco = json.loads(data.annotations["val"].read_text())
    names = {image["id"]: image["file_name"] for image in coco["images"]}
    folder = out / task.name / "predictions"
    predicted = json.loads((folder / "predictions.json").read_text())["images"]
    rows: dict[str, list[np.ndarray]] = {"truth": [], "prediction": []}
    for number, entry in zip(image_ids, predicted, strict=True):
        image = Image.open(data.images["val"] / names[number])
        if task.name == "detector":
            truth = [
                {"box": [x, y, x + w, y + h], "label": annotation["category_id"] - 1}
                for annotation in coco["annotations"]
                if annotation["image_id"] == number
                for x, y, w, h in [annotation["bbox"]]
            ]
            rows["truth"].append(_with_boxes(image, truth))
            rows["prediction"].append(_with_boxes(image, entry["instances"]))
        else:
            rows["truth"].append(_with_map(image, data.seg_maps["val"] / names[number]))
            rows["prediction"].append(_with_map(image, folder / entry["map"]))

    gap, margin = 12, 36
    height, width = rows["truth"][0].shape[:2]
    sheet = Image.new("RGB", (gap + (width + gap) * len(image_ids), (margin + height) * len(rows) + gap), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=24)
    for row, (title, pictures) in enumerate(rows.items()):
        top = row * (margin + height)
        draw.text((gap, top + 4), title, font=font, fill="black")
        for column, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture), (gap + column * (width + gap), top + margin))
    with atomic_path(out / task.sheet) as temporary:
        sheet.save(temporary)


def _with_boxes(image: Any, instances: list[dict[str, Any]]) -> np.ndarray:
    """The image, enlarged, with boxes (`box`, `label`, and `score` where predicted) and the names of their classes."""
    import numpy as np
    from PIL import Image

    from .predicting.drawing import default_palette, draw_instances

    size = (image.width * _SCALE, image.height * _SCALE)
    scores = np.array([instance["score"] for instance in instances if "score" in instance])
    return draw_instances(
        np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC)),
        _SCALE * np.array([instance["box"] for instance in instances]).reshape(-1, 4),
        np.array([instance["label"] for instance in instances], int),
        digits.CLASSES,
        default_palette(len(digits.CLASSES)),
        scores if len(scores) == len(instances) else None,
    )


def _with_map(image: Any, map_path: Path) -> np.ndarray:
    """The image, enlarged, its photograph darkened and its digits yellow."""
    import numpy as np
    from PIL import Image

    size = (image.width * _SCALE, image.height * _SCALE)
    pixels = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
    digit = np.asarray(Image.open(map_path).resize(size, Image.Resampling.NEAREST)) == 1
    mixed = np.where(digit[..., None], 0.3 * pixels + 0.7 * np.array([255, 225, 25]), 0.45 * pixels)
    return mixed.round().astype(np.uint8)


def _results(
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


def _table(results: dict[str, Any], out: Path) -> str:
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
