"""What the kernel tests import."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch

from attnzoo import kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def assert_near(name: str, actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Fails where the largest difference exceeds `tolerance` times the largest magnitude expected (NaN fails too)."""
    assert actual.shape == expected.shape, f"{name}: {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    if actual.numel() == 0:
        return
    largest = expected.double().abs().max().clamp(min=1e-12)
    error = ((actual.double() - expected.double()).abs().max() / largest).item()
    assert error <= tolerance, f"{name}: relative error {error:.2e} above {tolerance:.0e}"


@dataclass(frozen=True)
class Case:
    """A call of a public operator at a small size.

    Attributes:
        name: of the operator.
        tensors: those that learn, by the names of the arguments: in float64.
        settings: the other arguments.
    """

    name: str
    tensors: dict[str, torch.Tensor]
    settings: dict[str, Any]

    def call(self, *tensors: torch.Tensor, **settings: Any) -> torch.Tensor:
        """The operator with these tensors in place of its own, in their order."""
        given = dict(zip(self.tensors, tensors, strict=True)) if tensors else self.tensors
        if not self.has_kernels and settings.get("backend") == "torch":
            del settings["backend"]
        return getattr(kernels, self.name)(**given, **self.settings, **settings)

    @property
    def has_kernels(self) -> bool:
        """Whether there is a choice of backends: else it is plain PyTorch."""
        return "backend" in inspect.signature(getattr(kernels, self.name)).parameters


