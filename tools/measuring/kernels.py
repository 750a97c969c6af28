"""Measure the operators: Triton's kernels, their twin in PyTorch and their competitors, in one run."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Iterable
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TYPE_CHECKING, Any

from ..common.errors import UserError
from ..common.messages import one_line
from ..common.progress import bar
from .cases import FORMS, Case
from .memory import fresh_processes, resident
from .operators import cases
from .tables import markdown
from .timing import spread, stopwatch

if TYPE_CHECKING:
    import torch

# Root mean square of the difference from float64 over that of the result.
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
_PASSES = ("forward", "backward")
IMAGES = ((224, 224), (512, 512), (800, 1333))
# Of the models, images at a time and their side.
STEPS = {"biformer_small": (64, 224), "dinat_tiny": (64, 224), "van_b2": (64, 224), "hat_small_x4": (4, 64)}
# One processor has a small machine's patience: the routing at its size of note, the others at small ones.
_CPU_IMAGES = {"routing_attention": (512, 512), "window_attention": (64, 64)}
_CPU_IMAGE = (224, 224)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each case, dtype and pass: errors, times and memory of each form.

    Raises:
        UserError: where a form of attnzoo's own is wrong or cannot run.
    """
    import torch

    torch.set_num_threads(args.threads)
    gpu = args.device != "cpu"
    dtypes = ("float32", "bfloat16") if gpu else ("float32",)
    rows = []
    for operator in bar(args.operators, title="operators", leave=False):
        images = IMAGES if gpu else (_CPU_IMAGES.get(operator, _CPU_IMAGE),)
        compiler = torch.compile if gpu else _as_it_is
        for number, case in enumerate(cases(operator, images, args.batch, compiler)):
            for dtype in dtypes:
                rows += _measure_case(operator, case, number, dtype, images, args)
            if gpu:
                # A graph that was compiled for one size serves no other.
                torch._dynamo.reset()
    return rows


