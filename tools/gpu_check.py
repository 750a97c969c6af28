"""Check, time and tune the kernels on this machine's GPU, in minutes, with PyTorch, Triton and timm alone."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .common.errors import UserError

if TYPE_CHECKING:
    from .measuring.gpu.context import Context

EPILOG = """\
examples:
  attnzoo gpu                                   everything, in five and a half minutes, into work_dirs/gpu
  attnzoo gpu --out h100 --phases card errors timing --deadline 600
  attnzoo gpu --dry-run                         a walk through all phases without a GPU

`make gpu` runs it from a checkout, with nothing of attnzoo's installed.

what is done:
  The phases run one after the other, each in a process of its own with a limit of time: one that dies or takes too
  long is told, and the next one starts. Correctness comes before time: the kernels' own tests, where this is a
  checkout, then errors of result and gradients against float64.
  Times are medians, by replays of CUDA graphs, in which the CPU has no part, and by plain calls, as users make them, on
  tensors in rotation. Beside Triton stand PyTorch as it would run else, scaled_dot_product_attention with a mask,
  FlexAttention, cuDNN, torch.compile of the definition, mmcv's own CUDA source, which is compiled here, and deformops
  and NATTEN where they are installed.

what is written to --out:
  results.jsonl    every result, a line each, at once
  table.txt        the summary, which is printed last
  measured.json    by which backend "auto" chooses: the package's own kernels/measured.json with the records of this
                   card, whose place it takes
  log.txt          what the phases printed
