"""Whole scenes in the order of time, for models that keep a state from sample to sample."""

from collections.abc import Iterator
from itertools import groupby

from mmengine.dist import get_dist_info
from torch.utils.data import Sampler

from ...mm.registry import DATA_SAMPLERS
from .dataset import NuScenesDataset


@DATA_SAMPLERS.register_module()
class SceneSampler(Sampler):
    """Each scene goes to one process, its samples in order; each process gets about as many samples.

    No sample comes twice, so processes may have different numbers of them; `NuScenesMetric` takes that.

    Args:
        dataset: A `NuScenesDataset`.
        seed: Not used: mmengine's Runner gives every sampler one.
    """

    def __init__(self, dataset: NuScenesDataset, seed: int | None = None) -> None:
        rank, processes = get_dist_info()
        loads = [0] * processes
        self.indices: list[int] = []
        scenes = (dataset.get_data_info(index)["scene"] for index in range(len(dataset)))
        for _, group in groupby(enumerate(scenes), key=lambda pair: pair[1]):
            indices = [index for index, _ in group]
            process = loads.index(min(loads))
            loads[process] += len(indices)
            if process == rank:
                self.indices += indices

    def __iter__(self) -> Iterator[int]:
        """The indices of this process."""
        return iter(self.indices)

    def __len__(self) -> int:
        """How many samples this process has."""
        return len(self.indices)

    def set_epoch(self, epoch: int) -> None:
        """Nothing: every epoch has the same order."""
