"""A ray caster: the ground, and objects made of upright boxes, seen by a pinhole camera.

Rays of a camera have length 1 along its axis, so that how far they go is the depth, in metres. Angles, colours and
poses are those of `scene`, `shapes` and `ground`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .ground import HAZE, Ground, level_of
from .scene import Scene
from .shapes import BOTTOM, TOP, Shape

# Samples of a pixel along each side.
_FINE = 2
_NEAR = 0.05  # metres; nothing nearer is seen
_GROUND_FAR = 180.0  # metres; beyond it is the horizon
_SHADOW = 0.55  # of the light that is left in it
# Edges of a box between its corners, numbered by the bits of x, y and z.
_EDGES = np.array([(i, i | bit) for bit in (1, 2, 4) for i in range(8) if not i & bit])


@dataclass(frozen=True)
class View:
    """What a camera sees, at each pixel (H, W) or at each sample of the pixels.

    Attributes:
        depth: In metres along the camera's axis, infinite in the sky.
        instance: Index of the object, -1 for ground and sky.
        colour: (3, H, W), float32, RGB in 0…1.
        whole: Pixels that each object (N,) would have without the others before it, int64.
    """

    depth: np.ndarray
    instance: np.ndarray
    colour: np.ndarray
    whole: np.ndarray


def cast(
    scene: Scene,
    ground: Ground,
    boxes: np.ndarray,
    place: np.ndarray,
    axes: np.ndarray,
    intrinsic: np.ndarray,
    image_size: tuple[int, int],
) -> View:
    """Send a ray through the middle of each pixel.

    Args:
        scene: The scene.
        ground: Its ground.
        boxes: x, y and yaw (N, 3) of its objects.
        place: Of the camera in the global frame (3,).
        axes: Rotation matrix (3, 3) from the camera's frame to the global one.
        intrinsic: (3, 3), in pixels: the middle of the first pixel is at 0.5.
        image_size: Width and height in pixels.
    """
    width, height = image_size
    u = ((np.arange(width) + 0.5 - intrinsic[0, 2]) / intrinsic[0, 0]).astype(np.float32)
    v = ((np.arange(height) + 0.5 - intrinsic[1, 2]) / intrinsic[1, 1]).astype(np.float32)
    turn = axes.astype(np.float32)
    # Products by hand: a matrix product may add up in another order on another number of threads.
    rays = turn[:, 2, None, None] + turn[:, 0, None, None] * u + turn[:, 1, None, None] * v[:, None]

    depth, colour = _background(scene, ground, boxes, place, rays, intrinsic, image_size, axes)
    instance = np.full((height, width), -1, np.int16)
    whole = np.zeros(len(boxes), np.int64)
    # The nearest first: what is behind them is then not looked up.
    for index in np.argsort(np.hypot(*(boxes[:, :2] - place[:2]).T), kind="stable"):
        shape, box = scene.objects[index].shape, boxes[index]
        window = _window(_corners(shape, box), place, axes, intrinsic, image_size)
        if window is None:
            continue
        local = local_rays(shape, box, place, rays[(slice(None), *window)])
        hit, part = first_hits(shape, *local)
        whole[index] = np.isfinite(hit).sum()
        seen = hit < depth[window]
        if seen.any():
            depth[window][seen] = hit[seen]
            instance[window][seen] = index
            distance = float(np.linalg.norm(np.append(box[:2], shape.middle) - place))
            level = _texture_level(shape, distance / float(intrinsic[0, 0]))
            rays_seen: Any = tuple(axis[seen] for axis in local[1])
            surface = surface_colour(shape, part[seen], local[0], rays_seen, hit[seen], level)
            light = _light(scene, box[2])
            colour[(slice(None), *window)][:, seen] = surface[0] * light[surface[1]]
    fog = np.exp(-depth * np.float32(scene.haze / 100))
    sky = np.isinf(depth)
    fog[sky] = 1
    colour = scene.brightness * (colour * fog + HAZE[:, None, None] * (1 - fog))
    return View(depth, instance, colour.clip(0, 1), whole)


def render(
    scene: Scene,
    ground: Ground,
    boxes: np.ndarray,
    place: np.ndarray,
    axes: np.ndarray,
    intrinsic: np.ndarray,
    image_size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Take a picture, with 2 × 2 rays a pixel; arguments as of `cast`.

    Returns:
        The image (H, W, 3), uint8, RGB; the samples in which each object (N,) is seen; and those in which it would be
        seen without the others before it.
    """
    width, height = image_size
    fine = intrinsic * np.array([[_FINE], [_FINE], [1]])
    view = cast(scene, ground, boxes, place, axes, fine, (_FINE * width, _FINE * height))
    # Sums of slices, since a mean over axes inside takes a quarter of all the time.
    corners = [view.colour[:, i::_FINE, j::_FINE] for i in range(_FINE) for j in range(_FINE)]
    image = sum(corners[1:], corners[0]) / len(corners)
    seen = np.bincount(view.instance[view.instance >= 0], minlength=len(boxes))
    return (255 * image).round().astype(np.uint8).transpose(1, 2, 0), seen, view.whole


