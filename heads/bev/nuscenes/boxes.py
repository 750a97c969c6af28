"""3-D boxes of nuScenes as arrays, in any frame."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .rotations import from_matrix, from_yaw, multiply, slerp, to_matrix, yaw_of
from .tables import NuScenes

# Of an annotation and its neighbour, in seconds; twice as much between both neighbours.
_LONGEST_STEP = 1.5
# A corner counts as seen from this depth, and no corner may be nearer than the second, in metres.
_SEEN_FROM, _NEAREST = 1.0, 0.1
# The corners of a box of sides 2: the first four are its front.
_CORNERS = np.array([[x, y, z] for x in (1, -1) for y, z in ((1, 1), (-1, 1), (-1, -1), (1, -1))], np.float64)


@dataclass(frozen=True)
class Boxes:
    """N boxes in one frame.

    Attributes:
        centers: (N, 3), in metres.
        sizes: (N, 3), width, length and height, in metres. The length is along a box's own x, the width along y.
        orientations: (N, 4), quaternions (w, x, y, z) from a box's own axes to the frame's.
        velocities: (N, 3), m/s over the ground along the frame's axes, NaN where unknown.
    """

    centers: np.ndarray
    sizes: np.ndarray
    orientations: np.ndarray
    velocities: np.ndarray

    def __len__(self) -> int:
        return len(self.centers)

    def __getitem__(self, index: np.ndarray | slice) -> "Boxes":
        """The boxes of an index, a mask or a slice."""
        return Boxes(self.centers[index], self.sizes[index], self.orientations[index], self.velocities[index])

    def moved(self, matrix: np.ndarray) -> "Boxes":
        """The boxes in the frame that a rigid transform (4, 4) leads to. Velocities are only rotated."""
        turn = matrix[:3, :3]
        return Boxes(
            self.centers @ turn.T + matrix[:3, 3],
            self.sizes,
            multiply(from_matrix(turn), self.orientations),
            self.velocities @ turn.T,
        )

    def corners(self) -> np.ndarray:
        """(N, 8, 3): the front, from the left upper corner by the right upper one, then the back likewise."""
        half = self.sizes[:, [1, 0, 2]] / 2
        return (_CORNERS * half[:, None]) @ np.swapaxes(to_matrix(self.orientations), -1, -2) + self.centers[:, None]

    def contain(self, points: ArrayLike) -> np.ndarray:
        """(N, points): which points (points, 3) each box holds; its faces belong to it."""
        corners = self.corners()
        origin = corners[:, 0]
        # From the left upper front corner to the back, the right and the bottom one.
        edges = corners[:, [4, 1, 3]] - origin[:, None]
        along = (np.asarray(points, np.float64)[None] - origin[:, None]) @ np.swapaxes(edges, -1, -2)
        return ((along >= 0) & (along <= (edges**2).sum(-1)[:, None])).all(-1)

    def rows(self) -> np.ndarray:
        """(N, 9): the boxes as the heads have them, of boxes in the LiDAR's frame.

        x, y, z of the centre, width, length, height, yaw, and the velocity along x and y. The yaw is that of mmdet3d
        before 1.0, -heading - pi / 2, within [-pi, pi), where the heading is the angle from x to the box's own x on the
        ground, anticlockwise. Roll and pitch are lost.
        """
        yaw = _within_half_turn(-yaw_of(self.orientations) - np.pi / 2)
        return np.concatenate([self.centers, self.sizes, yaw[:, None], self.velocities[:, :2]], axis=1)


def boxes_of_rows(rows: ArrayLike) -> Boxes:
    """Boxes in the LiDAR's frame from rows (N, 9), as `Boxes.rows` makes them; the velocity along z is 0.

    Raises:
        ValueError: For another shape.
    """
    values = np.asarray(rows, np.float64)
    if values.ndim != 2 or values.shape[1] != 9:
        raise ValueError(f"boxes must have the shape (N, 9), got {values.shape}")
    velocities = np.pad(values[:, 7:], ((0, 0), (0, 1)))
    return Boxes(values[:, :3], values[:, 3:6], from_yaw(-values[:, 6] - np.pi / 2), velocities)


def annotated_boxes(nusc: NuScenes, annotations: np.ndarray) -> Boxes:
    """Annotations (N,), rows of their table, as boxes in the global frame."""
    table = nusc.table("sample_annotation")
    return Boxes(
        table["translation"][annotations],
        table["size"][annotations],
        table["rotation"][annotations],
        annotation_velocities(nusc, annotations),
    )


def annotation_velocities(nusc: NuScenes, annotations: np.ndarray) -> np.ndarray:
    """The velocities (N, 3) of annotations (N,) in the global frame, in m/s.

    The difference between the annotations of the instance before and behind where both exist, else the one to the
    neighbour that does. NaN where there is none, or the step is above 1.5 s (3 s between both neighbours).
    """
    table = nusc.table("sample_annotation")
    previous = nusc.rows("sample_annotation", "prev")[annotations]
    following = nusc.rows("sample_annotation", "next")[annotations]
    first = np.where(previous < 0, annotations, previous)
    last = np.where(following < 0, annotations, following)
    # In seconds before the difference, as the devkit has it: that changes the ninth digit.
    seconds = nusc.table("sample")["timestamp"][nusc.rows("sample_annotation", "sample_token")] * 1e-6
    step = seconds[last] - seconds[first]
    longest = np.where((previous < 0) | (following < 0), _LONGEST_STEP, 2 * _LONGEST_STEP)
    known = (step > 0) & (step <= longest)
    way = table["translation"][last] - table["translation"][first]
    return np.where(known[:, None], way / np.where(known, step, 1)[:, None], np.nan)


def boxes_at(nusc: NuScenes, record: int) -> tuple[np.ndarray, Boxes]:
    """The boxes at the time of a record of a sensor, in the global frame.

    At a sweep, which stands before its sample, the centre is linear and the orientation by `slerp` between the
    annotations of the sample before and those of the sample, for instances in both. Sizes and velocities are those of
    the sample.

    Args:
        nusc: The tables.
        record: A row of `sample_data`.

    Returns:
        The annotations (N,) of the record's sample, in the order of the table, and their boxes.
    """
    data, samples = nusc.table("sample_data"), nusc.table("sample")
    sample = int(nusc.rows("sample_data", "sample_token")[record])
    annotations = nusc.annotations(sample)
    boxes = annotated_boxes(nusc, annotations)
    before = int(nusc.rows("sample", "prev")[sample])
    if before < 0 or data["is_key_frame"][record]:
        return annotations, boxes
    instances = nusc.rows("sample_annotation", "instance_token")
    earlier = {int(instances[row]): row for row in nusc.annotations(before)}
    both = np.array([int(instances[row]) in earlier for row in annotations], np.bool_)
    starts = np.array([earlier[int(instances[row])] for row in annotations[both]], np.int64)
    start, end = (int(samples["timestamp"][row]) for row in (before, sample))
    # Times of records may lie beside those of their samples.
    share = (min(max(int(data["timestamp"][record]), start), end) - start) / max(end - start, 1)
    table = nusc.table("sample_annotation")
    centers, orientations = boxes.centers.copy(), boxes.orientations.copy()
    centers[both] = (1 - share) * table["translation"][starts] + share * centers[both]
    orientations[both] = slerp(table["rotation"][starts], orientations[both], share)
    return annotations, Boxes(centers, boxes.sizes, orientations, boxes.velocities)


def ground_frame(translation: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """From the global frame to that of the ego vehicle on flat ground: its translation and its yaw are taken away.

    The yaw is that of pyquaternion's Euler angles, as in the devkit, and not `yaw_of`: with roll and pitch they differ.

    Args:
        translation: (3,), of the ego pose.
        rotation: (4,), its quaternion.

    Returns:
        (4, 4).
    """
    w, x, y, z = rotation / np.linalg.norm(rotation)
    turn = to_matrix(from_yaw(np.arctan2(2 * (w * z - x * y), 1 - 2 * (y * y + z * z))))
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn.T, -turn.T @ translation
    return matrix


def corner_pixels(boxes: Boxes, intrinsic: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a camera sees the corners of boxes in its frame.

    Args:
        boxes: N boxes in the camera's frame.
        intrinsic: (3, 3), in pixels.

    Returns:
        Pixels (N, 8, 2), which mean nothing for corners behind the camera, and depths (N, 8) in metres.
    """
    seen = boxes.corners() @ intrinsic.T
    depth = seen[..., 2]
    return seen[..., :2] / np.where(depth == 0, 1e-12, depth)[..., None], depth


def visible(boxes: Boxes, intrinsic: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Which boxes a camera sees, hidden by others or not.

    A corner is seen inside the image, strictly, and deeper than 1 m; and all eight must be more than 0.1 m in front.

    Args:
        boxes: N boxes in the camera's frame.
        intrinsic: (3, 3), in pixels.
        size: Width and height of the image.

    Returns:
        Two masks (N,): any corner is seen; all corners are.
    """
    pixels, depth = corner_pixels(boxes, intrinsic)
    seen = ((pixels > 0) & (pixels < np.array(size))).all(-1) & (depth > _SEEN_FROM)
    in_front = (depth > _NEAREST).all(-1)
    return np.asarray(seen.any(-1) & in_front), np.asarray(seen.all(-1) & in_front)


def _within_half_turn(angle: np.ndarray) -> np.ndarray:
    return (angle + np.pi) % (2 * np.pi) - np.pi
