"""Measure models and operators: time and peak memory, in one run in which all take turns."""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import importlib.util
import multiprocessing
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from .common.errors import UserError
from .common.files import atomic_path, write_json
from .common.machine import cpu_name
from .common.messages import one_line
from .common.models import FREE_SIZE, check_model
from .common.outputs import check_outputs
from .common.progress import bar
from .data.images import MAX_SIDE
from .list_models import families

if TYPE_CHECKING:
    import torch

EPILOG = """\
examples:
  attnzoo bench models                                 a model of each family, at 224 and 512 pixels
  attnzoo bench models van_b2 convnext_tiny --backward --repeat 20 --json bench.json
  attnzoo bench models biformer_small --features --sizes 224 384 512 768 1024 --plot growth.png
  attnzoo bench kernels                                the operators, with every backend that this machine has
  attnzoo bench kernels --static                       registers and spills of the kernels, no GPU needed

`attnzoo bench models --help` and `attnzoo bench kernels --help` tell what is measured, and how.
"""

MODELS_EPILOG = """\
what is measured:
  forward    inference mode, the model in evaluation mode
  backward   with --backward: a training step without optimizer, the model in training mode: forward, mean square of
             the outputs, gradients of all parameters
  time       median and quartiles over --repeat rounds; in a round every model has its turn, so that a drift of the
             machine hits all alike; a first round is not counted
  memory     the most that the pass takes beyond model and image: growth of the resident set in a process of its own,
             or what CUDA's allocator counts
  growth     the exponent e of time ~ pixels ** e, from the smallest size to the largest: 1 is linear

Models of image restoration, whose maps keep the stride 1, are measured at the size of their default configuration.
On a busy machine use --threads 1 --cpu-time: threads that wait for each other, and other programs, are not counted.
"""

