"""Quaternions against scipy's rotations, and by hand."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation, Slerp

from attnzoo.heads.bev.nuscenes.rotations import from_matrix, from_yaw, inverse, multiply, slerp, to_matrix, yaw_of


def drawn(count: int, seed: int = 0) -> np.ndarray:
    """Quaternions of any length."""
    return np.random.default_rng(seed).normal(size=(count, 4))


def scipy_rotation(quaternion: np.ndarray) -> Rotation:
    return Rotation.from_quat(quaternion[..., [1, 2, 3, 0]])


def same(left: np.ndarray, right: np.ndarray) -> None:
    """Equal up to the sign."""
    sign = np.sign((left * right).sum(-1, keepdims=True))
    np.testing.assert_allclose(left * sign, right, atol=1e-12)


def test_matrices_as_scipy_has_them():
    quaternions = drawn(200)
    np.testing.assert_allclose(to_matrix(quaternions), scipy_rotation(quaternions).as_matrix(), atol=1e-14)


def test_matrices_and_back():
    half_turns = np.array([[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 1, 1, 0], [0, 0, 1, -1], [1, 0, 0, 0]], float)
    near = half_turns + 1e-9 * drawn(6)
    for quaternions in (drawn(200), half_turns, near):
        unit = quaternions / np.linalg.norm(quaternions, axis=-1, keepdims=True)
        back = from_matrix(to_matrix(quaternions))
        same(back, unit)
        assert (back[:, 0] >= 0).all()


def test_product_and_inverse():
    left, right = drawn(50), drawn(50, 1)
    together = scipy_rotation(left) * scipy_rotation(right)
    np.testing.assert_allclose(to_matrix(multiply(left, right)), together.as_matrix(), atol=1e-13)
    np.testing.assert_allclose(to_matrix(inverse(left)), scipy_rotation(left).inv().as_matrix(), atol=1e-14)


def test_yaw():
    angles = np.linspace(-3.1, 3.1, 40)
    np.testing.assert_allclose(yaw_of(from_yaw(angles)), angles, atol=1e-14)
    np.testing.assert_allclose(yaw_of(-3 * from_yaw(angles)), angles, atol=1e-14)
    assert yaw_of(np.zeros(4)) == 0 and np.isnan(yaw_of([np.nan, 0, 0, 1]))
    quaternions = drawn(50)
    axis = to_matrix(quaternions)[:, :, 0]
    np.testing.assert_allclose(yaw_of(quaternions), np.arctan2(axis[:, 1], axis[:, 0]), atol=1e-13)


def test_slerp_as_scipy_has_it():
    start, end = drawn(2)
    amounts = np.linspace(0, 1, 11)
    turns = Slerp([0, 1], scipy_rotation(np.stack([start, end])))(amounts).as_matrix()
    np.testing.assert_allclose(to_matrix(slerp(start, end, amounts)), turns, atol=1e-13)
    np.testing.assert_allclose(to_matrix(slerp(start, -end, amounts)), turns, atol=1e-13)


def test_slerp_is_linear_between_near_rotations():
    start, end = from_yaw(0.0), from_yaw(0.06)
    middle = slerp(start, end, 0.3)
    line = 0.7 * start + 0.3 * end
    np.testing.assert_allclose(middle, line / np.linalg.norm(line), atol=1e-15)
    assert abs(yaw_of(middle) - 0.018) > 1e-7
    np.testing.assert_allclose(slerp(start, start, 0.5), start)


def test_leading_axes_broadcast():
    quaternions = drawn(6).reshape(2, 3, 4)
    assert to_matrix(quaternions).shape == (2, 3, 3, 3)
    assert from_matrix(to_matrix(quaternions)).shape == (2, 3, 4)
    assert multiply(quaternions[:, :1], quaternions).shape == (2, 3, 4)
    assert slerp(quaternions[:, :1], quaternions, 0.5).shape == (2, 3, 4)
    assert yaw_of(quaternions).shape == (2, 3)
    assert from_yaw(0.5).shape == (4,)
    for empty in (to_matrix(np.zeros((0, 4))), from_matrix(np.zeros((0, 3, 3))), inverse(np.zeros((0, 4)))):
        assert len(empty) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: to_matrix([1.0, 0.0, 0.0]), r"must have the shape \(\.\.\., 4\), got \(3,\)"),
        (lambda: to_matrix([0.0, 0.0, 0.0, 0.0]), "must be finite and not zero"),
        (lambda: yaw_of([1.0, 0.0, 0.0]), r"must have the shape \(\.\.\., 4\), got \(3,\)"),
        (lambda: inverse([np.nan, 0.0, 0.0, 0.0]), "must be finite and not zero"),
        (lambda: from_matrix(np.eye(4)), r"must have the shape \(\.\.\., 3, 3\), got \(4, 4\)"),
        (lambda: from_matrix(2 * np.eye(3)), "must be orthogonal with determinant 1"),
        (lambda: from_matrix(-np.eye(3)), "must be orthogonal with determinant 1"),
        (lambda: from_matrix(np.full((3, 3), np.nan)), "must be orthogonal with determinant 1"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