def _measure_case(
    operator: str, case: Case, number: int, dtype: str, images: tuple[tuple[int, int], ...], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """The rows of one case, forward and backward."""
    import torch

    names = ("twin", "definition") if args.device == "cpu" else (*case.forms, *case.prepared)
    tensors = case.tensors(getattr(torch, dtype), args.device)
    forms, failed = ready(case, names, tensors)
    errors, wrong = check(case, forms, tensors, dtype)
    failed |= wrong
    forms = {name: form for name, form in forms.items() if name not in failed}
    works = case.work(getattr(torch, dtype))
    watch = stopwatch(args.device, args.cpu_time)
    rows = []
    for kind in _PASSES:
        times: dict[str, list[float]] = {name: [] for name in forms}
        for turn in range(args.repeat + 1):
            for name, form in forms.items():
                taken = watch(partial(one_pass, form, tensors, kind == "backward"))
                if turn > 0:
                    times[name].append(taken)
        least = (works[0] if kind == "forward" else works[0] + works[1]).seconds(getattr(torch, dtype))
        row: dict[str, Any] = {
            "operator": case.operator,
            "setting": case.setting,
            "image": case.image,
            "dtype": dtype,
            "pass": kind,
            "h100_roofline_milliseconds": 1e3 * least,
            "failed": failed,
            "forms": {
                name: {"error": errors[name], "milliseconds": values, **spread(values)}
                for name, values in times.items()
            },
        }
        for name in forms:
            if args.device == "cpu":
                call = (operator, images, args.batch, number, name, kind == "backward", args.threads)
                row["forms"][name]["peak_bytes"] = _peak_elsewhere(call, case)
            else:
                row["forms"][name]["peak_bytes"] = _peak_on_gpu(forms[name], tensors, kind == "backward")
        rows.append(row)
    rows[-1]["parts"] = {name: {"least_bytes": least} for name, (_, least) in case.parts.items()}
    if args.device != "cpu":
        for name, (prepare, _) in case.parts.items():
            part = prepare(*tensors)
            values = [watch(part) for _ in range(args.repeat + 1)][1:]
            rows[-1]["parts"][name] |= {"milliseconds": values, **spread(values)}
    return rows


def _as_it_is(form: Any) -> Any:
    """In the place of `torch.compile`, where nothing that is compiled is measured: it takes seconds to import."""
    return form


def one_pass(form: Any, tensors: list[torch.Tensor], backward: bool) -> None:
    """Forward in inference mode, or forward and the gradients of all tensors."""
    import torch

    if not backward:
        with torch.inference_mode():
            form(*tensors)
        return
    torch.autograd.grad(form(*tensors).sum(), tensors, allow_unused=True)


def ready(case: Case, names: Iterable[str], tensors: list[torch.Tensor]) -> tuple[dict[str, Any], dict[str, str]]:
    """Forms of a case by name, prepared for these tensors, and what is wrong with those that cannot be had."""
    forms, failed = {}, {}
    for name in names:
        try:
            forms[name] = case.form(name, tensors)
        except Exception as error:
            failed[name] = one_line(error)
    return forms, failed


def check(
    case: Case, forms: dict[str, Any], tensors: list[torch.Tensor], dtype: str
) -> tuple[dict[str, float], dict[str, str]]:
    """Each form's largest error among its result and gradients, and what is wrong with those that fail.

    Raises:
        UserError: where it is attnzoo's own.
    """
    import torch

    precise = [x.detach().double().requires_grad_() for x in tensors]
    errors: dict[str, float] = {}
    failed: dict[str, str] = {}
    expected: list[torch.Tensor] = []
    for name, form in forms.items():
        if not expected or case.exact is not None:
            want = case.should_be(name, tensors, precise)
            # Another element for each one, so that no gradient is lost in a sum of weights that is always 1.
            shares = torch.linspace(-3, 3, want.numel(), dtype=want.dtype, device=want.device).sin().view(want.shape)
            expected = [want.detach(), *torch.autograd.grad(want, precise, shares)]
        # Compilers have errors of their own, Triton's are no RuntimeError.
        try:
            out = form(*tensors)
            grads = torch.autograd.grad(out, tensors, shares.to(out.dtype), allow_unused=True)
            errors[name] = max(
                _relative(got, exact) for got, exact in zip([out, *grads], expected, strict=True) if got is not None
            )
            if not errors[name] <= TOLERANCE[dtype]:
                # NATTEN has no bias: its own is another function here.
                if name == "natten":
                    continue
                failed[name] = f"error {errors[name]:.1e}"
        except Exception as error:
            failed[name] = one_line(error)
        own = name in ("triton", "twin")
        if name in failed and own:
            raise UserError(f"{case.operator}, {case.setting}, {case.image}, {dtype}: {name} fails: {failed[name]}")
    return errors, failed


def _relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got.double() - want).square().mean().sqrt() / want.square().mean().sqrt().clamp(min=1e-20)).item()


def _peak_on_gpu(form: Any, tensors: list[torch.Tensor], backward: bool) -> int:
    import torch

    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    one_pass(form, tensors, backward)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _peak_elsewhere(call: tuple[Any, ...], case: Case) -> int:
    with fresh_processes() as processes:
        try:
            return processes.submit(peak_memory, *call).result()
        except BrokenProcessPool as error:
            raise UserError(f"{case.operator}, {case.setting}, ran out of memory") from error


def peak_memory(
    operator: str,
    images: tuple[tuple[int, int], ...],
    batch: int,
    number: int,
    form: str,
    backward: bool,
    threads: int,
) -> int:
    """Bytes that a pass takes on the CPU beyond its tensors; in a process of its own only."""
    import torch

    torch.set_num_threads(threads)
    case = list(cases(operator, images, batch, _as_it_is))[number]
    tensors = case.tensors(torch.float32, "cpu")
    # Libraries make themselves at home at their first call; that is not the operator's.
    small = torch.randn(1, 8, 8, 8, requires_grad=True)
    torch.nn.functional.scaled_dot_product_attention(small, small, small).sum().backward()
    (torch.nn.functional.conv2d(small, torch.randn(8, 8, 3, 3)).flatten(1) @ torch.randn(288, 8)).sum().backward()
    gc.collect()
    before = resident("VmRSS")
    one_pass(case.forms[form], tensors, backward)
    return resident("VmHWM") - before


