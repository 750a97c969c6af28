"""Measure models and operators: time and peak memory, in one run in which all take turns."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

from ..backbones.contract.facts import families
from .common.errors import UserError
from .common.files import write_json
from .common.messages import one_line
from .common.models import check_model
from .common.outputs import check_outputs
from .data.images import MAX_SIDE
from .measuring import kernels, models, static
from .measuring.conditions import conditions, versions
from .measuring.operators import OPERATORS

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

KERNELS_EPILOG = """\
what is measured:
  correctness   first: result and gradients of each form against the definition in float32; root mean square of the
                difference over that of the expected. What fails is not timed, and fails the command if it is attnzoo's
  triton        attnzoo's kernels        twin    attnzoo without Triton
  definition    the operator as published, PyTorch operator by operator, and as torch.compile makes it
  sdpa, flex    scaled_dot_product_attention on copied windows with a mask; FlexAttention where it can say it
  natten, mmcv  their compiled operators, where they are installed
  forward       inference mode       backward   forward and gradients of all tensors
  time          median and quartiles over --repeat rounds in which the forms take turns; the first is not counted
  memory        the most that a pass takes beyond its tensors: what CUDA's allocator counts, or growth of the resident
                set in a process of its own
  roofline      the least time in which an H100 could do the work, over the time of Triton
  part          a step of Triton's backward pass alone: the routing's inverted index
  steps         whole models: forward and backward in bfloat16 (autocast)

Without a GPU there is the twin beside the definition, in float32, and the rest is not measured. --static needs none:
it compiles every kernel for sm_80 and sm_90, and tells the largest figures of each; --json has every compilation.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    subjects = parser.add_subparsers(dest="subject", required=True, metavar="SUBJECT")
    _add_models(subjects)
    _add_kernels(subjects)


def _add_models(subjects: Any) -> None:
    parser = subjects.add_parser(
        "models",
        help="models, forward and backward",
        description="Measure models in one interleaved run.",
        epilog=MODELS_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"models of the zoo or of timm (of each family the one nearest to swin_tiny in size, "
        f"and {', '.join(models.NEIGHBOURS)})",
    )
    parser.add_argument(
        "--sizes", nargs="+", type=side, default=[224, 512], metavar="PX", help="sides of square images (224 512)"
    )
    parser.add_argument("--batch", type=natural, default=1, metavar="N", help="images at a time (1)")
    parser.add_argument("--threads", type=natural, default=1, metavar="N", help="of the CPU (1)")
    parser.add_argument("--repeat", type=natural, default=10, metavar="N", help="rounds that count (10)")
    parser.add_argument("--backward", action="store_true", help="forward and backward too")
    parser.add_argument("--features", action="store_true", help="feature maps (features_only=True), no classifier")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, … (cpu)")
    parser.add_argument("--cpu-time", action="store_true", help="count processor time instead of the clock's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure, with versions and hardware")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw time over pixels, both logarithmic: .png, .svg")
    parser.add_argument("--overwrite", action="store_true", help="replace the files of --json and --plot")


def _add_kernels(subjects: Any) -> None:
    parser = subjects.add_parser(
        "kernels",
        help="operators: Triton's kernels and their competitors",
        description=kernels.__doc__,
        epilog=KERNELS_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--operators",
        nargs="+",
        choices=OPERATORS,
        default=list(OPERATORS),
        metavar="NAME",
        help=f"some of {', '.join(OPERATORS)} (all)",
    )
    parser.add_argument("--static", action="store_true", help="compile for sm_80 and sm_90: registers, memory, spills")
    parser.add_argument("--cpu", action="store_true", help="measure on the CPU where there is a GPU")
    parser.add_argument("--batch", type=natural, default=1, metavar="N", help="images at a time (1)")
    parser.add_argument("--threads", type=natural, default=1, metavar="N", help="of the CPU (1)")
    parser.add_argument("--repeat", type=natural, default=10, metavar="N", help="rounds that count (10)")
    parser.add_argument("--cpu-time", action="store_true", help="count processor time instead of the clock's")
    parser.add_argument("--no-steps", action="store_true", help="leave out the whole models")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure, with versions and hardware")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --json")


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


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    return _run_kernels(args) if args.subject == "kernels" else _run_models(args)


def _run_models(args: argparse.Namespace) -> int:
    _check(args)
    names = args.names or models.default_models(families())
    for name in names:
        check_model(name)
    rows = models.measure(names, args)
    about = conditions(args)
    print(models.table(rows))
    print(
        f"\n{about['device']}, threads {args.threads}, batch {args.batch}, {about['clock']} time, float32, "
        f"{_listed(about['versions'])}"
    )
    if args.json:
        print(write_json(args.json, {**about, "results": rows}))
    if args.plot:
        models.plot(rows, args.plot, args.features)
        print(args.plot)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raise for what cannot be had of models, before anything is measured."""
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


def _run_kernels(args: argparse.Namespace) -> int:
    import torch

    check_outputs(filter(None, [args.json]), overwrite=args.overwrite)
    args.device = "cuda" if torch.cuda.is_available() and not args.cpu else "cpu"
    args.features = False
    about = {**conditions(args), "versions": versions("torch", "triton", "timm", "natten", "mmcv", "onedl-mmcv")}
    del about["features"], about["dtype"]
    if args.static:
        results: Any = static.compile_all(args.operators)
        print(static.table(results))
    else:
        results = kernels.measure(args)
        print(kernels.table(results))
        if parts := kernels.parts_table(results):
            print("\n" + parts)
        steps = [] if args.no_steps else kernels.measure_steps(args)
        if steps:
            print("\n" + kernels.steps_table(steps))
        results = {"operators": results, "steps": steps}
    print(
        f"\n{about['device']}, threads {args.threads}, batch {args.batch}, {about['clock']} time, "
        f"{_listed(about['versions'])}"
    )
    if args.json:
        print(write_json(args.json, {**about, "results": results}))
    return 0


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
