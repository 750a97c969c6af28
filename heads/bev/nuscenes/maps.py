"""What is on the ground, as BEV maps: drivable surface and lines from nuScenes' map pictures, vehicles from boxes.

A map picture is a PNG of one channel, above 127 where the surface or line is, 10 pixels a metre. The pixel in row r and
column c of a picture of H rows is the point x = c / 10, y = (H - r) / 10 of the global frame, in metres: the first row
is the largest y, and the origin of the frame lies below the lower left corner, so that no other metadata is needed.
`map.json` has a row for each: `filename`, `category` (nuScenes has `semantic_prior` alone, what can be driven on) and
`log_tokens`, of the logs that drive on it.
"""

import os
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from .boxes import boxes_of_rows

# Of a metre.
PIXELS = 10
# Pictures that are kept, a bit a pixel.
_KEPT = 64


class GroundMap:
    """A map picture, a bit a pixel.

    Args:
        path: Of the picture.

    Attributes:
        shape: Rows and columns of the picture.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no picture.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{path}: there is no such map")
        # A map of a city has hundreds of millions of pixels, which Pillow refuses.
        picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if picture is None:
            raise ValueError(f"{path}: not a picture that can be read")
        self.shape: tuple[int, int] = picture.shape[:2]
        self._bits = np.packbits(picture > 127, axis=1)

    def at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Whether points of the global frame, in metres, are set; beyond the picture nothing is.

        Args:
            x: Any shape.
            y: Of the same shape.

        Returns:
            bool, of that shape.
        """
        column = np.rint(PIXELS * x).astype(np.int64)
        row = np.rint(self.shape[0] - PIXELS * y).astype(np.int64)
        inside = (row >= 0) & (row < self.shape[0]) & (column >= 0) & (column < self.shape[1])
        found = np.zeros(inside.shape, bool)
        row, column = row[inside], column[inside]
        found[inside] = self._bits[row, column >> 3] >> (7 - (column & 7)) & 1
        return found


@lru_cache(_KEPT)
def shared_map(path: str) -> GroundMap:
    """A map that the data sets of a process share."""
    return GroundMap(path)


class BEVGrid:
    """The cells of a BEV map, and points in each.

    Args:
        rows: Of y, upwards.
        columns: Of x.
        bounds: Least x, least y, largest x and largest y, in metres.
        spacing: The points of a cell lie at most this far from each other along an axis, in metres.
    """

    def __init__(self, rows: int, columns: int, bounds: Sequence[float], spacing: float = 1 / PIXELS) -> None:
        low, high = bounds[:2], bounds[2:]
        # A tiny part less, or rounding would add a point.
        fine = [
            max(1, int(np.ceil((high[i] - low[i]) / count / spacing - 1e-6))) for i, count in ((0, columns), (1, rows))
        ]
        self._split = rows, fine[1], columns, fine[0]
        x, y = (
            low[i] + (np.arange(count * fine[i]) + 0.5) / (count * fine[i]) * (high[i] - low[i])
            for i, count in ((0, columns), (1, rows))
        )
        self.x, self.y = (axis.ravel() for axis in np.broadcast_arrays(x, y[:, None]))

    def share(self, found: np.ndarray) -> np.ndarray:
        """Of points (points,), bool, the share of each cell that is set, (rows, columns), float32 in 0…1."""
        return found.astype(np.float32).reshape(self._split).mean((1, 3))

    def ground(self, ground: GroundMap, to_global: np.ndarray) -> np.ndarray:
        """The share of each cell that a map sets.

        Args:
            ground: The map.
            to_global: Matrix (4, 4) from the frame of the grid, such as the LiDAR's, to the global one.

        Returns:
            (rows, columns), float32 in 0…1.
        """
        x, y = (to_global[i, 0] * self.x + to_global[i, 1] * self.y + to_global[i, 3] for i in range(2))
        return self.share(ground.at(x, y))

    def boxes(self, rows: np.ndarray) -> np.ndarray:
        """The share of each cell that boxes cover.

        Args:
            rows: (N, 9), boxes as of `Boxes.rows`, in the frame of the grid.

        Returns:
            (rows, columns), float32 in 0…1.
        """
        covered = np.zeros(self.x.shape, bool)
        for x, y, z, width, length, *rest in rows.tolist():
            near = np.flatnonzero(np.abs(self.x - x) + np.abs(self.y - y) <= width + length)
            points = np.stack([self.x[near], self.y[near], np.full(len(near), z)], -1)
            covered[near] |= boxes_of_rows([[x, y, z, width, length, *rest]]).contain(points)[0]
        return self.share(covered)