NEIGHBOURS = ("pvt_v2_b2", "swin_tiny_patch4_window7_224", "convnext_tiny")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    subjects = parser.add_subparsers(dest="subject", required=True, metavar="SUBJECT")
    models = subjects.add_parser(
        "models",
        help="models, forward and backward",
        description="Measure models in one interleaved run.",
        epilog=MODELS_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    models.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"models of the zoo or of timm (of each family the one nearest to swin_tiny in size, "
        f"and {', '.join(NEIGHBOURS)})",
    )
    models.add_argument(
        "--sizes", nargs="+", type=side, default=[224, 512], metavar="PX", help="sides of square images (224 512)"
    )
    models.add_argument("--batch", type=natural, default=1, metavar="N", help="images at a time (1)")
    models.add_argument("--threads", type=natural, default=1, metavar="N", help="of the CPU (1)")
    models.add_argument("--repeat", type=natural, default=10, metavar="N", help="rounds that count (10)")
    models.add_argument("--backward", action="store_true", help="forward and backward too")
    models.add_argument("--features", action="store_true", help="feature maps (features_only=True), no classifier")
    models.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, … (cpu)")
    models.add_argument("--cpu-time", action="store_true", help="count processor time instead of the clock's")
    models.add_argument("--json", type=Path, metavar="FILE", help="write every figure, with versions and hardware")
    models.add_argument("--plot", type=Path, metavar="FILE", help="draw time over pixels, both logarithmic: .png, .svg")
    models.add_argument("--overwrite", action="store_true", help="replace the files of --json and --plot")
    from .measuring import kernels as bench_kernels

    kernels = subjects.add_parser(
        "kernels",
        help="operators: Triton's kernels and their competitors",
        description=bench_kernels.__doc__,
        epilog=bench_kernels.EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    bench_kernels.add_arguments(kernels)


def natural(text: str) -> int:
    """The whole number above 0 that an argument is."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def side(text: str) -> int:
    """The side of an image that an argument is."""
    if (size := natural(text)) > MAX_SIDE:
        raise argparse.ArgumentTypeError(f"{text} is more than {MAX_SIDE} pixels a side")
    return size


def default_models() -> list[str]:
    """Of each family of the zoo the model nearest in size to Swin-T, and its neighbours in timm."""
    goal = _parameters(NEIGHBOURS[1])
    chosen = [min(names, key=lambda name: abs(_parameters(name) - goal)) for names in families().values()]
    return [*chosen, *NEIGHBOURS]


def _parameters(name: str) -> int:
    import timm

    return sum(p.numel() for p in timm.create_model(name, device="meta").parameters())


def build(name: str, features: bool, device: str = "cpu") -> Any:
    """A model that takes any image size, as far as it can.

    Raises:
        UserError: if it cannot be made with `features_only`.
    """
    import timm
    import torch

    torch.manual_seed(0)
    for free in FREE_SIZE:
        try:
            return timm.create_model(name, features_only=features, **free).to(device)
        except TypeError:
            if not free:
                raise
        except (RuntimeError, AttributeError) as error:
            raise UserError(f"{name} gives no feature maps: {one_line(error)}") from error
    raise AssertionError("unreachable: the last attempt returns or raises")


def sizes_of(model: Any, cfg: dict[str, Any], sizes: list[int]) -> list[int]:
    """`sizes`, or for a model that keeps the stride 1 that of its default configuration."""
    info = getattr(model, "feature_info", None)
    strides = [stage["reduction"] for stage in (info if isinstance(info, list) else info or [])]
    return [cfg["input_size"][-1]] if strides and max(strides) == 1 else sizes


def run_once(model: Any, image: torch.Tensor, backward: bool) -> None:
    """One pass: forward in inference mode, or forward and backward."""
    import torch

    if not backward:
        with torch.inference_mode():
            model(image)
        return
    outputs = model(image)
    outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    model.zero_grad(set_to_none=True)


def stopwatch(device: str, cpu_time: bool) -> Callable[[Callable[[], None]], float]:
    """A function that gives the milliseconds that its argument takes."""
    import torch

    clock = time.process_time if cpu_time else time.perf_counter

    def host(call: Callable[[], None]) -> float:
        start = clock()
        call()
        return 1e3 * (clock() - start)

    def cuda(call: Callable[[], None]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize(device)
        return begin.elapsed_time(end)

    return cuda if device.startswith("cuda") else host


def peak_memory(name: str, features: bool, batch: int, size: int, backward: bool, threads: int, device: str) -> float:
    """Bytes that a pass takes at its peak beyond model and image; on the CPU in a process of its own only."""
    import torch

    torch.set_num_threads(threads)
    model = build(name, features, device).train(backward)
    image = torch.randn(batch, 3, size, size, device=device)
    if device.startswith("cuda"):
        run_once(model, image, backward)
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run_once(model, image, backward)
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # Libraries make themselves at home at their first call; that is not the model's.
    run_once(torch.nn.Conv2d(3, 8, 3), torch.randn(1, 3, 8, 8), True)
    gc.collect()
    before = resident("VmRSS")
    run_once(model, image, backward)
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """Bytes of the resident set: now (VmRSS, which also resets the peak) or at its peak (VmHWM)."""
    status = Path("/proc/self/status")
    if not status.exists():
        import resource

        # The peak since the process began: what a model took while it was made is then part of it.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if field == "VmRSS":
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in status.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def fresh_processes() -> ProcessPoolExecutor:
    """Runs each call in a new process, forked from one that has the libraries loaded already."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["torch", "timm", __name__.rpartition(".tools.")[0]])
    return ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1)


