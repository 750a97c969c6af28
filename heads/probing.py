"""Probing: how much a frozen backbone knows, by what a small classifier learns from its features.

Needs torch and timm alone. In evaluation mode and without gradients the backbone gives patch features; a head pools
them, by attention or by their mean, and classifies.

    backbone = FrozenBackbone(timm.create_model("van_b0"))
    head = ProbeHead(backbone.channels, num_classes=10)
    logits = head(backbone(images))
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones.checkpoints import check_weights, read_safetensors
from .arguments import check_choice, check_int, check_number

__all__ = [
    "EfficientProbing",
    "FeatureBatches",
    "FrozenBackbone",
    "ProbeHead",
    "accuracy",
    "fit",
    "largest_divisor",
    "load_head",
    "save_head",
]

POOLINGS = ("attentive", "mean")


def largest_divisor(dim: int, limit: int) -> int:
    """The largest number up to `limit` that divides `dim`."""
    return max(count for count in range(1, min(dim, limit) + 1) if dim % count == 0)


class EfficientProbing(nn.Module):
    """Attentive pooling by learned queries that meet the features as they are.

    Query q has its attention map over all patches, `softmax(q · x / sqrt(C))`: features are their own keys, there is no
    key projection. Each query pools its own slice of the projected values, C / num_queries channels; the slices side by
    side are the result. There is no output projection.

    Source: "Attention, Please! Revisiting Attentive Probing Through the Lens of Efficiency"
    (https://arxiv.org/abs/2506.10178), with its published code's values of full width, scale and initialisation.

    Args:
        dim: Channels C of the features.
        num_queries: Queries; must divide `dim`.

    Raises:
        ValueError: `num_queries` does not divide `dim`.

    Example:
        >>> import torch
        >>> EfficientProbing(64, num_queries=8)(torch.rand(2, 49, 64)).shape
        torch.Size([2, 64])
    """

    def __init__(self, dim: int, num_queries: int = 32) -> None:
        super().__init__()
        check_int("dim", dim, 1)
        if check_int("num_queries", num_queries) < 1 or dim % num_queries:
            near = largest_divisor(dim, max(num_queries, 1))
            raise ValueError(f"num_queries={num_queries}: must divide dim={dim}, as {near} does")
        self.num_queries = num_queries
        self.queries = nn.Parameter(torch.randn(num_queries, dim) * 0.02)
        self.value = nn.Linear(dim, dim, bias=False)

    def attention(self, x: Tensor) -> Tensor:
        """Attention maps (B, Q, N), each of sum 1 over the patches of features (B, N, C)."""
        return (self.queries @ x.mT * x.shape[2] ** -0.5).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        """Pool features (B, N, C) to (B, C)."""
        values = self.value(x).unflatten(2, (self.num_queries, -1)).transpose(1, 2)
        return (self.attention(x).unsqueeze(2) @ values).flatten(1)


class ProbeHead(nn.Module):
    """Pooling, batch norm without parameters, and a linear classifier.

    Args:
        channels: Channels C of the features.
        num_classes: Classes K.
        pooling: `"attentive"` for `EfficientProbing`, `"mean"` for the mean over the patches (a linear probe).
        num_queries: Of the attentive pooling; None for the largest number up to 32 that divides `channels`.

    Raises:
        ValueError: Another pooling, or `num_queries` does not divide `channels`.
    """

    def __init__(
        self, channels: int, num_classes: int, pooling: str = "attentive", num_queries: int | None = None
    ) -> None:
        super().__init__()
        check_int("channels", channels, 1)
        check_int("num_classes", num_classes, 1)
        check_choice("pooling", pooling, POOLINGS)
        queries = largest_divisor(channels, 32) if num_queries is None else num_queries
        self.config = dict(channels=channels, num_classes=num_classes, pooling=pooling, num_queries=queries)
        self.pool = EfficientProbing(channels, queries) if pooling == "attentive" else None
        self.norm = nn.BatchNorm1d(channels, affine=False, eps=1e-6)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, K) of patch features (B, N, C) or maps (B, C, H, W)."""
        x = features.flatten(2).mT if features.ndim == 4 else features
        return self.classifier(self.norm(x.mean(1) if self.pool is None else self.pool(x)))


class FrozenBackbone(nn.Module):
    """A timm model as a source of features: always in evaluation mode, without gradients.

    Args:
        model: Any timm model with `forward_intermediates`, with or without classifier. Its parameters are frozen.

    Attributes:
        channels: Channels of the features.

    Raises:
        ValueError: The model has no `forward_intermediates`.
    """

    model: Any

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if not hasattr(model, "forward_intermediates"):
            raise ValueError(f"{type(model).__name__} has no forward_intermediates, which timm's models have")
        self.model = model.requires_grad_(False)
        self.channels: int = self.model.feature_info[-1]["num_chs"]
        self.train(False)

    def train(self, mode: bool = True) -> "FrozenBackbone":
        """Stays in evaluation mode, whatever `mode`."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features of the last level, with the model's final norm where it has one for maps, without class token.

        Args:
            images: (B, 3, H, W).

        Returns:
            (B, N, C), one row for each place of the last level's map.
        """
        options = dict(indices=1, output_fmt="NCHW", intermediates_only=True)
        try:
            (level,) = self.model.forward_intermediates(images, norm=True, **options)
        except AssertionError:  # timm's Hiera refuses to norm maps
            (level,) = self.model.forward_intermediates(images, norm=False, **options)
        return level.flatten(2).mT.contiguous()


class Batches(Protocol):
    """Pairs of features (B, N, C) and labels (B,), that can be walked through again and again."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...

    def __len__(self) -> int: ...


class FeatureBatches:
    """Batches of features that are held in memory.

    Args:
        features: (S, N, C), of S samples.
        labels: (S,) int64.
        batch_size: Samples in a batch.
        seed: Of the order, another one at every walk; None keeps the order, and the last batch although it is smaller.

    Raises:
        TypeError: `batch_size` is no whole number.
        ValueError: The tensors do not fit each other, or `batch_size` is less than 1.
    """

    def __init__(self, features: Tensor, labels: Tensor, batch_size: int, seed: int | None = None) -> None:
        if features.dim() != 3 or labels.shape != features.shape[:1] or not len(labels):
            raise ValueError(
                f"features and labels must be (S, N, C) and (S,) of a sample or more, got {tuple(features.shape)} and "
                f"{tuple(labels.shape)}"
            )
        check_int("batch_size", batch_size, 1)
        self.features = features
        self.labels = labels
        self.batch_size = min(batch_size, len(labels))
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        full, rest = divmod(len(self.labels), self.batch_size)
        return full + (rest > 0 and self.generator is None)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.labels)
        order = torch.arange(count) if self.generator is None else torch.randperm(count, generator=self.generator)
        for index in order.split(self.batch_size)[: len(self)]:
            yield self.features[index], self.labels[index]


def fit(
    head: nn.Module,
    batches: Batches,
    epochs: int,
    lr: float = 1e-3,
    on_epoch: Callable[[float], object] = lambda loss: None,
) -> None:
    """Train a head: AdamW without weight decay, cross entropy, the rate falling from `lr` to 0 along a half cosine.

    The published protocol is LARS over 90 epochs of ImageNet with batches of 4096; the small data sets for which this
    is made have too few steps for it.

    Args:
        head: Trained in place, on its device; left in evaluation mode.
        batches: The training data, walked through once an epoch.
        epochs: How often.
        lr: Rate at the start.
        on_epoch: Called after each epoch with its mean loss.

    Raises:
        TypeError: `epochs` is no whole number, or `lr` none at all.
        ValueError: `epochs` is less than 1, `lr` is not positive, or there is no batch, or one of a single sample, over
            which a head cannot norm.
    """
    check_int("epochs", epochs, 1)
    check_number("lr", lr, 0, above=True)
    if not len(batches):
        raise ValueError("batches: there are none to learn from")
    device = next(head.parameters()).device
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    head.train()
    for _ in range(epochs):
        total = 0.0
        for features, labels in batches:
            if len(labels) < 2:
                raise ValueError(f"batches: one has {len(labels)} sample, and the head norms over two or more")
            loss = F.cross_entropy(head(features.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        on_epoch(total / len(batches))
    head.eval()


@torch.no_grad()
def accuracy(head: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Top-1 accuracy, 0 to 1, of a head in evaluation mode; a ValueError without samples."""
    device = next(head.parameters()).device
    right = count = 0
    for features, labels in batches:
        right += int((head(features.to(device)).argmax(1).cpu() == labels).sum())
        count += len(labels)
    if not count:
        raise ValueError("batches: there is no sample to be right about")
    return right / count


def save_head(head: ProbeHead, path: str | os.PathLike, **facts: Any) -> None:
    """Write a head as safetensors, with its arguments and `facts` (anything that JSON holds) beside the weights.

    Raises:
        OSError: The file cannot be written, because the disk is full for instance.
    """
    state = {key: value.contiguous() for key, value in head.state_dict().items()}
    # The library's own writing of files hides what the disk says in an error of its own kind.
    Path(path).write_bytes(safetensors.torch.save(state, {"head": json.dumps(head.config), "facts": json.dumps(facts)}))


def load_head(path: str | os.PathLike) -> tuple[ProbeHead, dict[str, Any]]:
    """Read what `save_head` wrote.

    Returns:
        The head in evaluation mode, and the facts.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It was not written by `save_head`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no head {str(path)!r}")
    try:
        state, metadata = read_safetensors(path)
        config, facts = json.loads(metadata["head"]), json.loads(metadata["facts"])
        shape = (config["num_classes"], config["channels"])
        # Before a head is made as large as the text says.
        if tuple(state["classifier.weight"].shape) != shape or config["num_queries"] > config["channels"]:
            raise ValueError(f"its classifier is not {shape[0]} x {shape[1]}")
        head = ProbeHead(**config)
        check_weights(state, head)
        head.load_state_dict(state)
    except Exception as error:  # of the file, of JSON, of arguments that are none
        raise ValueError(f"{path}: not a head written by attnzoo probe: {error}") from error
    return head.eval(), facts