"""

# Phases are forked from a process that never touches CUDA, with all that they import at hand.
_fork = multiprocessing.get_context("fork")
# Seconds for which the phases' shares below are meant.
_WHOLE = 450


@dataclass(frozen=True)
class Phase:
    """A part of the run.

    Attributes:
        name: in results.
        seconds: its share of the whole.
        run: the function "module:name" of `measuring.gpu`.
        background: whether it starts at once and runs beside the others, until something is timed.
    """

    name: str
    seconds: float
    run: str
    background: bool = False


PHASES = (
    Phase("mmcv", 150, "times:compile_mmcv", background=True),
    Phase("inductor", 150, "times:compile_by_inductor", background=True),
    Phase("card", 10, "checks:card"),
    Phase("compile", 15, "times:compile_kernels"),
    Phase("tests", 85, "checks:run_tests"),
    Phase("errors", 40, "checks:errors"),
    Phase("timing", 170, "times:timing"),
    Phase("sweep", 80, "sweep:sweep"),
    Phase("counters", 30, "counters:counters"),
    Phase("steps", 20, "steps:steps"),
)
_FIRST_TIMED = "timing"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "--out", type=Path, default=Path("work_dirs/gpu"), metavar="DIR", help="a new folder (work_dirs/gpu)"
    )
    parser.add_argument("--deadline", type=float, default=330, metavar="S", help="seconds for all phases (330)")
    names = [phase.name for phase in PHASES]
    parser.add_argument("--phases", nargs="+", choices=names, metavar="NAME", help=f"some of {', '.join(names)} (all)")
    parser.add_argument("--mmcv", type=Path, metavar="DIR", help="mmcv's ops/csrc (that of an installed mmcv)")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU: Triton's interpreter, small sizes")


def run(args: argparse.Namespace) -> int:
    """Run the phases.

    Returns:
        0, or 1 where a test of the kernels failed or one of their results could not be had. A result that is less exact
        than PyTorch's is told; "auto" leaves such a kernel alone.

    Raises:
        UserError: for a folder that holds files, and without a GPU or Triton.
    """
    if args.out.exists() and not (args.out.is_dir() and not any(args.out.iterdir())):
        raise UserError(f"--out {args.out} holds files: name a new folder")
    if not args.deadline > 0:
        raise UserError(f"--deadline must be above 0, got {args.deadline:g}")
    if importlib.util.find_spec("triton") is None:
        raise UserError("there is no Triton to check: pip install triton")
    if args.dry_run and "TRITON_INTERPRET" not in os.environ:
        # Triton reads it as it is imported, which has happened.
        words = [sys.executable, "-m", __package__.partition(".")[0], *sys.argv[1:]]
        os.execve(sys.executable, words, {**os.environ, "TRITON_INTERPRET": "1"})
    if not args.dry_run and not _has_gpu():
        raise UserError("this machine has no GPU that PyTorch can use; --dry-run walks through the phases without one")
    args.out.mkdir(parents=True, exist_ok=True)
    args.out = args.out.resolve()
    with tempfile.TemporaryDirectory(prefix="attnzoo-gpu-") as build:
        return _run(args, Path(build))


def _has_gpu() -> bool:
    """Asked in another process: none that is forked later can use CUDA if this one has asked for it."""
    process = _fork.Process(target=_exit_without_gpu)
    process.start()
    process.join()
    return process.exitcode == 0


def _exit_without_gpu() -> None:
    import torch

    sys.exit(not torch.cuda.is_available())


def _run(args: argparse.Namespace, build: Path) -> int:
    from .measuring import mmcv_operator

    # Before the phases fork, which find their functions in these modules.
    from .measuring.gpu import checks, counters, report, steps, sweep, times  # noqa: F401
    from .measuring.gpu.context import Context
    from .measuring.gpu.results import Results

    results = Results(args.out)
    begin = time.monotonic()
    chosen = [phase for phase in PHASES if not args.phases or phase.name in args.phases]
    # A share of those that run one after the other.
    scale = args.deadline / sum(phase.seconds for phase in PHASES if not phase.background)
    tests = Path(__file__).resolve().parents[1] / "tests" / "kernels"
    folders = (tests if tests.is_dir() else None, args.mmcv or mmcv_operator.installed_source(), build)

    def start(phase: Phase) -> tuple[Phase, multiprocessing.process.BaseProcess, float]:
        end = time.monotonic() + phase.seconds * scale
        context = Context(results, end, args.dry_run, *folders)
        function = getattr(
            sys.modules[f"{__package__}.measuring.gpu.{phase.run.split(':')[0]}"], phase.run.split(":")[1]
        )
        process = _fork.Process(target=_child, args=(phase, function, context))
        process.start()
        return phase, process, end

    def finish(started: tuple[Phase, multiprocessing.process.BaseProcess, float]) -> None:
        phase, process, end = started
        # They end by themselves; the rest is for those that cannot.
        process.join(max(end - time.monotonic(), 0) + 2)
        late = process.is_alive()
        _kill(process)
        seconds, failed = round(time.monotonic() - begin, 1), {}
        if late or process.exitcode:
            failed["failed"] = "out of time" if late else f"ended with {process.exitcode}: see log.txt"
        results.add("phase", phase=phase.name, seconds=seconds, **failed)
        print(": ".join([f"{seconds:6.1f} s  {phase.name}", *failed.values()]), flush=True)

    beside = [start(phase) for phase in chosen if phase.background]
    for phase in chosen:
        if phase.background:
            continue
        if phase.name == _FIRST_TIMED:
            while beside:
                finish(beside.pop())
        finish(start(phase))
    while beside:
        finish(beside.pop())
    table = report.summary(results)
    (args.out / "table.txt").write_text(table + "\n", encoding="utf-8")
    written = report.write_measured(results, args.out / "measured.json")
    print(f"\n{table}\n\n{args.out}: {', '.join(['results.jsonl', 'table.txt', *([written.name] if written else [])])}")
    return int(any(row.get("failed") for kind in ("tests", "error") for row in results.read(kind)))


def _child(phase: Phase, function: Callable[[Context], None], context: Context) -> None:
    """A phase in its own group of processes, what it prints in a file."""
    os.setsid()
    # What one phase compiles serves the later ones.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(context.build / "inductor")
    log = os.open(context.results.folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    sys.stdout = sys.stderr = os.fdopen(log, "w", buffering=1)
    print(f"--- {phase.name}")
    try:
        function(context)
    except BaseException as error:
        traceback.print_exc()
        context.results.failed("phase", error, phase=phase.name)
        os._exit(1)


def _kill(process: multiprocessing.process.BaseProcess) -> None:
    """A phase and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
    process.join()
