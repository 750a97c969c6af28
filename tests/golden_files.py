"""Golden outputs of published implementations: how their weights and inputs are made, and how outputs are compared.

A golden file names every tensor of the published checkpoint. `checkpoint` fills them by a rule on name and shape
alone, so that the same weights stand on both sides without being shipped.
"""

import json
import math
import zlib
from pathlib import Path

import torch

FOLDER = Path(__file__).parent / "golden"


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
    """Largest difference in samples, mean and deviation, relative to the output's deviation."""
    assert list(output.shape) == want["shape"]
    flat = output.detach().double().flatten()
    index = torch.linspace(0, flat.numel() - 1, len(want["values"]), dtype=torch.float64).round().long()
    samples = (flat[index] - torch.tensor(want["values"], dtype=torch.float64)).abs().max().item()
    moments = max(abs(flat.mean().item() - want["mean"]), abs(flat.std(unbiased=False).item() - want["std"]))
    return max(samples, moments) / want["std"]
