"""What an exported model is traced and compared on: images, and of a model of several cameras all that it takes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .pictures import pictures

if TYPE_CHECKING:
    from torch import Tensor

# Of a stream: one without history, and one that has it.
FRAMES = 2


def images_shape(wrapper: Any, batch: int, size: tuple[int, int]) -> tuple[int, ...]:
    """Shape of the images that a traceable form takes, (B, 3, H, W) or (B, N, 3, H, W)."""
    return (batch, 3, *size) if wrapper.cameras is None else (batch, wrapper.cameras, 3, *size)


def trial(wrapper: Any, batch: int, size: tuple[int, int], image: np.ndarray | None, seed: int) -> list[dict[str, Any]]:
    """Inputs of a traceable form, of one call or, where it carries a state from call to call, of a stream.

    Args:
        wrapper: The form.
        batch: B.
        size: Height and width of the images.
        image: As of `pictures`.
        seed: Of what is random.

    Returns:
        Of each call the tensors by name. What is carried is random in all of them: that of the first call must not
        count.
    """
    if wrapper.cameras is None:
        return [{"images": pictures((batch, 3, *size), image, seed)}]
    return [_frame(wrapper, batch, size, image, seed * FRAMES + number, number > 0) for number in range(FRAMES)]


def _frame(
    wrapper: Any, batch: int, size: tuple[int, int], image: np.ndarray | None, seed: int, later: bool
) -> dict[str, Tensor]:
    """A frame of `TraceableBEVDetector`; a later one has history in all samples but the last of several."""
    import torch

    rng = np.random.default_rng(seed)
    images = pictures((batch * wrapper.cameras, 3, *size), image, seed).unflatten(0, (batch, wrapper.cameras))
    lidar2img = np.stack([_rig(rng, wrapper.cameras, size) for _ in range(batch)])
    can_bus = rng.normal(size=(batch, 18))
    # Up to two metres, any heading, and a turn of up to ten degrees.
    can_bus[:, :2] = rng.uniform(-2, 2, (batch, 2))
    can_bus[:, 16], can_bus[:, 17] = rng.uniform(0, 2 * math.pi, batch), rng.uniform(-10, 10, batch)
    history = rng.normal(size=(batch, *wrapper.history_shape))
    arrays = {"lidar2img": lidar2img, "can_bus": can_bus, "history": history}
    known = torch.tensor([later and (i < batch - 1 or batch == 1) for i in range(batch)])
    return {
        "images": images,
        **{name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()},
        "has_history": known,
    }


def _rig(rng: np.random.Generator, cameras: int, size: tuple[int, int]) -> np.ndarray:
    """Matrices (N, 4, 4) of cameras that look around from a vehicle, each a little off its place."""
    height, width = size
    matrices = np.zeros((cameras, 4, 4))
    for i, matrix in enumerate(matrices):
        yaw, pitch = 2 * math.pi * i / cameras + rng.normal() * 0.1, rng.normal() * 0.03
        level = np.array([math.cos(yaw), math.sin(yaw), 0])
        right = np.array([math.sin(yaw), -math.cos(yaw), 0])
        forward = math.cos(pitch) * level + np.array([0, 0, math.sin(pitch)])
        turn = np.stack((right, np.cross(forward, right), forward))
        place = level + rng.normal(size=3) * 0.2
        focal = width * rng.uniform(0.5, 0.9)
        camera = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
        matrix[:3, :3], matrix[:3, 3], matrix[3, 3] = camera @ turn, -camera @ turn @ place, 1
    return matrices