def multiply_adds(name: str, features: bool, height: int, width: int) -> int:
    """Of a forward pass over one image, counted without computing it.

    Args:
        name: of a timm model.
        features: count the backbone without its classifier.
        height: of the image, in pixels.
        width: of the image, in pixels.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = build(name, features, "meta").eval()
        image = torch.empty(1, 3, height, width)
    with FlopCounterMode(display=False) as flops, torch.inference_mode():
        model(image)
    return flops.get_total_flops() // 2


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each model and size: its counts, and time and peak memory of each kind of pass.

    Raises:
        UserError: for a model that does not exist or does not take a size.
    """
    import timm
    import torch

    torch.set_num_threads(args.threads)
    kinds = ["forward", "backward"] if args.backward else ["forward"]
    rows: list[dict[str, Any]] = []
    passes: list[tuple[dict[str, Any], Any, torch.Tensor]] = []
    for name in bar(args.names or default_models(), title="build", leave=False):
        check_model(name)
        model = build(name, args.features, args.device)
        known = timm.models.get_pretrained_cfg(name)
        for size in sizes_of(model, known.to_dict() if known else {}, args.sizes):
            row: dict[str, Any] = {
                "model": name,
                "size": size,
                "parameters": sum(p.numel() for p in model.parameters()),
                "multiply_adds": multiply_adds(name, args.features, size, size),
                **{kind: {"milliseconds": []} for kind in kinds},
            }
            rows.append(row)
            passes.append((row, model, torch.randn(args.batch, 3, size, size, device=args.device)))
    watch = stopwatch(args.device, args.cpu_time)
    with bar(total=(args.repeat + 1) * len(passes) * len(kinds), title="time", leave=False) as progress:
        for turn in range(args.repeat + 1):
            for kind in kinds:
                for row, model, image in passes:
                    model.train(kind == "backward")
                    try:
                        taken = watch(lambda: run_once(model, image, kind == "backward"))  # noqa: B023
                    except (RuntimeError, ValueError, AssertionError) as error:
                        raise UserError(f"{row['model']} fails at {row['size']} pixels: {one_line(error)}") from error
                    if turn > 0:
                        row[kind]["milliseconds"].append(taken)
                    progress.update()
    passes.clear()
    for row in rows:
        for kind in kinds:
            row[kind] |= spread(row[kind]["milliseconds"])
    _measure_memory(rows, kinds, args)
    return rows


def _measure_memory(rows: list[dict[str, Any]], kinds: list[str], args: argparse.Namespace) -> None:
    with fresh_processes() as processes, bar(total=len(rows) * len(kinds), title="memory", leave=False) as progress:
        for row in rows:
            for kind in kinds:
                call = (row["model"], args.features, args.batch, row["size"], kind == "backward", args.threads)
                try:
                    peak = processes.submit(peak_memory, *call, args.device).result()
                except BrokenProcessPool as error:
                    raise UserError(f"{row['model']} ran out of memory at {row['size']} pixels") from error
                row[kind]["peak_bytes"] = peak
                progress.update()


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    if len(values) == 1:
        return dict.fromkeys(("q1", "median", "q3"), values[0])
    return dict(zip(("q1", "median", "q3"), statistics.quantiles(values, n=4, method="inclusive"), strict=True))


def growth(rows: list[dict[str, Any]], kind: str) -> dict[str, float]:
    """By model the exponent of time over pixels, between the smallest size and the largest."""
    from math import log

    exponents = {}
    for name in dict.fromkeys(row["model"] for row in rows):
        own = sorted((row for row in rows if row["model"] == name), key=lambda row: row["size"])
        if own[0]["size"] < own[-1]["size"]:
            slower = own[-1][kind]["median"] / own[0][kind]["median"]
            exponents[name] = log(slower) / (2 * log(own[-1]["size"] / own[0]["size"]))
    return exponents


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    kinds = [kind for kind in ("forward", "backward") if kind in rows[0]]
    titles = {"forward": "forward", "backward": "forward + backward"}
    heads = ["model", "pixels", "parameters (M)", "multiply-adds (G)"]
    for kind in kinds:
        heads += [f"{titles[kind]} (ms)", "quartiles", "peak (MB)"]
    lines = []
    for row in rows:
        cells = [row["model"], f"{row['size']}²", f"{row['parameters'] / 1e6:.1f}", f"{row['multiply_adds'] / 1e9:.2f}"]
        for kind in kinds:
            took = row[kind]
            cells += [f"{took['median']:.1f}", f"{took['q1']:.1f}-{took['q3']:.1f}", f"{took['peak_bytes'] / 1e6:.0f}"]
        lines.append(cells)
    out = [markdown(heads, lines, left=1)]
    for kind in kinds:
        exponents = growth(rows, kind)
        if exponents:
            each = ", ".join(f"{name} {exponent:.2f}" for name, exponent in exponents.items())
            out += ["", f"growth of {titles[kind]}, time ~ pixels ** e: {each}"]
    return "\n".join(out)


