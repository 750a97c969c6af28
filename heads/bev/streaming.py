"""The BEV map of the previous frame of each scene, between calls."""

from typing import NamedTuple

from torch import Tensor

# Scenes whose maps are kept at once: a map of 200 x 200 cells and 256 channels has 41 MB.
_SCENES = 8


class _Frame(NamedTuple):
    token: str
    bev: Tensor


class SceneMemory:
    """Keeps the last frame's map of the scenes that were seen most recently.

    A map serves the next frame of its scene alone: another scene has none, nor has a frame whose predecessor was left
    out.
    """

    def __init__(self) -> None:
        self._frames: dict[str, _Frame] = {}

    def previous(self, scene: str, previous: str) -> Tensor | None:
        """The map (Q, C) of a scene's frame, or None if that was not the last one of the scene.

        Args:
            scene: Token of the scene.
            previous: Token of the frame before, empty for the first of a scene.
        """
        frame = self._frames.get(scene)
        return frame.bev if frame is not None and previous and frame.token == previous else None

    def keep(self, scene: str, token: str, bev: Tensor) -> None:
        """Keep the map (Q, C) of a scene's frame in the place of the one before."""
        self._frames.pop(scene, None)
        self._frames[scene] = _Frame(token, bev.detach())
        while len(self._frames) > _SCENES:
            del self._frames[next(iter(self._frames))]

    def clear(self) -> None:
        """Forget all scenes."""
        self._frames.clear()


def rounds(scenes: list[str]) -> list[list[int]]:
    """Places of a batch's frames in rounds: each has one frame of a scene at most, in the batch's order."""
    found: list[list[int]] = []
    seen: dict[str, int] = {}
    for place, scene in enumerate(scenes):
        number = seen.get(scene, 0)
        seen[scene] = number + 1
        if number == len(found):
            found.append([])
        found[number].append(place)
    return found
