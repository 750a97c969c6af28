"""Maps in the style of nuScenes' semantic priors, which `heads.bev.nuscenes.maps` reads.

Surfaces of 255, lines 0.3 m wide. In `map.json` the category of what can be driven on is `semantic_prior`, as in
nuScenes, and that of lines between lanes `lane_divider`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ....heads.bev.nuscenes.maps import PIXELS

_LINE = 3  # pixels


def draw_map(
    extent: tuple[float, float], polygons: Sequence[np.ndarray] = (), lines: Sequence[np.ndarray] = ()
) -> np.ndarray:
    """Draw a map.

    Args:
        extent: Width and height of the ground from x = y = 0, in metres.
        polygons: Surfaces (N, 2), in metres.
        lines: Courses (N, 2), in metres.

    Returns:
        (H, W), uint8, of 0 and 255.
    """
    from PIL import Image, ImageDraw

    width, height = (round(PIXELS * side) for side in extent)
    image = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(image)
    for points in polygons:
        draw.polygon(_pixels(points, height), fill=255)
    for points in lines:
        draw.line(_pixels(points, height), fill=255, width=_LINE)
    return np.array(image)


def _pixels(points: np.ndarray, height: int) -> list[tuple[float, float]]:
    return [(float(PIXELS * x), float(height - PIXELS * y)) for x, y in points]