def _background(
    scene: Scene,
    ground: Ground,
    boxes: np.ndarray,
    place: np.ndarray,
    rays: np.ndarray,
    intrinsic: np.ndarray,
    image_size: tuple[int, int],
    axes: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Depth (H, W) and colour (3, H, W) of ground and sky, with shadows."""
    with np.errstate(divide="ignore"):
        depth = np.float32(-place[2]) / rays[2]
    on_ground = (depth > 0) & (depth < _GROUND_FAR)
    depth[~on_ground] = np.inf
    far = depth[on_ground]
    x, y = (np.float32(place[i]) + far * rays[i][on_ground] for i in range(2))
    # Between the size of a pixel across the ray and along the ground.
    across = far / np.float32(intrinsic[0, 0])
    along = across * far / np.float32(place[2])
    colour = np.empty(rays.shape, np.float32)
    colour[:, on_ground] = ground.colour(x, y, level_of(np.sqrt(across * along)))
    colour[:, ~on_ground] = ground.sky(rays[:, ~on_ground])
    for item, box in zip(scene.objects, boxes, strict=True):
        if np.hypot(*(box[:2] - place[:2])) > 60:
            continue
        height = item.shape.size[2]
        shift = -scene.sun[:2] / scene.sun[2] * height
        base = _corners(item.shape, box)[:4]
        base[:, 2] = 0
        window = _window(np.concatenate([base, base + np.append(shift, 0)]), place, axes, intrinsic, image_size)
        if window is not None:
            shaded = _shaded(item.shape, box, place, rays[(slice(None), *window)], depth[window], scene.sun)
            colour[(slice(None), *window)][:, shaded] *= _SHADOW
    return depth, colour


def _shaded(
    shape: Shape, box: np.ndarray, place: np.ndarray, rays: np.ndarray, depth: np.ndarray, sun: np.ndarray
) -> np.ndarray:
    """Where the ground at a depth (h, w) lies in the shadow of a box."""
    (ox, oy, _), (rx, ry, _) = local_rays(shape, box, place, rays)
    cos, sin = np.cos(box[2]), np.sin(box[2])
    toward = (cos * sun[0] + sin * sun[1]) / sun[2], (cos * sun[1] - sin * sun[0]) / sun[2]
    low, high = np.float32(0), np.float32(shape.size[2])
    finite = np.where(np.isinf(depth), 0, depth)
    # The way up to the sun, by height: where it is above the box's footprint.
    for origin, ray, way, half in ((ox, rx, toward[0], shape.size[1] / 2), (oy, ry, toward[1], shape.size[0] / 2)):
        point = origin + ray * finite
        way = np.float32(way if abs(way) > 1e-6 else 1e-6)
        ends = (np.float32(-half) - point) / way, (np.float32(half) - point) / way
        low, high = np.maximum(low, np.minimum(*ends)), np.minimum(high, np.maximum(*ends))
    return (low < high) & np.isfinite(depth)


def _corners(shape: Shape, box: np.ndarray) -> np.ndarray:
    """The corners (8, 3) of an object's box in the global frame, numbered by the bits of x, y and z."""
    bits = np.arange(8)[:, None] >> np.arange(3) & 1
    width, length, height = shape.size
    local = (bits - 0.5) * np.array([length, width, height])
    cos, sin = np.cos(box[2]), np.sin(box[2])
    x, y = box[0] + cos * local[:, 0] - sin * local[:, 1], box[1] + sin * local[:, 0] + cos * local[:, 1]
    return np.stack([x, y, local[:, 2] + shape.middle], -1)


def _window(
    corners: np.ndarray, place: np.ndarray, axes: np.ndarray, intrinsic: np.ndarray, image_size: tuple[int, int]
) -> tuple[slice, slice] | None:
    """The rows and columns of an image in which the hull of eight corners may be seen, None if it is not."""
    points = (corners - place) @ axes
    ahead = points[:, 2] > _NEAR
    if not ahead.any():
        return None
    if not ahead.all():
        # Edges are cut where they pass behind the camera. Of flat corners too: more edges than are there do no harm.
        first, second = points[_EDGES].swapaxes(0, 1)
        cut = (first[:, 2] > _NEAR) != (second[:, 2] > _NEAR)
        share = (_NEAR - first[cut, 2]) / (second[cut, 2] - first[cut, 2])
        points = np.concatenate([points[ahead], first[cut] + share[:, None] * (second[cut] - first[cut])])
    pixels = points[:, :2] / points[:, 2:] * intrinsic[[0, 1], [0, 1]] + intrinsic[:2, 2]
    (left, top), (right, bottom) = np.floor(pixels.min(0)), np.ceil(pixels.max(0))
    left, right = (int(np.clip(value, 0, image_size[0])) for value in (left, right))
    top, bottom = (int(np.clip(value, 0, image_size[1])) for value in (top, bottom))
    return (slice(top, bottom), slice(left, right)) if left < right and top < bottom else None


# Three numbers or arrays: along x, y and z in the frame of an object.
Local = tuple[Any, Any, Any]


def local_rays(shape: Shape, box: np.ndarray, place: np.ndarray, rays: np.ndarray) -> tuple[Local, Local]:
    """Origin (three numbers) and directions (three arrays) of rays (3, ...) in the frame of an object."""
    cos, sin = np.float32(np.cos(box[2])), np.float32(np.sin(box[2]))
    x, y = (np.float32(place[i] - box[i]) for i in range(2))
    origin = cos * x + sin * y, cos * y - sin * x, np.float32(place[2] - shape.middle)
    return origin, (cos * rays[0] + sin * rays[1], cos * rays[1] - sin * rays[0], rays[2])


def first_hits(shape: Shape, origin: Local, rays: Local) -> tuple[np.ndarray, np.ndarray]:
    """Where rays in the frame of an object meet it first (slab test of each of its boxes).

    Returns:
        How many times its length a ray goes, infinite where it misses, and the part that it meets, int8.
    """
    best, part = np.full(rays[0].shape, np.inf, np.float32), np.zeros(rays[0].shape, np.int8)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = [1 / ray for ray in rays]
    for number, (low, high) in enumerate(shape.parts):
        enter, leave = np.full_like(best, _NEAR), np.full_like(best, np.inf)
        # An axis along which a ray does not go: infinite both, of equal sign where it passes beside the box.
        with np.errstate(invalid="ignore"):
            for axis in range(3):
                ends = (low[axis] - origin[axis]) * inverse[axis], (high[axis] - origin[axis]) * inverse[axis]
                enter, leave = np.maximum(enter, np.minimum(*ends)), np.minimum(leave, np.maximum(*ends))
            hit = (enter < leave) & (enter < best)
        best[hit] = enter[hit]
        part[hit] = number
    return best, part


def surface_colour(
    shape: Shape, part: np.ndarray, origin: Local, rays: Local, distance: np.ndarray, level: int
) -> tuple[np.ndarray, np.ndarray]:
    """What rays (n) see of an object that they meet.

    Args:
        shape: Of the object.
        part: Which part each meets (n,).
        origin: Of the rays, in the object's frame.
        rays: Their directions (n,), likewise.
        distance: How far they go (n,).
        level: Of the textures.

    Returns:
        Colours (3, n) without light, and the face (n,) that each meets.
    """
    low, high = shape.parts[part, 0], shape.parts[part, 1]
    point = np.stack([origin[i] + rays[i] * distance for i in range(3)], -1)
    share = (point - low) / (high - low)
    # The face is the one that the point lies on, of those that the ray comes towards.
    ahead = np.stack([ray < 0 for ray in rays], -1)
    off = np.abs(np.where(ahead, 1 - share, share)) * (high - low)
    axis = off.argmin(-1)
    face = 2 * axis + ~np.take_along_axis(ahead, axis[:, None], -1)[:, 0]
    texture = shape.textures[level]
    side = texture.shape[2]
    texel = (share * side).astype(np.int32).clip(0, side - 1)
    column, row = np.where(axis == 0, texel[:, 1], texel[:, 0]), np.where(axis == 2, texel[:, 1], texel[:, 2])
    return texture[part, face, row, column].T, face


def _texture_level(shape: Shape, pixel: float) -> int:
    """The level whose texels on an object are about as large as a pixel there, in metres."""
    texel = sum(shape.size) / 3 / shape.textures[0].shape[2]
    return int(np.clip(np.round(np.log2(max(pixel, 1e-6) / texel)), 0, len(shape.textures) - 1))


def _light(scene: Scene, yaw: float) -> np.ndarray:
    """How light each face (6,) of an object is: the more, the more it is turned to the sun."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    ahead, left = cos * scene.sun[0] + sin * scene.sun[1], cos * scene.sun[1] - sin * scene.sun[0]
    facing = np.zeros(6)
    facing[:TOP] = ahead, -ahead, left, -left
    facing[TOP], facing[BOTTOM] = scene.sun[2], 0
    return (0.62 + 0.5 * facing.clip(0)).astype(np.float32)
