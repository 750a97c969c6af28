"""Checks before an operator computes: what mmcv's C++ refuses, or reads past the end, would be broadcast here.

Under a tracer nothing is checked: a comparison would bind the graph to the sizes of the example.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from ...kernels.tracing import is_exporting
from ..arguments import check_int, check_number

__all__ = [
    "check_indices",
    "check_no_nan",
    "check_numbers",
    "check_regions",
    "check_samples",
    "check_tensors",
    "check_whole",
    "is_tracing",
    "same_shape",
]

# Samples that torchvision lists for one region before it takes them; 2**31 are a crash.
_MOST_SAMPLES = 2**27


def is_tracing() -> bool:
    return torch.compiler.is_compiling() or is_exporting()


def _has_values(*tensors: Tensor) -> bool:
    """Whether there is something to look at: no tracer, no meta tensors, at least one element in the first one."""
    if is_tracing() or any(tensor.is_meta or isinstance(tensor, FakeTensor) for tensor in tensors):
        return False
    return tensors[0].numel() > 0


def check_tensors(operator: str, **tensors: tuple[Any, str] | tuple[Any, str, torch.dtype]) -> None:
    """Check shapes, dtypes and devices.

    Args:
        operator: Its name, for the error.
        **tensors: By name: the tensor, and its shape in words, each a size or a letter that stands for one and the same
            size wherever it stands: `(boxes, "N 4")`. Then its dtype, if it is not to be any real floating one.

    Raises:
        TypeError: No tensor, or one of another dtype.
        ValueError: Another shape, or tensors on several devices.
    """
    if is_tracing():
        return
    sizes: dict[str, int] = {}
    device: torch.device | None = None
    for name, (tensor, shape, *dtypes) in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{operator}: {name} must be a tensor, got {type(tensor).__name__}")
        dtype = dtypes[0] if dtypes else None
        if (tensor.dtype != dtype) if dtype else not tensor.is_floating_point():
            raise TypeError(f"{operator}: {name} must be {dtype or 'floating'}, got {tensor.dtype}")
        wanted = shape.split()
        known = [int(word) if word.isdigit() else sizes.get(word) for word in wanted]
        if tensor.dim() != len(wanted) or any(
            size is not None and size != own for size, own in zip(known, tensor.shape, strict=True)
        ):
            named = [word if size is None else str(size) for word, size in zip(wanted, known, strict=True)]
            raise ValueError(f"{operator}: {name} must have the shape ({', '.join(named)}), got {tuple(tensor.shape)}")
        sizes.update(zip(wanted, tensor.shape, strict=True))
        if device is not None and tensor.device != device:
            raise ValueError(f"{operator}: {name} is on {tensor.device}, the tensors before it on {device}")
        device = tensor.device


def same_shape(tensor: Tensor) -> str:
    """The shape of a tensor in the words of `check_tensors`."""
    return " ".join(map(str, tensor.shape))


def check_whole(operator: str, least: int, **values: Any) -> None:
    """Check that values are whole numbers of `least` or more."""
    if not is_tracing():
        for name, value in values.items():
            check_int(f"{operator}: {name}", value, least)


def check_numbers(operator: str, least: float, above: bool = False, **values: Any) -> None:
    """Check that values are finite numbers of `least` or more, or `above` it."""
    if not is_tracing():
        for name, value in values.items():
            check_number(f"{operator}: {name}", value, least, above=above)


def check_no_nan(operator: str, **tensors: Tensor) -> None:
    """Check that no element is NaN: which of two boxes is better would be left to chance.

    Raises:
        ValueError: Naming the tensor and how many rows have one.
    """
    for name, tensor in tensors.items():
        if _has_values(tensor):
            bad = int(tensor.isnan().reshape(len(tensor), -1).any(1).sum())
            if bad:
                raise ValueError(f"{operator}: {name} is NaN in {bad} of {len(tensor)} rows")


def check_indices(operator: str, least: int, below: int, **indices: Tensor) -> None:
    """Check that whole numbers lie in a range.

    Raises:
        ValueError: Naming the tensor, its values at the ends and the range.
    """
    for name, index in indices.items():
        if _has_values(index):
            low, high = (int(end) for end in index.aminmax())
            if low < least or high >= below:
                raise ValueError(f"{operator}: {name} must be from {least} to {below - 1}, got {low} to {high}")


def check_regions(operator: str, rois: Tensor, batch: int) -> None:
    """Check regions `(R, 5)`, of shape and dtype known, before an operator goes where they point.

    Args:
        operator: Its name, for the error.
        rois: Batch index and corners in image pixels.
        batch: Images.

    Raises:
        ValueError: A value that is not finite, or an index that is no image of the batch.
    """
    if not _has_values(rois):
        return
    if not bool(rois.isfinite().all()):
        raise ValueError(f"{operator}: rois has values that are not finite")
    index = rois[:, 0]
    if bool(((index < 0) | (index >= batch) | (index != index.floor())).any()):
        low, high = (float(end) for end in index.aminmax())
        raise ValueError(
            f"{operator}: rois[:, 0] must be whole numbers below the {batch} images of the batch, got {low} to {high}"
        )


def check_samples(
    operator: str, rois: Tensor, bins: tuple[int, int], spatial_scale: float, sampling_ratio: int
) -> None:
    """Check that what RoIAlign would list before it takes its samples can be held, for regions that are finite.

    Raises:
        ValueError: With the samples that the largest region would take.
    """
    if not _has_values(rois):
        return
    if sampling_ratio > 0:
        most = float(sampling_ratio) ** 2
    else:
        size = (rois[:, 3:].double() - rois[:, 1:3].double()) * spatial_scale
        most = float((size / size.new_tensor(bins[::-1])).ceil().clamp_min(1).prod(1).max())
    most *= bins[0] * bins[1]
    if most > _MOST_SAMPLES:
        raise ValueError(f"{operator}: a region takes {most:.3g} samples, the most are {_MOST_SAMPLES}")
