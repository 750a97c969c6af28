"""Boxes, masks and label maps drawn into images with PIL."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def default_palette(count: int) -> list[Colour]:
    """`count` colours of even brightness, neighbours far apart in hue."""
    golden = 0.618034
    colours = (colorsys.hsv_to_rgb(index * golden % 1, 0.75, 0.95) for index in range(count))
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colours]


def draw_labels(
    image: np.ndarray, labels: np.ndarray, names: Sequence[str], palette: Sequence[Colour], opacity: float = 0.5
) -> np.ndarray:
    """Lay a segmentation map over an image, with a legend of the classes in it.

    Args:
        image: (H, W, 3), uint8, RGB.
        labels: (H, W) of class indices; those outside `names` are left as they are.
        names: Class names.
        palette: A colour per class.
        opacity: Of the overlay, in 0…1.

    Returns:
        (H, W, 3), uint8, RGB.
    """
    inside = (labels >= 0) & (labels < len(names))
    colours = np.asarray(palette, np.float32)[np.where(inside, labels, 0)]
    mixed = np.where(inside[..., None], (1 - opacity) * image + opacity * colours, image)
    canvas = Image.fromarray(mixed.round().astype(np.uint8))
    draw, font = ImageDraw.Draw(canvas), font_of(image.shape)
    top = 1
    for index in np.unique(labels[inside]):
        top += draw_plate(draw, font, (1, top), names[index], palette[index], image.shape)
    return np.asarray(canvas)


def draw_instances(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    palette: Sequence[Colour],
    scores: np.ndarray | None = None,
    masks: np.ndarray | None = None,
    opacity: float = 0.45,
) -> np.ndarray:
    """Draw boxes, and masks where given, with class names and scores; the best last, so that nothing hides it.

    Args:
        image: (H, W, 3), uint8, RGB.
        boxes: (N, 4) as x1, y1, x2, y2, in pixels.
        labels: (N,) of class indices.
        names: Class names.
        palette: A colour per class.
        scores: (N,) in 0…1.
        masks: (N, H, W), bool.
        opacity: Of the masks, in 0…1.

    Returns:
        (H, W, 3), uint8, RGB.
    """
    pixels = image.astype(np.float32)
    for mask, label in zip(masks if masks is not None else (), labels, strict=False):
        pixels[mask] = (1 - opacity) * pixels[mask] + opacity * np.asarray(palette[label], np.float32)
    canvas = Image.fromarray(pixels.round().astype(np.uint8))
    draw, font = ImageDraw.Draw(canvas), font_of(image.shape)
    width = max(1, round(min(image.shape[:2]) / 200))
    for index in range(len(boxes)) if scores is None else np.argsort(scores, kind="stable"):
        left, top, right, bottom = (float(value) for value in boxes[index])
        label = labels[index]
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=palette[label], width=width)
        text = names[label] if scores is None else f"{names[label]} {scores[index]:.2f}"
        height = round(draw.textbbox((0, 0), text, font=font)[3]) + 3
        # Beside the object, not on it.
        draw_plate(draw, font, (left, top - height if top >= height else bottom), text, palette[label], image.shape)
    return np.asarray(canvas)


def font_of(shape: tuple[int, ...]) -> Font:
    """The font for labels in a picture of a shape (H, W, ...)."""
    return ImageFont.load_default(size=min(28, max(10, round(min(shape[:2]) / 22))))


def draw_plate(
    draw: ImageDraw.ImageDraw,
    font: Font,
    corner: tuple[float, float],
    text: str,
    colour: Colour,
    shape: tuple[int, ...],
) -> int:
    """Write on a plate of the class's colour, inside the picture; return the plate's height in pixels."""
    _, _, right, bottom = (round(value) for value in draw.textbbox((0, 0), text, font=font))
    right, bottom = right + 3, bottom + 3
    x = max(0, min(round(corner[0]), shape[1] - right))
    y = max(0, min(round(corner[1]), shape[0] - bottom))
    dark = sum(weight * value for weight, value in zip((0.3, 0.59, 0.11), colour, strict=True)) < 128
    draw.rectangle((x, y, x + right, y + bottom), fill=colour)
    draw.text((x + 2, y), text, font=font, fill="white" if dark else "black")
    return bottom + 1