def table(rows: list[dict[str, Any]]) -> str:
    """The rows of `measure` in Markdown: median, quartiles and peak of each form."""
    heads = ["operator", "setting", "image", "dtype", "pass", *(f"{name} (ms; MB)" for name in FORMS)]
    heads += ["definition / twin (time; memory)", "roofline"]
    lines = []
    for row in rows:
        cells = [row["operator"], row["setting"], "x".join(map(str, row["image"])), row["dtype"], row["pass"]]
        forms = row["forms"]
        for name in FORMS:
            took = forms.get(name)
            if took is None:
                cells.append("failed" if name in row["failed"] else "not measured")
            else:
                cells.append(
                    f"{took['median']:.3g} ({took['q1']:.3g}-{took['q3']:.3g}); {took['peak_bytes'] / 1e6:.3g}"
                )
        if "twin" in forms:
            definition, twin = forms["definition"], forms["twin"]
            memory = definition["peak_bytes"] / max(twin["peak_bytes"], 1)
            cells.append(f"{definition['median'] / twin['median']:.2f}; {memory:.2f}")
        else:
            cells.append("not measured")
        cells.append(
            f"{row['h100_roofline_milliseconds'] / forms['triton']['median']:.0%}"
            if "triton" in forms
            else "not measured"
        )
        lines.append(cells)
    return markdown(heads, lines, left=5)


def parts_table(rows: list[dict[str, Any]]) -> str:
    """Markdown of the steps within forward + backward that are timed alone, empty where there are none."""
    lines = []
    for row in rows:
        for name, part in row.get("parts", {}).items():
            cells = [name, row["setting"], "x".join(map(str, row["image"])), row["dtype"], str(part["least_bytes"])]
            if "median" in part:
                cells.append(f"{part['median']:.3g} ({part['q1']:.3g}-{part['q3']:.3g})")
                cells.append(f"{part['median'] / row['forms']['triton']['median']:.1%}")
            else:
                cells += ["not measured"] * 2
            lines.append(cells)
    heads = ["part", "of", "image", "dtype", "bytes at least", "triton (ms)", "of forward + backward"]
    return markdown(heads, lines, left=4) if lines else ""


def measure_steps(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Training steps of whole models with each backend, on a GPU; without one an entry without figures each."""
    import timm
    import torch

    from ...kernels import use_backend

    rows: list[dict[str, Any]] = []
    for name, (batch, side) in bar(STEPS.items(), title="models", leave=False):
        row: dict[str, Any] = {"model": name, "batch": batch, "side": side, "backends": {}}
        rows.append(row)
        if args.device == "cpu":
            continue
        model = timm.create_model(name).to(device=args.device).to(memory_format=torch.channels_last).train()
        image = torch.randn(batch, 3, side, side, device=args.device)

        def step(forward):
            with torch.autocast("cuda", torch.bfloat16):
                out = forward(image)  # noqa: B023
            out.float().square().mean().backward()
            model.zero_grad(set_to_none=True)  # noqa: B023

        ways = {way: (way.split()[-1], "compiled" in way) for way in ("triton", "torch", "compiled torch")}
        ways["compiled triton"] = ("triton", True)
        watch = stopwatch(args.device, args.cpu_time)
        for way, (backend, compiled) in ways.items():
            torch._dynamo.reset()
            forward = torch.compile(model) if compiled else model
            with use_backend(backend):
                step(forward)
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                step(forward)
                peak = torch.cuda.max_memory_allocated() - before
                times = [watch(partial(step, forward)) for _ in range(args.repeat)]
            row["backends"][way] = {"milliseconds": times, **spread(times), "peak_bytes": peak}
    return rows


def steps_table(rows: list[dict[str, Any]]) -> str:
    """The rows of `measure_steps` in Markdown."""
    ways = ("triton", "torch", "compiled triton", "compiled torch")
    lines = []
    for row in rows:
        cells = [row["model"], str(row["batch"]), f"{row['side']}²"]
        for way in ways:
            took = row["backends"].get(way)
            cells.append(
                "not measured"
                if took is None
                else f"{took['median']:.4g} ({took['q1']:.4g}-{took['q3']:.4g}); {took['peak_bytes'] / 1e6:.0f}"
            )
        lines.append(cells)
    return markdown(["model", "batch", "image", *(f"{way} (ms; MB)" for way in ways)], lines, left=1)
