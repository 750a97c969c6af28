"""The phases that time operators: what is compiled beforehand, then forward and backward of every form."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch

from .. import mmcv_operator
from . import clock
from .checks import processes
from .context import Context
from .subjects import MAIN, OWN, Subject, rounds, small

PASSES = ("forward", "backward")
COMPILED = ("compiled definition", "flex")
# Sets of tensors in rotation: a GPU's cache holds the maps of one.
_SETS = 3


def compile_kernels(context: Context) -> None:
    """Runs Triton's form of every subject once, many at a time: later phases find the kernels in Triton's cache."""
    wanted = dict.fromkeys(rounds(context.dry))
    each(context, "compile", _run_once, [(subject, dtype, "triton") for subject, dtype in wanted])


def compile_by_inductor(context: Context) -> None:
    """`torch.compile` of definitions and FlexAttention, in the background: its cache serves the timing."""
    subjects = small()[:1] if context.dry else [subject for subject in MAIN if subject.inductor]
    dtype = "float32" if context.dry else "bfloat16"
    names = COMPILED[:1] if context.dry else COMPILED
    each(context, "inductor", _run_once, [(subject, dtype, name) for subject in subjects for name in names])


def compile_mmcv(context: Context) -> None:
    """The CUDA source of mmcv, in the background."""
    missing = "a dry run" if context.dry else None
    if context.mmcv is None:
        missing = "mmcv's ops/csrc is not there: --mmcv names its folder"
    elif shutil.which("nvcc") is None:
        missing = "nvcc is not on the PATH"
    if context.mmcv is None or missing:
        context.results.add("mmcv", skipped=missing)
        return
    context.results.add("mmcv", compiled=str(mmcv_operator.compile_source(context.mmcv, context.build / "mmcv")))


def each(context: Context, kind: str, function: Any, work: list[tuple[Any, ...]]) -> None:
    """Calls a function for each piece of work, in several processes; tells what failed, and how many there were."""
    failed = 0
    # Forked before CUDA is touched: they have all libraries at hand.
    with ProcessPoolExecutor(processes(context.dry), mp_context=get_context("fork")) as pool:
        waiting = {pool.submit(partial(function, *piece, context.dry)): piece for piece in work}
        try:
            for done in as_completed(waiting, timeout=max(context.left, 1)):
                subject, *rest = waiting[done]
                try:
                    done.result()
                except Exception as error:
                    failed += 1
                    context.results.failed(kind, error, subject=subject.title, what=" ".join(map(str, rest)))
        except TimeoutError:
            context.results.add(kind, unfinished=sum(not future.done() for future in waiting))
            # Of what still runs nobody waits for the end.
            for process in list(pool._processes.values()):
                process.kill()
    context.results.add(kind, runs=len(work), failures=failed)


def _run_once(subject: Subject, dtype: str, name: str, dry: bool) -> None:
    device = "cpu" if dry else "cuda"
    case = subject.case(compiler(dry))
    tensors = case.tensors(getattr(torch, dtype), device)
    form = case.form(name, tensors)
    for kind in PASSES:
        one_pass(form, tensors, None, kind)()
    if not dry:
        torch.cuda.synchronize()


def compiler(dry: bool) -> Any:
    """`torch.compile` for one size."""
    # What the interpreter runs, a C compiler need not.
    return partial(torch.compile, backend="eager") if dry else torch.compile


def one_pass(form: Any, tensors: list[torch.Tensor], grad: torch.Tensor | None, kind: str) -> clock.Call:
    """A call of the form without gradients, or with those of all tensors.

    Args:
        form: called with the tensors.
        tensors: that learn.
        grad: of the result; drawn where it is None.
        kind: of `PASSES`.
    """

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return form(*tensors)

    def backward() -> tuple[torch.Tensor, ...]:
        out = form(*tensors)
        return torch.autograd.grad(out, tensors, torch.randn_like(out) if grad is None else grad, allow_unused=True)

    return forward if kind == "forward" else backward


def timing(context: Context) -> None:
    """Of every subject and dtype, form by form; after the main ones those that Inductor compiled, then the rest."""
    with _without_tf32():
        built = context.build / "mmcv" / "mmcv_deformable_attention.so"
        if built.exists():
            os.environ[mmcv_operator.COMPILED] = str(built)
        todo = [(subject, dtype, subject.forms) for subject, dtype in rounds(context.dry)]
        main = len(todo) if context.dry else 2 * len(MAIN) + 1
        inductor = [
            (subject, "float32" if context.dry else "bfloat16", COMPILED[: 1 if context.dry else 2])
            for subject in (small()[:1] if context.dry else MAIN)
            if subject.inductor or context.dry
        ]
        for subject, dtype, names in [*todo[:main], *inductor, *todo[main:]]:
            if context.left < 3:
                context.results.add("time", unfinished=subject.title)
                break
            _time_subject(context, subject, dtype, names)


def _time_subject(context: Context, subject: Subject, dtype: str, names: Iterable[str]) -> None:
    case = subject.case(compiler(context.dry))
    kind = getattr(torch, dtype)
    fields = {"operator": case.operator, "setting": case.setting, "image": case.image, "batch": subject.batch}
    fields |= {"dtype": dtype, "operations": case.operations}
    sets = [case.tensors(kind, context.device, seed) for seed in range(1 if context.dry else _SETS)]
    forward, backward = case.work(kind)
    least = {"forward": forward.bytes, "backward": (forward + backward).bytes}
    flops = {"forward": forward.flops, "backward": (forward + backward).flops}
    expected: torch.Tensor | None = None
    for name in names:
        if name not in case.forms and name not in case.prepared:
            continue
        try:
            forms = [case.form(name, tensors) for tensors in sets]
            with torch.no_grad():
                out = forms[0](*sets[0])
            difference = None if expected is None else _difference(out, expected)
            if name == OWN[-1]:
                expected = out
            grads = [torch.randn_like(out) for _ in sets]
            for passed in PASSES:
                calls = [one_pass(*given, passed) for given in zip(forms, sets, grads, strict=True)]
                took = _time(calls, context)
                context.results.add(
                    "time", **fields, **{"pass": passed}, form=name, difference=difference, **took,
                    least_bytes=least[passed], least_flops=flops[passed],
                )  # fmt: skip
        except Exception as error:
            context.results.failed("time", error, **fields, form=name)
        if not context.dry:
            torch.cuda.empty_cache()


def _difference(got: torch.Tensor, want: torch.Tensor) -> float:
    """Root mean square, relative, from PyTorch's result: of a competitor that computes something else it is large."""
    want = want.float()
    return ((got.float() - want).square().mean().sqrt() / want.square().mean().sqrt().clamp(min=1e-20)).item()


def _time(calls: list[clock.Call], context: Context) -> dict[str, Any]:
    if context.dry:
        return {"plain_ms": clock.median(calls, context.device, samples=1)}
    for call in calls:
        call()
    took: dict[str, Any] = {"plain_ms": clock.median(calls, context.device)}
    took["peak_bytes"] = clock.peak_bytes(calls[0])
    try:
        took["graph_ms"] = clock.median(clock.graph(calls), context.device)
    except RuntimeError as error:
        # What waits for the GPU in its midst cannot be captured.
        took["graph_failed"] = str(error)[:200]
        torch.cuda.synchronize()
    return took


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    """Float32 as such for all: cuDNN rounds it to TF32 unless it is told not to."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
