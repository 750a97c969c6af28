"""Features of a frozen backbone, and batches of them."""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..arguments import check_int


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
