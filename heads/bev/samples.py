"""What a detector reads of data samples: calibration, motion and depth, checked, as tensors of a batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

from .motion import CAN_BUS

# Relative to the product of a matrix's row lengths: of what is smaller two rows point in one direction.
_SINGULAR = 1e-9


class FrameData:
    """Calibration and motion of the frames of a batch.

    Args:
        samples: With metainfo `lidar2img` (N, 4, 4) or (frames, N, 4, 4), `can_bus` (18,) or (frames, 18), and
            `has_previous` (frames,), whether the frame before is the scene's previous one; if that is missing all but
            the first have one.
        frames: How many each sample has, oldest first.
        cameras: How many each frame has.
        device: Of the tensors.
        dtype: Of the tensors.

    Attributes:
        lidar2img: (B, frames, N, 4, 4).
        can_bus: (B, frames, 18).
        has_previous: (B, frames) bool.

    Raises:
        ValueError: Something is missing, has another shape or is not finite, or a camera matrix is singular; the sample
            and the field are named.
    """

    def __init__(
        self,
        samples: Sequence[BaseDataElement],
        frames: int,
        cameras: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        lidar2img, can_bus, has_previous = [], [], []
        for i, sample in enumerate(samples):
            matrices = _field(sample, i, "lidar2img", (frames, cameras, 4, 4), ("frames", "cameras", "4", "4"))
            scale = np.linalg.norm(matrices[..., :3, :3], axis=-1).prod(-1)
            flat = np.abs(np.linalg.det(matrices[..., :3, :3])) <= _SINGULAR * scale
            if flat.any():
                frame, camera = np.argwhere(flat)[0].tolist()
                raise ValueError(f"{_name(sample, i)}: lidar2img of frame {frame}, camera {camera} is singular")
            lidar2img.append(matrices)
            can_bus.append(_field(sample, i, "can_bus", (frames, CAN_BUS), ("frames", "18")))
            known = sample.get("has_previous")
            known = [True] * frames if known is None else np.asarray(known, dtype=bool).reshape(-1).tolist()
            if len(known) != frames:
                raise ValueError(f"{_name(sample, i)}: has_previous must be of {frames} frames, got {len(known)}")
            has_previous.append(known)
        self.lidar2img = torch.as_tensor(np.stack(lidar2img), dtype=dtype).to(device)
        self.can_bus = torch.as_tensor(np.stack(can_bus), dtype=dtype).to(device)
        self.has_previous = torch.tensor(has_previous, device=device)


def annotations(samples: Sequence[BaseDataElement], field: str, purpose: str) -> list[Any]:
    """A field of every sample.

    Raises:
        ValueError: A sample lacks it; the sample, the field and `purpose` are named.
    """
    for i, sample in enumerate(samples):
        if field not in sample:
            raise ValueError(f"{_name(sample, i)}: has no {field}, which {purpose} needs")
    return [sample.get(field) for sample in samples]


def depth_maps(samples: Sequence[BaseDataElement], frames: int, purpose: str) -> Tensor:
    """`gt_depth` of the last `frames` frames of all samples, (B, frames, N, H, W).

    Raises:
        ValueError: A sample lacks it, or has fewer frames.
    """
    maps = [depth[None] if depth.dim() == 3 else depth for depth in annotations(samples, "gt_depth", purpose)]
    for i, depth in enumerate(maps):
        if depth.dim() != 4 or depth.shape[0] < frames:
            raise ValueError(
                f"{_name(samples[i], i)}: gt_depth must be (frames, cameras, H, W) of {frames} frames, which {purpose} "
                f"needs, got shape {tuple(depth.shape)}"
            )
    return torch.stack([depth[-frames:] for depth in maps])


def _field(sample: BaseDataElement, i: int, name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> np.ndarray:
    """A field of numbers as an array; of one frame the first axis may be left out."""
    if name not in sample:
        raise ValueError(f"{_name(sample, i)}: has no {name}")
    value = sample.get(name)
    array = np.asarray(value.cpu() if isinstance(value, Tensor) else value, dtype=np.float64)
    if shape[0] == 1 and array.shape == shape[1:]:
        array = array[None]
    if array.shape != shape:
        wanted = ", ".join(axis if axis.isdigit() else f"{axis}={n}" for axis, n in zip(axes, shape, strict=True))
        raise ValueError(f"{_name(sample, i)}: {name} must be ({wanted}), got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{_name(sample, i)}: {name} has numbers that are not finite")
    return array


def _name(sample: BaseDataElement, i: int) -> str:
    """How errors call a sample: by its token, or its place in the batch."""
    token = sample.get("token")
    return f"sample {i} of the batch" if token is None else f"sample {token}"
