"""Quaternions (w, x, y, z), as nuScenes' tables hold them, on numpy arrays of float64.

All functions are vectorised over leading axes, which broadcast. A quaternion of any length but 0 stands for the
rotation of its unit quaternion; q and -q are the same rotation. Angles are in radians.
"""

import numpy as np
from numpy.typing import ArrayLike

# Above this cosine of the angle between two quaternions `slerp` is linear, as in pyquaternion, which nuScenes' devkit
# stands on: the sine that a true slerp divides by is near 0.
_LINEAR_ABOVE = 0.9995


def to_matrix(quaternion: ArrayLike) -> np.ndarray:
    """(..., 4) -> the rotation matrices (..., 3, 3).

    Raises:
        ValueError: For another shape, and for quaternions that are zero or not finite.
    """
    w, x, y, z = np.moveaxis(_unit(quaternion), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def from_matrix(matrix: ArrayLike) -> np.ndarray:
    """Rotation matrices (..., 3, 3) -> unit quaternions (..., 4), w not negative.

    Raises:
        ValueError: For another shape, and for matrices that are no rotations (to 1e-4).
    """
    m = np.asarray(matrix, np.float64)
    if m.shape[-2:] != (3, 3):
        raise ValueError(f"rotation matrices must have the shape (..., 3, 3), got {m.shape}")
    with np.errstate(invalid="ignore"):
        # Written so that NaN does not pass.
        orthogonal = np.abs(m @ np.swapaxes(m, -1, -2) - np.eye(3)).max((-1, -2), initial=0) < 1e-4
        right_handed = np.linalg.det(m) > 0
    if not (orthogonal & right_handed).all():
        raise ValueError("a rotation matrix must be orthogonal with determinant 1")
    # The products of all pairs of components, four times: row i is the quaternion times its component i. The row of
    # the largest component is the one that loses no digits.
    d0, d1, d2 = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    products = np.stack(
        [
            np.stack([1 + d0 + d1 + d2, wx, wy, wz], -1),
            np.stack([wx, 1 + d0 - d1 - d2, xy, xz], -1),
            np.stack([wy, xy, 1 - d0 + d1 - d2, yz], -1),
            np.stack([wz, xz, yz, 1 - d0 - d1 + d2], -1),
        ],
        -2,
    )
    largest = np.diagonal(products, axis1=-2, axis2=-1).argmax(-1)
    quaternion = _unit(np.take_along_axis(products, largest[..., None, None], -2)[..., 0, :])
    return np.where(quaternion[..., :1] < 0, -quaternion, quaternion)


def from_yaw(yaw: ArrayLike) -> np.ndarray:
    """Turns about z by `yaw` (...), anticlockwise seen from above -> unit quaternions (..., 4)."""
    half = np.asarray(yaw, np.float64) / 2
    zero = np.zeros_like(half)
    return np.stack([np.cos(half), zero, zero, np.sin(half)], -1)


def yaw_of(quaternion: ArrayLike) -> np.ndarray:
    """(..., 4) -> the angle (...) from x to the rotated x axis on the ground plane, anticlockwise, within [-pi, pi].

    nuScenes' metric has this yaw. With pitch or roll it is not the yaw of Euler angles. Of a quaternion of zeros it is
    0, as in nuScenes' devkit, and NaN of NaN.

    Raises:
        ValueError: For another shape.
    """
    w, x, y, z = np.moveaxis(_checked(quaternion), -1, 0)
    with np.errstate(invalid="ignore"):
        return np.arctan2(2 * (x * y + w * z), w * w + x * x - y * y - z * z)


def multiply(left: ArrayLike, right: ArrayLike) -> np.ndarray:
    """Hamilton product of (..., 4) and (..., 4): the rotation `right`, then `left`.

    Raises:
        ValueError: For another shape.
    """
    w1, x1, y1, z1 = np.moveaxis(_checked(left), -1, 0)
    w2, x2, y2, z2 = np.moveaxis(_checked(right), -1, 0)
    return np.stack(
        [
            w1 * w2 - x1 * x2 - y1 * y2 - z1 * z2,
            w1 * x2 + x1 * w2 + y1 * z2 - z1 * y2,
            w1 * y2 - x1 * z2 + y1 * w2 + z1 * x2,
            w1 * z2 + x1 * y2 - y1 * x2 + z1 * w2,
        ],
        -1,
    )


def inverse(quaternion: ArrayLike) -> np.ndarray:
    """(..., 4) -> the unit quaternions (..., 4) of the opposite rotations.

    Raises:
        ValueError: For another shape, and for quaternions that are zero or not finite.
    """
    return _unit(quaternion) * np.array([1.0, -1.0, -1.0, -1.0])


def slerp(start: ArrayLike, end: ArrayLike, amount: ArrayLike) -> np.ndarray:
    """Rotations on the shorter arc between two (Shoemake, 1985).

    Where the cosine of the angle between the unit quaternions is above 0.9995 (an angle below 3.6 degrees between the
    rotations), the way is linear and normalised, as nuScenes' devkit has it.

    Args:
        start: (..., 4).
        end: (..., 4).
        amount: (...), 0 for `start`, 1 for `end`.

    Returns:
        Unit quaternions (..., 4).

    Raises:
        ValueError: For another shape, and for quaternions that are zero or not finite.
    """
    first, last = _unit(start), _unit(end)
    share = np.asarray(amount, np.float64)[..., None]
    cosine = (first * last).sum(-1, keepdims=True)
    first = np.where(cosine < 0, -first, first)
    cosine = np.abs(cosine)
    linear = cosine > _LINEAR_ABOVE
    angle = np.arccos(np.where(linear, 0.0, cosine))
    before = np.where(linear, 1 - share, np.sin((1 - share) * angle) / np.sin(angle))
    behind = np.where(linear, share, np.sin(share * angle) / np.sin(angle))
    return _unit(before * first + behind * last)


def _checked(quaternion: ArrayLike) -> np.ndarray:
    values = np.asarray(quaternion, np.float64)
    if values.shape[-1:] != (4,):
        raise ValueError(f"quaternions must have the shape (..., 4), got {values.shape}")
    return values


def _unit(quaternion: ArrayLike) -> np.ndarray:
    values = _checked(quaternion)
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    if not (np.isfinite(length) & (length > 0)).all():
        raise ValueError("quaternions must be finite and not zero")
    return values / length
