"""Training of a head, and its accuracy."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import check_int, check_number
from .features import Batches


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
