"""Features of all images: held in memory, or computed anew."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch.utils.data import DataLoader

from ...heads.probing import Batches, FeatureBatches, FrozenBackbone
from ..common.errors import UserError
from ..common.messages import one_line
from ..common.progress import bar
from ..data.labelled_images import Data
from .settings import Settings


class _Images:
    """A split as the data loader wants it: pairs of a transformed image (3, H, W) and a class."""

    def __init__(self, data: Data, split: str, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.items = data.items[split]
        self.read = data.read
        self.transform = transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        item, label = self.items[index]
        return self.transform(self.read(item)), label


class _Recomputed:
    """Batches of features that are computed anew at every walk."""

    def __init__(self, backbone: FrozenBackbone, loader: Any, device: torch.device) -> None:
        self.backbone = backbone
        self.loader = loader
        self.device = device

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images, labels in self.loader:
            yield self.backbone(images.to(self.device)), labels


def features_of(
    name: str, backbone: FrozenBackbone, data: Data, settings: Settings, device: torch.device
) -> tuple[Callable[[str, int | None], Batches], dict[str, Any]]:
    """What gives the batches of a split (shuffled by a seed, or in order), and the shape of the features."""
    cfg = resolve_model_data_config(backbone.model)
    size = settings.size or cfg["input_size"][-1]
    cfg["input_size"] = (3, size, size)
    if not data.crop:
        cfg["crop_pct"] = 1.0
    transform = create_transform(**cfg, is_training=False)
    splits = {split: _Images(data, split, transform) for split in data.items}

    def loaded(split: str, seed: int | None) -> Batches:
        images: Any = splits[split]
        # Of its own, also where nothing is shuffled: the loader draws from it in any case.
        generator = torch.Generator().manual_seed(seed or 0)
        loader = DataLoader(
            images,
            min(settings.batch, len(images)),
            shuffle=seed is not None,
            drop_last=seed is not None,
            generator=generator,
            num_workers=settings.workers,
        )
        return _Recomputed(backbone, loader, device)

    first = splits["train"][0][0][None]
    try:
        one = backbone(first.to(device))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{name} does not take images of {size} x {size}: {one_line(error, 200)}; --size sets another"
        ) from error
    shape = {"size": size, "places": one.shape[1], "channels": one.shape[2]}
    count = sum(map(len, splits.values()))
    if count * one.numel() * one.element_size() > settings.memory * 2**30:
        print(f"{name}: the features are larger than --memory and are computed anew at every epoch", file=sys.stderr)
        return loaded, shape

    held: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    with bar(total=count, title=f"features of {name}", leave=False) as progress:
        for split, images in splits.items():
            features = torch.empty(len(images), *one.shape[1:], dtype=one.dtype)
            labels = torch.tensor([label for _, label in images.items])
            done = 0
            for part, _ in loaded(split, None):
                features[done : done + len(part)] = part.cpu()
                done += len(part)
                progress.update(len(part))
            held[split] = features, labels
    return lambda split, seed: FeatureBatches(*held[split], settings.batch, seed), shape
