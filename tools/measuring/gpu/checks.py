"""The phases before anything is timed: the card, the kernels' tests, errors at real sizes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from ...common.machine import cpu_name
from ..conditions import versions
from . import clock
from .context import Context
from .subjects import OWN, Subject, rounds

# Images at a time in float64, of which the definition takes eight times the memory and more.
_BATCH = 2
# The definition of windows of 16 pixels with all heads' scores, and of the encoder, fill a GPU with one.
_SINGLE = ("HAT-S", "DINO", "DFA3D")


def card(context: Context) -> None:
    """Name, driver and versions, and what the card does at best: a copy, a product of matrices."""
    about: dict[str, Any] = {"versions": versions("torch", "triton", "timm", "numpy"), "cpu": cpu_name()}
    if context.dry:
        context.results.add("card", name="a CPU, in Triton's interpreter", capability=[0, 0], **about)
        return
    properties = torch.cuda.get_device_properties(0)
    about |= {
        "name": properties.name,
        "capability": [properties.major, properties.minor],
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    context.results.add("card", **about)
    copied, product = _copy(2**28), _product(8192)
    context.results.add("ceilings", copy_bytes_per_second=2**31 / copied * 1e3, bf16_flops=2 * 8192**3 / product * 1e3)


def _copy(count: int) -> float:
    """Milliseconds in which so many numbers of 4 bytes are read and written."""
    numbers = torch.randn(count, device="cuda")
    other = torch.empty_like(numbers)
    return clock.median([lambda: other.copy_(numbers)], "cuda")


def _product(side: int) -> float:
    """Milliseconds of the product of two square matrices in bfloat16."""
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return clock.median([lambda: a @ b], "cuda")


def _driver() -> str | None:
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, timeout=10).stdout.strip().splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def run_tests(context: Context) -> None:
    """The kernels' own tests, several processes at once; what fails is told and stops nothing."""
    if context.tests is None:
        context.results.add("tests", skipped="the tests are not there: run from a checkout")
        return
    report = context.results.folder / "tests.xml"
    files = sorted(context.tests.glob("test_*_triton.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    if context.dry:
        # One that is small, and whose kernels are.
        command += ["-k", "equal_in_every_run", str(context.tests / "test_large_kernel_attention_triton.py")]
    else:
        command += ["-n", "8", "--timeout=60", *map(str, files)]
    # pytest ends with what it has when it is interrupted.
    process = subprocess.Popen(command, cwd=context.tests.parents[1])
    try:
        process.wait(max(context.left - 5, 1))
    except subprocess.TimeoutExpired:
        process.send_signal(2)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
    context.results.add("tests", exit=process.returncode, **outcomes(report))


def outcomes(report: Path) -> dict[str, Any]:
    """Numbers of tests by outcome and the names of those that failed, of pytest's report; nothing without one."""
    if not report.exists():
        return {}
    suite = next(ElementTree.parse(report).iter("testsuite"))
    failed = {}
    for case in suite.iter("testcase"):
        for kind in ("failure", "error"):
            if (found := case.find(kind)) is not None:
                failed[f"{case.get('classname')}::{case.get('name')}"] = (found.get("message") or "")[:300]
    numbers = {name: int(suite.get(name, 0)) for name in ("tests", "skipped")}
    return {**numbers, "passed": numbers["tests"] - numbers["skipped"] - len(failed), "failed": failed}


def errors(context: Context) -> None:
    """Of Triton and of PyTorch, result and gradients, from float64, in poisoned memory; and whether two runs agree."""
    seen = set()
    for subject, dtype in rounds(context.dry):
        if context.left < 2:
            break
        key = (subject.setting, subject.image, dtype)
        if key in seen:
            continue
        seen.add(key)
        fields = {"operator": subject.operator, "setting": subject.setting, "image": subject.image, "dtype": dtype}
        try:
            context.results.add("error", **fields, **_errors(subject, dtype, context.device))
        except Exception as error:
            context.results.failed("error", error, **fields)
        if not context.dry:
            torch.cuda.empty_cache()


def _errors(subject: Subject, dtype: str, device: str) -> dict[str, Any]:
    batch = 1 if subject.setting.startswith(_SINGLE) else min(subject.batch, _BATCH)
    case = subject.case(batch=batch)
    tensors = case.tensors(getattr(torch, dtype), device)
    precise = [x.detach().double().requires_grad_() for x in tensors]
    found: dict[str, Any] = {"forms": {}}
    expected: list[torch.Tensor] = []
    for name in OWN:
        if not expected or case.exact is not None:
            want = case.should_be(name, tensors, precise)
            grad = torch.linspace(-3, 3, want.numel(), dtype=torch.float64, device=device).sin().view(want.shape)
            expected = [want.detach(), *torch.autograd.grad(want, precise, grad)]
            del want
        with poisoned():
            runs = [_outputs(case.forms[name], tensors, grad) for _ in range(2 if name == "triton" else 1)]
        by_name = dict(zip(("result", *case.shapes), map(_difference, runs[0], expected), strict=True))
        found["forms"][name] = {"forward": by_name["result"], "backward": max(by_name.values()), "by_name": by_name}
        if name == "triton":
            found["runs_alike"] = all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    return found


def _outputs(form: Any, tensors: list[torch.Tensor], grad: torch.Tensor) -> list[torch.Tensor]:
    out = form(*tensors)
    return [out.detach(), *torch.autograd.grad(out, tensors, grad.to(out.dtype))]


def _difference(got: torch.Tensor, want: torch.Tensor) -> float:
    """The largest, relative to the largest magnitude; infinite for what is no number."""
    error = (got.double() - want).abs().max() / want.abs().max().clamp(min=1e-30)
    return error.item() if torch.isfinite(error) else float("inf")


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """New floating-point memory holds NaN, so that what a kernel leaves unwritten shows."""

    def poison(make: Any) -> Any:
        def made(*args: Any, **kwargs: Any) -> torch.Tensor:
            out = make(*args, **kwargs)
            return out.fill_(float("nan")) if out.is_floating_point() else out

        return made

    with contextlib.ExitStack() as stack:
        for owner, name in (
            (torch, "empty"),
            (torch, "empty_like"),
            (torch.Tensor, "new_empty"),
            (torch, "empty_strided"),
        ):
            stack.enter_context(mock.patch.object(owner, name, poison(getattr(owner, name))))
        yield


def processes(dry: bool) -> int:
    """That compile at once."""
    return 1 if dry else max(1, min(12, (os.cpu_count() or 2) - 2))
