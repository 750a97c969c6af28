"""Models, measured: their counts, and time and peak memory of a forward pass, and of a backward one, in one run."""

from __future__ import annotations

import argparse
import gc
from concurrent.futures.process import BrokenProcessPool
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...backbones.contract.facts import feature_levels
from ..common.errors import UserError
from ..common.files import atomic_path
from ..common.messages import one_line
from ..common.models import create_free
from ..common.progress import bar
from .memory import fresh_processes, resident
from .tables import markdown
from .timing import spread, stopwatch

if TYPE_CHECKING:
    import torch

NEIGHBOURS = ("pvt_v2_b2", "swin_tiny_patch4_window7_224", "convnext_tiny")


def default_models(families: dict[str, list[str]]) -> list[str]:
    """Of each family the model nearest in size to Swin-T, and its neighbours in timm."""
    goal = _parameters(NEIGHBOURS[1])
    chosen = [min(names, key=lambda name: abs(_parameters(name) - goal)) for names in families.values()]
    return [*chosen, *NEIGHBOURS]


def _parameters(name: str) -> int:
    import timm

    return sum(p.numel() for p in timm.create_model(name, device="meta").parameters())


def build(name: str, features: bool, device: str = "cpu") -> Any:
    """A model that takes any image size, as far as it can.

    Raises:
        UserError: if it cannot be made with `features_only`.
    """
    import torch

    torch.manual_seed(0)
    try:
        return create_free(name, features_only=features).to(device)
    except (RuntimeError, AttributeError) as error:
        raise UserError(f"{name} gives no feature maps: {one_line(error)}") from error


def sizes_of(model: Any, cfg: dict[str, Any], sizes: list[int]) -> list[int]:
    """`sizes`, or for a model that keeps the stride 1 that of its default configuration."""
    strides = [level["reduction"] for level in feature_levels(model)]
    return [cfg["input_size"][-1]] if strides and max(strides) == 1 else sizes


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


def measure(names: list[str], args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each model and size: its counts, and time and peak memory of each kind of pass.

    Args:
        names: of models of the zoo or of timm.
        args: of `attnzoo bench models`.

    Raises:
        UserError: for a model that does not take a size.
    """
    import timm
    import torch

    torch.set_num_threads(args.threads)
    kinds = ["forward", "backward"] if args.backward else ["forward"]
    rows: list[dict[str, Any]] = []
    passes: list[tuple[dict[str, Any], Any, torch.Tensor]] = []
    for name in bar(names, title="build", leave=False):
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


def growth(rows: list[dict[str, Any]], kind: str) -> dict[str, float]:
    """By model the exponent of time over pixels, between the smallest size and the largest."""
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
