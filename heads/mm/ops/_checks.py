"""Checks before an operator computes: what mmcv's C++ refuses, or reads past the end, would be broadcast here.

Under an exporter nothing is checked: a comparison would bind the graph to the sizes of the example. `torch.compile`
guards what it compares, and checks values in the graph.

The checks of attnzoo's own operators (`kernels._checks`) ask for the dtypes and layouts of their kernels; these ask for
the shapes that mmcv's C++ counts on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from ....kernels.tracing import is_exporting
from ...arguments import check_int, check_number

__all__ = [
    "check_gradients",
    "check_indices",
    "check_no_nan",
    "check_numbers",
    "check_regions",
    "check_samples",
    "check_tensors",
    "check_whole",
]

# Samples that torchvision lists for one region before it takes them; 2**31 are a crash.
_MOST_SAMPLES = 2**27

# A size for each axis, or a letter, which stands for one and the same size wherever it stands; as a text with spaces
# between them. Sizes that `torch.compile` leaves free must not be written into a text.
Shape = str | Sequence[int | str]


def _demand(tensor: Tensor, test: Callable[[Tensor], Tensor], message: Callable[[], str], summary: str) -> None:
    """Check that a test holds for every element.

    Args:
        tensor: Not looked at where it has no values: under an exporter, on the meta device.
        test: True for what may be.
        message: Of the error, with the values that were found.
        summary: The same without them, for a compiled graph, which looks at no values before it runs.

    Raises:
        ValueError: `message`; from a compiled graph it is a RuntimeError with `summary`.
    """
    if is_exporting() or tensor.is_meta or isinstance(tensor, FakeTensor):
        return
    holds = test(tensor).all()
    if torch.compiler.is_compiling():
        torch._assert_async(holds, summary)
    elif not bool(holds):
        raise ValueError(message())


def check_tensors(operator: str, **tensors: tuple[Any, Shape] | tuple[Any, Shape, torch.dtype]) -> None:
    """Check shapes, dtypes and devices.

    Args:
        operator: Its name, for the error.
        **tensors: By name: the tensor and its shape, `(boxes, "N 4")` or `(boxes, ("N", 4))`. Then its dtype, if it is
            not to be any real floating one.

    Raises:
        TypeError: No tensor, or one of another dtype.
        ValueError: Another shape, or tensors on several devices.
    """
    if is_exporting():
        return
    sizes: dict[str, int] = {}
    device: torch.device | None = None
    for name, (tensor, shape, *dtypes) in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{operator}: {name} must be a tensor, got {type(tensor).__name__}")
        dtype = dtypes[0] if dtypes else None
        if (tensor.dtype != dtype) if dtype else not tensor.is_floating_point():
            raise TypeError(f"{operator}: {name} must be {dtype or 'floating'}, got {tensor.dtype}")
        wanted = shape.split() if isinstance(shape, str) else shape
        known = [_size(word, sizes) for word in wanted]
        if tensor.dim() != len(wanted) or any(
            size is not None and size != own for size, own in zip(known, tensor.shape, strict=True)
        ):
            named = [str(word) if size is None else str(size) for word, size in zip(wanted, known, strict=True)]
            raise ValueError(f"{operator}: {name} must have the shape ({', '.join(named)}), got {tuple(tensor.shape)}")
        for word, own in zip(wanted, tensor.shape, strict=True):
            if isinstance(word, str):
                sizes[word] = own
        if device is not None and tensor.device != device:
            raise ValueError(f"{operator}: {name} is on {tensor.device}, the tensors before it on {device}")
        device = tensor.device


def _size(word: int | str, sizes: dict[str, int]) -> int | None:
    """What a part of a shape stands for, None if that is not known yet."""
    if not isinstance(word, str):
        return word
    return int(word) if word.isdigit() else sizes.get(word)


def check_gradients(operator: str, **pairs: tuple[Tensor, Tensor]) -> None:
    """Check that each gradient has the shape of the tensor whose gradient it is."""
    check_tensors(operator, **{name: (grad, tensor.shape) for name, (grad, tensor) in pairs.items()})


def check_whole(operator: str, least: int, **values: Any) -> None:
    """Check that values are whole numbers of `least` or more."""
    if not is_exporting():
        for name, value in values.items():
            check_int(f"{operator}: {name}", value, least)


def check_numbers(operator: str, least: float, above: bool = False, **values: Any) -> None:
    """Check that values are finite numbers of `least` or more, or `above` it."""
    if not is_exporting():
        for name, value in values.items():
            check_number(f"{operator}: {name}", value, least, above=above)


def check_no_nan(operator: str, **tensors: Tensor) -> None:
    """Check that no element is NaN: which of two boxes is better would be left to chance.

    Raises:
        ValueError: Naming the tensor and how many rows have one.
    """
    for name, tensor in tensors.items():

        def message(name: str = name, tensor: Tensor = tensor) -> str:
            bad = int(tensor.isnan().reshape(len(tensor), -1).any(1).sum())
            return f"{operator}: {name} is NaN in {bad} of {len(tensor)} rows"

        _demand(tensor, lambda values: ~values.isnan(), message, f"{operator}: {name} has a NaN")


def check_indices(operator: str, least: int, below: int, **indices: Tensor) -> None:
    """Check that whole numbers lie in a range.

    Raises:
        ValueError: Naming the tensor, its values at the ends and the range.
    """
    for name, index in indices.items():

        def message(name: str = name, index: Tensor = index) -> str:
            low, high = (int(end) for end in index.aminmax())
            return f"{operator}: {name} must be from {least} to {below - 1}, got {low} to {high}"

        _demand(
            index,
            lambda values: (values >= least) & (values < below),
            message,
            f"{operator}: {name} has a number that is out of its range",
        )


def check_regions(operator: str, rois: Tensor, batch: int) -> None:
    """Check regions `(R, 5)`, of shape and dtype known, before an operator goes where they point.

    Args:
        operator: Its name, for the error.
        rois: Batch index and corners in image pixels.
        batch: Images.

    Raises:
        ValueError: A value that is not finite, or an index that is no image of the batch.
    """

    def message() -> str:
        low, high = (float(end) for end in rois[:, 0].aminmax())
        return (
            f"{operator}: rois[:, 0] must be whole numbers below the {batch} images of the batch, got {low} to {high}"
        )

    unbounded = f"{operator}: rois has values that are not finite"
    _demand(rois, torch.isfinite, lambda: unbounded, unbounded)
    _demand(
        rois,
        lambda values: (values[:, 0] >= 0) & (values[:, 0] < batch) & (values[:, 0] == values[:, 0].floor()),
        message,
        f"{operator}: rois[:, 0] has a number that is no image of the batch",
    )


def check_samples(
    operator: str, rois: Tensor, bins: tuple[int, int], spatial_scale: float, sampling_ratio: int
) -> None:
    """Check that what RoIAlign would list before it takes its samples can be held, for regions that are finite.

    Raises:
        ValueError: With the samples that the largest region would take.
    """

    def samples(values: Tensor) -> Tensor:
        if sampling_ratio > 0:
            a_bin = values.new_full((len(values),), sampling_ratio, dtype=torch.float64).square()
        else:
            size = (values[:, 3:].double() - values[:, 1:3].double()) * spatial_scale
            a_bin = torch.stack([size[:, i] / bins[1 - i] for i in (0, 1)], 1).ceil().clamp_min(1).prod(1)
        return a_bin * bins[0] * bins[1]

    def message() -> str:
        return f"{operator}: a region takes {float(samples(rois).max()):.3g} samples, the most are {_MOST_SAMPLES}"

    _demand(
        rois,
        lambda values: samples(values) <= _MOST_SAMPLES,
        message,
        f"{operator}: a region takes more than {_MOST_SAMPLES} samples",
    )