def cases(batch: int = 2, height: int = 6, width: int = 8, channels: int = 4) -> dict[str, Case]:
    """Every public operator, with all of its tensors, and again where it takes another way.

    Sides are multiples of 2, channels of 2.
    """

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    def maps(count: int, *names: str) -> dict[str, torch.Tensor]:
        return {name: draw(batch, height, width, count) for name in names}

    size = (batch, channels, height, width)
    tokens = {name: draw(batch, 2, height * width, channels) for name in ("q", "k", "v")}
    levels = [(height, width), (2, 3)]
    positions = height * width + 6
    samples = (batch, 5, 2, 2, 3)
    deformable = {
        "value": draw(batch, positions, 2, channels),
        "sampling_locations": torch.rand(*samples, 2, dtype=torch.float64) * 1.2 - 0.1,
        "attention_weights": draw(*samples),
    }
    lifted = {
        **deformable,
        "sampling_locations": torch.rand(*samples, 3, dtype=torch.float64) * 1.2 - 0.1,
        "depth": draw(batch, positions, 2, 3).softmax(-1),
    }
    offsets = {
        "value": deformable["value"],
        "reference_points": torch.rand(batch, 5, 2, 2, dtype=torch.float64),
        "sampling_offsets": draw(*samples, 2),
        "attention_logits": draw(*samples),
    }
    boxes = {**offsets, "reference_points": torch.rand(batch, 5, 2, 4, dtype=torch.float64)}
    pyramid = {"spatial_shapes": levels, "level_start_index": [0, height * width]}
    found = {
        "routing": Case(
            "routing_attention",
            maps(channels, "q", "k", "v"),
            dict(num_heads=2, regions=(3, 2), topk=2, scale=0.5),
        ),
        "routing_to_all": Case(
            "routing_attention",
            maps(channels, "q", "k", "v"),
            dict(num_heads=2, regions=(2, 2), topk=4, scale=0.5),
        ),
        "routing_uneven": Case(
            "routing_attention",
            maps(channels, "q", "k", "v"),
            dict(num_heads=2, regions=(4, 3), topk=3, scale=0.5),
        ),
        "routing_packed": Case(
            "routing_attention_packed",
            maps(3 * channels, "qkv"),
            dict(num_heads=2, regions=(3, 2), topk=2, scale=0.5),
        ),
        "routing_packed_local": Case(
            "routing_attention_packed",
            {
                **maps(3 * channels, "qkv"),
                "local_weight": draw(channels, 1, 3, 5),
                "local_bias": draw(channels),
            },
            dict(num_heads=2, regions=(3, 2), topk=2, scale=0.5),
        ),
        "window": Case(
            "window_attention",
            {**maps(4 * channels, "q", "k", "v"), "bias_table": draw(9, 2)},
            dict(num_heads=2, window_size=2),
        ),
        "window_shifted": Case(
            "window_attention",
            {**maps(4 * channels, "q", "k", "v"), "bias_table": draw(9, 2)},
            dict(num_heads=2, window_size=2, shift=1),
        ),
        "window_without_bias": Case(
            "window_attention", maps(channels, "q", "k", "v"), dict(num_heads=2, window_size=(2, 2), shift=(1, 0))
        ),
        "window_overlapping": Case(
            "window_attention",
            {**maps(channels, "q", "k", "v"), "bias_table": draw(25, 2)},
            dict(num_heads=2, window_size=2, overlap=2),
        ),
        "window_packed": Case(
            "window_attention_packed",
            {**maps(3 * channels, "qkv"), "bias_table": draw(9, 2)},
            dict(num_heads=2, window_size=2, shift=1),
        ),
        "neighborhood": Case(
            "neighborhood_attention",
            {**maps(channels, "q", "k", "v"), "bias_table": draw(2, 5, 5)},
            dict(num_heads=2, kernel_size=3, dilation=2),
        ),
        "neighborhood_without_bias": Case(
            "neighborhood_attention", maps(channels, "q", "k", "v"), dict(num_heads=2, kernel_size=5)
        ),
        "generalized": Case(
            "generalized_neighborhood_attention",
            {**maps(channels, "q", "k", "v"), "bias_table": draw(2, 7, 5)},
            dict(num_heads=2, kernel_size=(4, 3), stride=(3, 2), dilation=(1, 2)),
        ),
        "generalized_causal": Case(
            "generalized_neighborhood_attention",
            maps(channels, "q", "k", "v"),
            dict(num_heads=2, kernel_size=3, stride=(1, 3), is_causal=(True, False)),
        ),
        "flash_bias": Case(
            "flash_bias_attention",
            {
                **tokens,
                "query_factor": draw(2, height * width, 3),
                "key_factor": draw(2, height * width, 3),
            },
            {},
        ),
        "block_sparse": Case("block_sparse_attention", tokens, dict(block_size=(5, 4), similarity=0.2, topk=0.4)),
        "block_sparse_cdf": Case(
            "block_sparse_attention", tokens, dict(block_size=3, similarity=0.3, topk=None, cdf=0.7, scale=0.4)
        ),
        "deformable": Case("deformable_attention", deformable, pyramid),
        "deformable_3d": Case("deformable_attention_3d", lifted, pyramid),
        "deformable_offsets": Case("deformable_attention_from_offsets", offsets, pyramid),
        "deformable_boxes": Case("deformable_attention_from_offsets", boxes, pyramid),
        "depthwise": Case(
            "depthwise_conv",
            {"x": draw(*size), "weight": draw(channels, 1, 5, 3), "bias": draw(channels)},
            dict(dilation=2),
        ),
        "depthwise_dense": Case(
            "depthwise_conv", {"x": draw(*size), "weight": draw(channels, 1, 3, 3), "bias": draw(channels)}, {}
        ),
        "pointwise": Case("pointwise_conv", {"x": draw(*size), "weight": draw(6, channels, 1, 1), "bias": draw(6)}, {}),
        "pointwise_gated": Case(
            "pointwise_conv",
            {
                "x": draw(*size),
                "weight": draw(6, channels, 1, 1),
                "bias": draw(6),
                "gate": draw(batch, 6, height, width),
            },
            {},
        ),
        "large_kernel": Case(
            "large_kernel_attention",
            {
                "x": draw(*size),
                "local_weight": draw(channels, 1, 3, 3),
                "local_bias": draw(channels),
                "dilated_weight": draw(channels, 1, 5, 5),
                "dilated_bias": draw(channels),
                "pointwise_weight": draw(channels, channels, 1, 1),
                "pointwise_bias": draw(channels),
            },
            dict(dilation=2),
        ),
    }
    neighborhood = found["neighborhood"]
    *parts, table = neighborhood.tensors.values()
    found["neighborhood_packed"] = Case(
        "neighborhood_attention_packed", {"qkv": torch.cat(parts, 3), "bias_table": table}, neighborhood.settings
    )
    return found


CASES = tuple(cases())
# Those that Triton computes.
TRITON = tuple(name for name, case in cases().items() if case.has_kernels and name != "pointwise")
