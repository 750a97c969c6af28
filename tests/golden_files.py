"""Golden files: what published implementations compute, how such a file is made, and how ours is compared with it.

A golden file names every tensor of the published checkpoint. `fill` makes them by a rule on name and shape alone, so
that the same weights stand on both sides without being shipped. `tests/golden/README.md` says how to make one.
"""

import argparse
import importlib
import json
import math
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path

import torch

FOLDER = Path(__file__).parent / "golden"
# Values of an output that its digest holds.
SAMPLES = 64


def load(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text())


def noise(shape, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32).double()


def fill(name: str, shape) -> torch.Tensor:
    drawn, leaf = noise(shape, zlib.crc32(name.encode())), name.rpartition(".")[2]
    if leaf == "running_var":
        return 1 + 0.1 * drawn.abs()
    if leaf in ("running_mean", "bias") or leaf.endswith("_bias"):
        return 0.1 * drawn
    if math.prod(shape[1:]) == 1:
        return 1 + 0.1 * drawn
    return 0.1 * drawn if shape[0] == 1 else drawn / math.sqrt(math.prod(shape[1:]))


def checkpoint(golden: dict) -> dict[str, torch.Tensor]:
    """The published checkpoint, layout and all, in float64."""
    return {name: fill(name, shape) for name, shape in golden["tensors"].items()}


def image(golden: dict) -> torch.Tensor:
    return noise(golden["input"]["shape"], golden["input"]["seed"])


def error(output: torch.Tensor, want: dict) -> float:
    """Largest difference in samples, mean, deviation and largest magnitude, relative to the output's deviation."""
    assert list(output.shape) == want["shape"]
    flat = output.detach().double().flatten()
    index = _samples(flat.numel(), len(want["values"]))
    samples = (flat[index] - torch.tensor(want["values"], dtype=torch.float64)).abs().max().item()
    moments = max(abs(flat.mean().item() - want["mean"]), abs(flat.std(unbiased=False).item() - want["std"]))
    largest = abs(flat.abs().max().item() - want["abs_max"])
    return max(samples, moments, largest) / want["std"]


def digest(output: torch.Tensor) -> dict:
    """Shape, moments and values at even distances of an output: what `error` compares with."""
    flat = output.detach().double().flatten()
    return {
        "shape": list(output.shape),
        "mean": flat.mean().item(),
        "std": flat.std(unbiased=False).item(),
        "abs_max": flat.abs().max().item(),
        "values": flat[_samples(flat.numel(), min(SAMPLES, flat.numel()))].tolist(),
    }


def _samples(numel: int, count: int) -> torch.Tensor:
    return torch.linspace(0, numel - 1, count, dtype=torch.float64).round().long()


@torch.no_grad()
def make(model: torch.nn.Module, shape: Iterable[int], seed: int = 0) -> dict:
    """What a golden file says of a model: its tensors, and what it computes with filled ones.

    Filled are parameters and the running statistics of batch norms. Other buffers, as indices and masks, keep the
    values that the model computes for them.

    Args:
        model: of the published code; it is filled in place, in float64 and evaluation mode. It returns a tensor, taken
            for `logits`, a list of maps, `stage0` and so on, or a dict of tensors by the names that the file gives
            them.
        shape: of the input.
        seed: of the input.
    """
    model.double().eval()
    buffers = dict(model.named_buffers())
    filled = dict(model.named_parameters())
    filled |= {k: v for k, v in buffers.items() if k.rpartition(".")[2] in ("running_mean", "running_var")}
    for name, tensor in filled.items():
        tensor.copy_(fill(name, tensor.shape))
    result = model(noise(shape, seed))
    if isinstance(result, torch.Tensor):
        result = {"logits": result}
    elif isinstance(result, list | tuple):
        result = {f"stage{i}": x for i, x in enumerate(result)}
    return {
        "input": {"shape": list(shape), "seed": seed},
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "tensors": {name: list(filled[name].shape) for name in sorted(filled)},
        "buffers": {name: list(buffers[name].shape) for name in sorted(buffers.keys() - filled.keys())},
        "outputs": {name: digest(x) for name, x in result.items()},
    }


def _constructor(text: str):
    module, colon, name = text.partition(":")
    if not colon or not name:
        raise argparse.ArgumentTypeError(f"{text!r}: MODULE:FUNCTION is needed")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as problem:
        raise argparse.ArgumentTypeError(f"{text!r}: {problem}") from problem


def _object(text: str) -> dict:
    try:
        value = json.loads(text)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(f"{text!r}: {problem}") from problem
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r}: a JSON object is needed")
    return value


def main(argv: list[str] | None = None) -> int:
    """Write a golden file."""
    parser = argparse.ArgumentParser(
        description="Run a published implementation on filled weights and write what it computes as a golden file.",
        epilog="The constructor is looked for in the current folder too. See tests/golden/README.md.",
    )
    # The folder of the published code, where this is called.
    sys.path.insert(0, "")
    parser.add_argument("constructor", type=_constructor, metavar="MODULE:FUNCTION", help="makes the published model")
    parser.add_argument("out", type=Path, help="the file, tests/golden/NAME.json")
    parser.add_argument("--arguments", type=_object, default={}, help="of the constructor, a JSON object")
    parser.add_argument("--shape", type=int, nargs="+", default=[1, 3, 224, 224], help="of the input (1 3 224 224)")
    parser.add_argument("--seed", type=int, default=0, help="of the input (0)")
    parser.add_argument("--source", required=True, help="repository, commit and file of the code")
    parser.add_argument("--license", required=True, help="of the code")
    parser.add_argument("--paper", required=True, help="its address")
    parser.add_argument("--note", action="append", default=[], help="what a reader of the paper would get wrong")
    args = parser.parse_args(argv)
    if args.out.exists():
        parser.error(f"{args.out} is there already")
    facts = {"model": args.out.stem, "source": args.source, "license": args.license, "paper": args.paper}
    made = make(args.constructor(**args.arguments), args.shape, args.seed)
    content = {**facts, "kwargs": args.arguments, **made, "notes": args.note}
    args.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