def markdown(heads: list[str], rows: list[list[str]], left: int) -> str:
    """A table whose first `left` columns are flush left, the others right."""
    lines = [heads, ["---"] * left + ["---:"] * (len(heads) - left), *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def conditions(args: argparse.Namespace) -> dict[str, Any]:
    """What a reader needs to repeat the run."""
    import torch

    command = ["attnzoo", *sys.argv[1:]] if Path(sys.argv[0]).stem in ("attnzoo", "__main__") else ["attnzoo", "bench"]
    return {
        "command": shlex.join(command),
        "device": torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else cpu_name(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "versions": {
            "attnzoo": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("torch", "timm")},
        },
        "clock": "CUDA events" if args.device.startswith("cuda") else "processor" if args.cpu_time else "wall",
        "threads": args.threads,
        "batch": args.batch,
        "repeat": args.repeat,
        "features": args.features,
        "dtype": "float32",
    }


def plot(rows: list[dict[str, Any]], path: Path, features: bool) -> None:
    """Draw time over pixels, both logarithmic, one panel for each kind of pass."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, ScalarFormatter

    kinds = [kind for kind in ("forward", "backward") if kind in rows[0]]
    figure = Figure(figsize=(7 * len(kinds), 5.5), layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        for name in dict.fromkeys(row["model"] for row in rows):
            own = sorted((row for row in rows if row["model"] == name), key=lambda row: row["size"])
            times = [row[kind]["median"] for row in own]
            below, above = ([abs(row[kind][q] - row[kind]["median"]) for row in own] for q in ("q1", "q3"))
            axes.errorbar([row["size"] ** 2 for row in own], times, (below, above), marker="o", label=name)
        sides = sorted({row["size"] for row in rows})
        fastest = min(row[kind]["median"] / row["size"] ** 2 for row in rows) / 1.5
        axes.plot(
            [side**2 for side in sides], [fastest * side**2 for side in sides], "k--", linewidth=1, label="linear"
        )
        axes.set(xscale="log", yscale="log", xlabel="image", ylabel="milliseconds")
        axes.set_xticks([side**2 for side in sides], [f"{side}²" for side in sides])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_title(f"{'forward' if kind == 'forward' else 'forward + backward'}{', features' if features else ''}")
        axes.grid(which="both", alpha=0.3)
        axes.legend(fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _check(args: argparse.Namespace) -> None:
    """Raise for what cannot be had, before anything is measured."""
    import torch

    check_outputs(filter(None, (args.json, args.plot)), overwrite=args.overwrite)
    try:
        device = torch.device(args.device)
    except RuntimeError as error:
        raise UserError(f"--device {args.device!r}: {one_line(error)}") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device must be cpu or cuda, got {args.device!r}")
    if device.type == "cuda" and not (device.index or 0) < torch.cuda.device_count():
        raise UserError(f"--device {args.device!r}: this machine has {torch.cuda.device_count()} CUDA devices")
    if args.plot and args.plot.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--plot must end in .png, .svg or .pdf, got {str(args.plot)!r}")
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        raise UserError("--plot needs matplotlib: pip install 'attnzoo[mm]'")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.subject == "kernels":
        from .measuring import kernels as bench_kernels

        return bench_kernels.run(args)
    _check(args)
    rows = measure(args)
    about = conditions(args)
    print(table(rows))
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    print(
        f"\n{about['device']}, threads {args.threads}, batch {args.batch}, {about['clock']} time, float32, {versions}"
    )
    if args.json:
        print(write_json(args.json, {**about, "results": rows}))
    if args.plot:
        plot(rows, args.plot, args.features)
        print(args.plot)
    return 0
