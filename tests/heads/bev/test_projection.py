"""Where cameras see the pillars: against the published code, and what it leaves open."""

import bev_goldens
import golden_files
import pytest
import torch

from attnzoo.heads.bev.projection import check_range, grid_points, pillar_points, project

GOLDEN = golden_files.load("bevformer_projection")
RANGE = GOLDEN["kwargs"]["pc_range"]


def test_equals_the_published_projection():
    points = bev_goldens.points(GOLDEN)
    places, visible = points.places.transpose(0, 1), points.visible.transpose(0, 1)
    outputs = GOLDEN["outputs"]
    assert golden_files.error(places[visible], outputs["reference_points_cam_seen"]) < 1e-12
    assert golden_files.error(places, outputs["reference_points_cam"]) < 1e-12
    assert golden_files.error(visible.double(), outputs["bev_mask"]) == 0
    assert golden_files.error(visible.any(-1).sum(0).double(), outputs["cameras_per_query"]) == 0


def test_equals_the_published_pillars():
    low, high = torch.tensor(RANGE, dtype=torch.float64).view(2, 3)
    pillars = pillar_points(10, 12, 4, RANGE, dtype=torch.float64)
    assert (
        golden_files.error((pillars - low).div(high - low).transpose(0, 1)[None], GOLDEN["outputs"]["ref_3d"]) < 1e-12
    )
    flat = grid_points(10, 12, dtype=torch.float64)[None, :, None]
    assert golden_files.error(flat, GOLDEN["outputs"]["ref_2d"]) < 1e-12
    # Row 0 is behind the vehicle, column 0 to its left.
    assert pillars[0, 0, 0] < 0 and pillars[0, 0, 1] < 0 and pillars[11, 0, 0] > 0 and pillars[-1, 0, 1] > 0


def test_a_camera_by_hand():
    """Focal length 100, centre (50, 40), one metre above the ground, looking along y."""
    inside = torch.tensor([[100.0, 50, 0, 0], [0, 40, -100, 100], [0, 1, 0, 0], [0, 0, 0, 1]])
    seen = torch.tensor([[2.0, 10, 1], [0, -10, 1], [6, 10, 1], [-6, 10, 1], [0, 10, 6], [0, 0, 1]])
    points = project(seen[:, None], inside.expand(1, 1, 4, 4), torch.tensor([[80, 100]]))
    torch.testing.assert_close(points.places[0, 0, 0, 0], torch.tensor([0.7, 0.5]))
    assert points.depth[0, 0, :, 0].tolist() == [10, -10, 10, 10, 10, 0]
    assert points.visible[0, 0, :, 0].tolist() == [True, False, False, False, False, False]


def test_what_is_just_behind_a_camera():
    """Its pixel would be inside the image, were it divided by the least depth."""
    corner = torch.tensor([[100.0, 0, 0, 0], [0, 0, -100, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    points = project(torch.tensor([[[1e-7, -10, -1e-7]]]), corner.expand(1, 1, 4, 4), torch.tensor([[80, 100]]))
    assert ((points.places > 0) & (points.places < 1)).all() and not points.visible.any()


def test_samples_have_their_own_cameras_and_images():
    one = bev_goldens.cameras(GOLDEN)
    both = torch.cat((one, one.flip(1)))
    shapes = torch.tensor([[64, 112], [32, 100]])
    pillars = pillar_points(5, 7, 2, RANGE, dtype=torch.float64)
    together = project(pillars, both, shapes)
    for i in range(2):
        for found, want in zip(together, project(pillars, both[i : i + 1], shapes[i : i + 1]), strict=True):
            assert torch.equal(found[i], want[0])
    assert not torch.equal(together.visible[0], together.visible[1])


def test_never_in_half_precision():
    """Autocast leaves it alone, and so do half-precision matrices once they are rounded."""
    lidar2img = bev_goldens.cameras(GOLDEN).float()
    pillars, shape = pillar_points(50, 50, 4, RANGE), torch.tensor([[64, 112]])
    want = project(pillars, lidar2img, shape)
    with torch.autocast("cpu", torch.bfloat16):
        found = project(pillars, lidar2img, shape)
    assert all(torch.equal(x, y) for x, y in zip(found, want, strict=True))
    assert project(pillars, lidar2img.half(), shape).places.dtype == torch.float32
    exact = project(pillars.double(), lidar2img.double(), shape)
    assert (exact.places - want.places)[exact.visible & want.visible].abs().max() < 1e-5


def test_wrong_shapes():
    pillars, shape = pillar_points(2, 2, 1, RANGE), torch.tensor([[64, 112]])
    for matrix in (torch.eye(4), torch.ones(1, 6, 3, 4)):
        with pytest.raises(ValueError, match=r"lidar2img must be \(B, cameras, 4, 4\), got shape"):
            project(pillars, matrix, shape)
    with pytest.raises(ValueError, match=r"image_shape must be \(B=2, 2\), height and width, got shape \(1, 2\)"):
        project(pillars, torch.eye(4).expand(2, 6, 4, 4), shape)
    with pytest.raises(ValueError, match=r"points must be \(Q, P, 3\), got shape \(4, 3\)"):
        project(pillars[:, 0], torch.eye(4).expand(1, 6, 4, 4), shape)


@pytest.mark.parametrize("value", [(0, 0, 0, 1, 1), (0, 0, 0, 1, 0, 1), "123456", (0, 0, 0, 1, 1, float("inf"))])
def test_ranges(value):
    with pytest.raises((TypeError, ValueError), match="point_range"):
        check_range("point_range", value)
