"""3-D boxes drawn into the views of a vehicle's cameras and into a bird's-eye view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from ...heads.bev.nuscenes.boxes import boxes_of_rows
from .drawing import Colour, Font, draw_plate, font_of

# Of nuScenes' classes: far apart from each other, and bright on a street.
PALETTE: dict[str, Colour] = {
    "car": (255, 84, 60), "truck": (255, 165, 0), "construction_vehicle": (160, 120, 70), "bus": (196, 92, 255),
    "trailer": (255, 130, 190), "barrier": (240, 240, 240), "motorcycle": (0, 205, 180), "bicycle": (60, 225, 80),
    "pedestrian": (70, 160, 255), "traffic_cone": (255, 240, 70),
}  # fmt: skip

# Where a camera's view stands, by row and column; cameras with other names follow each other.
_PLACES = {
    "CAM_FRONT_LEFT": (0, 0), "CAM_FRONT": (0, 1), "CAM_FRONT_RIGHT": (0, 2),
    "CAM_BACK_LEFT": (1, 0), "CAM_BACK": (1, 1), "CAM_BACK_RIGHT": (1, 2),
}  # fmt: skip
_COLUMNS = 3
_NEAR = 0.1  # metres; what is nearer is cut off
_GAP = 8  # pixels between pictures
_MARGIN = 30  # pixels above a row, for its title
_VIEW = 420  # least width of a view in pixels; smaller images are enlarged
# Of the vehicle of the sensors in the LiDAR's frame: half its width and length, and how far its middle is ahead.
_EGO = (0.87, 2.04, 0.39)
_GROUND, _GRID, _PAPER = (38, 42, 48), (62, 67, 74), (255, 255, 255)
# Corners of a face, and of the edges, in the order of `Boxes.corners`: the first four are the front.
_FRONT = (0, 1, 2, 3)
_EDGES = (
    [(i, (i + 1) % 4) for i in range(4)] + [(4 + i, 4 + (i + 1) % 4) for i in range(4)] + [(i, i + 4) for i in range(4)]
)


@dataclass(frozen=True)
class Boxes3D:
    """Boxes to be drawn.

    Attributes:
        rows: (N, 9) of x, y, z, width, length, height, yaw, and velocity along x and y, as the heads have them.
        labels: (N,) of class indices.
        scores: (N,) in 0…1, None for true boxes.
        layers: Masks (rows, columns) of the bird's-eye view below the boxes with their colours, the lowest first; row 0
            is y minimum, column 0 x minimum.
    """

    rows: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None
    layers: Sequence[tuple[np.ndarray, Colour]] = field(default_factory=list)


def draw_drive(
    images: Sequence[np.ndarray],
    cameras: Sequence[str],
    lidar2img: np.ndarray,
    boxes: dict[str, Boxes3D],
    bounds: tuple[float, float, float, float],
    names: Sequence[str],
    palette: Sequence[Colour],
) -> np.ndarray:
    """One picture of a sample: the views of all cameras with boxes, beside the bird's-eye view.

    Args:
        images: (H, W, 3) of each camera, uint8, RGB.
        cameras: The cameras' names; nuScenes' stand where they look.
        lidar2img: (cameras, 4, 4), from the LiDAR's frame to (u depth, v depth, depth, 1) in pixels of the images.
        boxes: What to draw by its title, one row of the picture each, as `{"truth": …, "prediction": …}`.
        bounds: Least x, least y, largest x and largest y of the bird's-eye view in metres.
        names: Class names.
        palette: A colour per class.

    Returns:
        (H, W, 3), uint8, RGB.
    """
    rows = []
    for found in boxes.values():
        views = [draw_view(*view, found, names, palette) for view in zip(images, lidar2img, strict=True)]
        grid = _grid(views, cameras)
        # As high as the views, and as wide as its bounds ask.
        height = grid.shape[0]
        width = round(height * (bounds[2] - bounds[0]) / (bounds[3] - bounds[1]))
        rows.append(_joined([grid, draw_bev(found, bounds, (width, height), palette)], 1))
    present = sorted({int(label) for found in boxes.values() for label in found.labels})
    legend = _legend(rows[0].shape[1], [names[i] for i in present], [palette[i] for i in present])
    titled = [part for title, row in zip(boxes, rows, strict=True) for part in (_title(title, row.shape[1]), row)]
    return np.concatenate([*titled, legend])


def draw_view(
    image: np.ndarray, lidar2img: np.ndarray, boxes: Boxes3D, names: Sequence[str], palette: Sequence[Colour]
) -> np.ndarray:
    """Draw boxes into the view of a camera: edges, the front filled; the nearest last, with names where there is room.

    Args:
        image: (H, W, 3), uint8, RGB; enlarged if it is small.
        lidar2img: (4, 4), from the LiDAR's frame to (u depth, v depth, depth, 1) in pixels of the image.
        boxes: The boxes.
        names: Class names.
        palette: A colour per class.

    Returns:
        The picture (H, W, 3), uint8, RGB.
    """
    scale = max(1.0, _VIEW / image.shape[1])
    size = round(scale * image.shape[1]), round(scale * image.shape[0])
    canvas = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    draw, font = ImageDraw.Draw(canvas, "RGBA"), font_of((size[1], size[0]))
    corners = boxes_of_rows(boxes.rows).corners()
    # (N, 8, 3): u depth, v depth and depth.
    seen = corners @ lidar2img[:3, :3].T + lidar2img[:3, 3]
    seen[..., :2] *= scale
    for index in np.argsort(-seen[..., 2].mean(-1), kind="stable"):
        outline = [_ahead(seen[index][list(edge)]) for edge in _EDGES]
        points = np.concatenate(outline)
        if not len(points) or not _meets(points, size):
            continue
        colour = palette[boxes.labels[index]]
        front = _ahead(seen[index][list(_FRONT)])
        if len(front) > 2:
            draw.polygon([tuple(point) for point in front], fill=(*colour, 90))
        for edge in outline:
            if len(edge) == 2:
                draw.line([tuple(point) for point in edge], fill=(*colour, 255), width=1)
        _write(draw, font, points, _label(boxes, index, names), colour, size)
    return np.asarray(canvas)


def _label(boxes: Boxes3D, index: int, names: Sequence[str]) -> str:
    name = names[boxes.labels[index]].replace("_", " ")
    return name if boxes.scores is None else f"{name} {boxes.scores[index]:.2f}"


def _write(
    draw: ImageDraw.ImageDraw, font: Font, points: np.ndarray, text: str, colour: Colour, size: tuple[int, int]
) -> None:
    """Name a box above it, where it is at least as wide as its name."""
    (left, top), (right, _) = points.min(0), points.max(0)
    _, _, wide, high = draw.textbbox((0, 0), text, font=font)
    left, right = max(left, 0), min(right, size[0])
    if right - left >= wide and top > high:
        draw_plate(draw, font, (left, top - high - 4), text, colour, size[::-1])


def _meets(points: np.ndarray, size: tuple[int, int]) -> bool:
    return bool((points.max(0) > 0).all() and (points.min(0) < size).all())


def _ahead(seen: np.ndarray) -> np.ndarray:
    """The part of a polygon or edge (N, 3), in depths, that is before the camera, in pixels (M, 2)."""
    kept = []
    for here, there in zip(seen, np.roll(seen, -1, axis=0), strict=True):
        if here[2] > _NEAR:
            kept.append(here)
        if (here[2] > _NEAR) != (there[2] > _NEAR):
            kept.append(here + (_NEAR - here[2]) / (there[2] - here[2]) * (there - here))
    # An edge goes there and back: its cut is found twice.
    points = np.array(kept[: len(seen)] if len(seen) == 2 else kept).reshape(-1, 3)
    # PIL takes no coordinates of any size.
    return np.clip(points[:, :2] / points[:, 2:], -1e5, 1e5)


def draw_bev(
    boxes: Boxes3D, bounds: tuple[float, float, float, float], size: tuple[int, int], palette: Sequence[Colour]
) -> np.ndarray:
    """Draw boxes seen from above, with their front as a thick edge and a line for where they go in a second.

    Args:
        boxes: The boxes, and masks below them.
        bounds: Least x, least y, largest x and largest y in metres; x to the right, y upwards.
        size: Width and height of the picture.
        palette: A colour per class.

    Returns:
        (H, W, 3), uint8, RGB.
    """
    canvas = Image.new("RGB", size, _GROUND)
    for mask, colour in boxes.layers:
        stencil = Image.fromarray((255 * np.asarray(mask, bool)[::-1]).astype(np.uint8))
        stencil = stencil.resize(size, Image.Resampling.NEAREST)
        canvas.paste(colour, (0, 0), stencil)
    draw = ImageDraw.Draw(canvas, "RGBA")
    scale = np.array([size[0] / (bounds[2] - bounds[0]), size[1] / (bounds[3] - bounds[1])])

    def pixels(points: np.ndarray) -> list[tuple[float, float]]:
        x, y = ((points - np.array(bounds[:2])) * scale).T
        return list(zip(x.tolist(), (size[1] - y).tolist(), strict=True))

    for radius in range(10, round(max(map(abs, bounds))), 10):
        draw.ellipse(
            [*pixels(np.array([[-radius, radius]]))[0], *pixels(np.array([[radius, -radius]]))[0]], outline=_GRID
        )
    half_width, half_length, ahead = _EGO
    ego = np.array(
        [[x * half_width, ahead + y * half_length] for x, y in ((-1, -1), (1, -1), (1, 1), (0, 1.4), (-1, 1))]
    )
    draw.polygon(pixels(ego), fill=(235, 235, 235), outline=(0, 0, 0))
    order = np.arange(len(boxes.rows)) if boxes.scores is None else np.argsort(boxes.scores, kind="stable")
    corners = boxes_of_rows(boxes.rows).corners()[..., :2]
    for index in order:
        colour = palette[boxes.labels[index]]
        # Around the box: front left and right, back right and left.
        outline = pixels(corners[index][[0, 1, 5, 4]])
        draw.polygon(outline, fill=(*colour, 110))
        draw.line([*outline, outline[0]], fill=(*colour, 255), width=1)
        draw.line(outline[:2], fill=(*colour, 255), width=3)
        middle, velocity = boxes.rows[index][:2], boxes.rows[index][7:]
        if np.isfinite(velocity).all() and np.hypot(*velocity) > 0.3:
            draw.line(pixels(np.stack([middle, middle + velocity])), fill=(255, 255, 255, 200), width=1)
    return np.asarray(canvas)


def _grid(views: list[np.ndarray], cameras: Sequence[str]) -> np.ndarray:
    """The views side by side, those of nuScenes' cameras where they look, others in their order."""
    places = [_PLACES[name] for name in cameras if name in _PLACES]
    if len(set(places)) < len(views):
        places = [divmod(index, _COLUMNS) for index in range(len(views))]
    (height, width), rows = views[0].shape[:2], 1 + max(row for row, _ in places)
    columns = 1 + max(column for _, column in places)
    shape = rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP
    sheet = Image.new("RGB", shape[::-1], _PAPER)
    for view, (row, column) in zip(views, places, strict=True):
        sheet.paste(Image.fromarray(view), (column * (width + _GAP), row * (height + _GAP)))
    return np.asarray(sheet)


def _joined(pictures: list[np.ndarray], axis: int) -> np.ndarray:
    """Two pictures with a gap between them."""
    first, second = pictures
    gap = np.full((first.shape[0], _GAP, 3), 255, np.uint8)
    return np.concatenate([first, gap, second], axis)


def _title(text: str, width: int) -> np.ndarray:
    canvas = Image.new("RGB", (width, _MARGIN), _PAPER)
    ImageDraw.Draw(canvas).text((2, 6), text, font=font_of((440, 440)), fill="black")
    return np.asarray(canvas)


def _legend(width: int, names: list[str], colours: list[Colour]) -> np.ndarray:
    canvas = Image.new("RGB", (width, _MARGIN), _PAPER)
    draw, font, left = ImageDraw.Draw(canvas), font_of((440, 440)), 2
    for name, colour in zip(names, colours, strict=True):
        draw.rectangle((left, 9, left + 14, 23), fill=colour)
        draw.text((left + 20, 5), name.replace("_", " "), font=font, fill="black")
        left += 40 + round(draw.textlength(name, font=font))
    return np.asarray(canvas)
