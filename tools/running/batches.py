"""Batches whose random numbers depend on the seed and on their place in the training, not on the process that loads."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from ...heads.mm.albumentations import Albumentations


class SeededBatch(list):
    """The indices of a batch; whoever iterates over them to load the items finds the generators seeded for each.

    Args:
        indices: Of the items, as the sampler gives them.
        place: Seed of the run, rank and number of the batch.
    """

    def __init__(self, indices: Iterable[Any], place: tuple[int, int, int]) -> None:
        super().__init__(indices)
        self.place = place

    def __iter__(self) -> Iterator[Any]:
        for position, index in enumerate(super().__iter__()):
            self.seed(position)
            yield index

    def __reduce__(self) -> tuple[Any, ...]:
        # A list's own iterates, and would seed the process that sends.
        return SeededBatch, (self[:], self.place)

    def seed(self, position: int) -> None:
        """Seed the generators for the item of a position, or by -1 for the whole batch."""
        Albumentations.seeded_by_sample = True
        text = repr((*self.place, position)).encode()
        seed = int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little")
        random.seed(seed)
        np.random.seed(seed)
        # Not torch.manual_seed, which seeds every device, too, and is many times slower.
        torch.default_generator.manual_seed(seed)


class SeededItems:
    """In the place of a data set's `__getitems__`, which need not iterate over the batch that it loads at once.

    Args:
        dataset: With such a method.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __call__(self, batch: list[Any]) -> Any:
        if isinstance(batch, SeededBatch):
            batch.seed(-1)
        return type(self.dataset).__getitems__(self.dataset, batch)


class NumberedBatches(Sampler):
    """A batch sampler that numbers the batches of a training, so that a resumed one goes on with the same numbers.

    Args:
        batches: The batch sampler; all else of it is reached through this one.
        seed: Of the run.
        rank: Of this process.
    """

    def __init__(self, batches: Any, seed: int, rank: int) -> None:
        self.batches = batches
        self.seed = seed
        self.rank = rank
        self.count = 0
        sampler: Any = getattr(batches, "sampler", None)
        if hasattr(sampler, "skip"):
            skip, size = sampler.skip, batches.batch_size

            def skip_and_count(number: int) -> None:
                skip(number)
                self.count = number // size

            sampler.skip = skip_and_count

    def __getattr__(self, name: str) -> Any:
        if name == "batches":
            raise AttributeError(name)
        return getattr(self.batches, name)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[SeededBatch]:
        for indices in self.batches:
            place = (self.seed, self.rank, self.count)
            self.count += 1
            yield SeededBatch(indices, place)


def number_batches(loader: DataLoader, seed: int, rank: int) -> None:
    """Number the batches of a loader, if it makes any, before it is iterated over for the first time."""
    batches = loader.batch_sampler
    if batches is not None and not isinstance(batches, NumberedBatches):
        # A loader refuses to have it set.
        vars(loader)["batch_sampler"] = NumberedBatches(batches, seed, rank)
        if callable(getattr(type(loader.dataset), "__getitems__", None)):
            vars(loader.dataset)["__getitems__"] = SeededItems(loader.dataset)


def end_workers(runner: Any) -> None:
    """End the processes that load the data of a mmengine Runner; a later run of it starts others.

    A collection of garbage may close their pipes before it ends them, and then waits five seconds for each.
    """
    for loop in (vars(runner).get(f"_{name}_loop") for name in ("train", "val", "test")):
        # By epochs it is the loader's own, by iterations the loop's.
        for name in ("dataloader", "dataloader_iterator"):
            holder: Any = getattr(loop, name, None)
            iterator: Any = getattr(holder, "_iterator", None)
            if hasattr(iterator, "_shutdown_workers"):
                iterator._shutdown_workers()
                holder._iterator = None
