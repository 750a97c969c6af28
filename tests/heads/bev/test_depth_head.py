"""Depth bins, the depth head and depth from points."""

import golden_files
import pytest
import torch

import attnzoo.heads  # noqa: F401  installs mmcv's operators
from attnzoo.heads.bev.depth_bins import DepthBins
from attnzoo.heads.bev.depth_head import BEVDepthHead, PointDepth, nearest_points

BINS = dict(near=1.0, far=13.0, step=1.0, groups=(1, 2))


def small(**options) -> BEVDepthHead:
    return BEVDepthHead(**dict(in_channels=8, mid_channels=8, bins=BINS, stride=4, dilations=(1, 2)) | options)


def test_equals_the_reference(tmp_path):
    golden = golden_files.load("dfa3d_depth_head")
    kwargs, outputs = golden["kwargs"], golden["outputs"]
    near, far, step = kwargs["d_bound"]
    state = {f"some_head.{key}": value for key, value in golden_files.checkpoint(golden).items()}
    torch.save({"state_dict": {"img_neck.x": torch.zeros(1), **state}}, tmp_path / "published.pth")
    head = BEVDepthHead(
        kwargs["in_channels"], kwargs["mid_channels"], dict(near=near, far=far, step=step, groups=kwargs["groups"]),
        level=kwargs["level_index"], stride=kwargs["gt_downsample"], loss_weight=kwargs["loss_weight"],
        dilations=kwargs["aspp_dilations"], deform_groups=kwargs["deform_conv_groups"],
    )  # fmt: skip
    head.double().eval().load_checkpoint(tmp_path / "published.pth")
    assert sum(p.numel() for p in head.parameters()) == golden["params"]
    x = golden_files.image(golden)[None]
    levels = [x if i == head.level else x[..., :1, :1] for i in range(len(kwargs["level_sizes"]))]
    height, width = (side * kwargs["gt_downsample"] for side in x.shape[3:])
    generator = torch.Generator().manual_seed(7)
    drawn = torch.rand((2, 6, height, width), generator=generator).double()
    points = torch.where(drawn[0] < 0.01, 1 + 62 * drawn[1], 0)[None]
    with torch.no_grad():
        code = head(levels)
        target, known = head.target(points, (x.shape[3], x.shape[4]))
        loss = head.loss(code, points)["loss_depth"]
    assert golden_files.error(code[0], outputs["code"]) < 1e-12
    for i, spread in enumerate(head.spread(code, kwargs["level_sizes"])):
        assert golden_files.error(spread[0], outputs[f"dist{i}"]) < 1e-12
    assert golden_files.error(target[0], outputs["target_code"]) == 0
    assert golden_files.error(known[0].double(), outputs["foreground"]) == 0
    assert abs(loss.item() - outputs["loss"]["values"][0]) < 1e-12


def test_bins_and_groups():
    bins = DepthBins(**BINS)
    assert bins.count == 12 and bins.widths == (1, 1, 1, 1, 2, 2, 2, 2)
    assert bins.spread(torch.arange(8)).tolist() == [0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 7, 7]
    depth = torch.tensor([0.9, 1.0, 4.99, 5.0, 12.9, 13.0, torch.inf, 0.0])
    code, known = bins.encode(depth)
    assert known.tolist() == [False, True, True, True, True, False, False, False]
    assert code.argmax(-1)[known].tolist() == [0, 3, 4, 7] and code.sum(-1).tolist() == known.float().tolist()
    plain = DepthBins(2, 58, 0.5)
    assert plain.count == 112 and plain.spread(code) is code


def test_distribution_around_points():
    bins = DepthBins(0, 6, 1)
    spread = bins.around(torch.tensor([0.5, 3.5, 5.5, 7.0, torch.inf]))
    assert spread.tolist() == [
        [1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1], [0] * 6, [0] * 6
    ]  # fmt: skip


def test_nearest_points_of_cells():
    """The image's last cells are cut; 0, negative numbers and NaN are no points."""
    points = torch.zeros(1, 1, 5, 6)
    points[0, 0, 0, 0], points[0, 0, 3, 3], points[0, 0, 4, 5] = 7, 3, 9
    points[0, 0, 1, 4], points[0, 0, 1, 5] = -2, torch.nan
    inf = torch.inf
    assert nearest_points(points, (2, 2), 4).tolist() == [[[[3, inf], [inf, 9]]]]
    with pytest.raises(
        ValueError, match="points of 5 x 6 pixels make 2 x 2 cells of stride 4, the feature map has 1 x 2"
    ):
        nearest_points(points, (1, 2), 4)


def test_points_in_the_place_of_a_head():
    points = torch.zeros(2, 3, 8, 12)
    points[1, 2, 5, 6] = 3.2
    fine, coarse = PointDepth(dict(near=1, far=9, step=1), strides=(2, 4)).spread(points, [(4, 6), (2, 3)])
    assert fine.shape == (2, 3, 8, 4, 6) and coarse.shape == (2, 3, 8, 2, 3)
    assert fine[1, 2, :, 2, 3].tolist() == coarse[1, 2, :, 1, 1].tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert fine.sum() == coarse.sum() == 5
    with pytest.raises(ValueError, match=r"sizes has 1 levels, strides=\(2, 4\)"):
        PointDepth(strides=(2, 4)).spread(points, [(4, 6)])


@pytest.mark.parametrize("groups", [None, (1, 2)])
def test_loss_and_gradients(groups):
    """Only cells with points count; without any the loss is 0."""
    head = small(bins=BINS | dict(groups=groups)).double()
    levels = [golden_files.noise((2, 3, 8, 3, 4), 0)]
    points = torch.zeros(2, 3, 11, 16)
    points[0, 1, 10, 15] = 4.2
    code = head(levels)
    torch.testing.assert_close(code.sum(2), torch.ones(2, 3, 3, 4, dtype=torch.float64))
    (loss,) = head.loss(code, points).values()
    one = code[0, 1, :, 2, 3]
    wanted = torch.zeros_like(one)
    wanted[3] = 1
    torch.testing.assert_close(loss, -0.5 * torch.where(wanted > 0, one, 1 - one).log().sum())
    loss.backward()
    # The bias before a norm has no gradient; the mean of it is zero.
    still = [n for n, p in head.named_parameters() if not p.grad.abs().max() > 0]
    assert still in ([], ["reduce_conv.0.bias"])
    assert head.loss(head(levels), torch.zeros_like(points))["loss_depth"] == 0
    assert small(supervised=False).loss(code, points) == {}
    # What overflowed does not stop the run.
    assert head.loss(code * torch.nan, points)["loss_depth"].isfinite()


def test_mixed_precision():
    head, levels = small().eval(), [golden_files.noise((1, 2, 8, 3, 4), 0).float()]
    points = torch.full((1, 2, 12, 16), 5.0)
    want = head(levels)
    with torch.autocast("cpu", torch.bfloat16):
        code = head(levels)
        loss = head.loss(code, points)["loss_depth"]
    assert loss.dtype == torch.float32 and (code - want).abs().max() < 0.02
    assert head.bfloat16()([levels[0].bfloat16()]).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(bins=dict(step=0)), "step=0: must be above 0"),
        (dict(bins=dict(far=1)), "far=1: must be above 2"),
        (dict(bins=dict(step=0.3)), "near=2.0, far=58.0, step=0.3: must make a whole number of bins"),
        (dict(bins=dict(groups=(3, 8))), r"groups=\(3, 8\): their sum must divide the 112 bins"),
        (dict(bins=(2, 58)), r"bins=\(2, 58\): must be a dict, got tuple"),
        (dict(bins=dict(count=3)), "bins: has no 'count'; allowed are near, far, step, groups"),
        (dict(mid_channels=6), "mid_channels=6: must be a multiple of deform_groups=4"),
        (dict(stride=0), "stride=0: must be 1 or more"),
        (dict(supervised=1), "supervised=1: must be True or False"),
        (dict(dilations=(0,)), r"dilations\[0\]=0: must be 1 or more"),
        (dict(level=1.0), "level=1.0: must be a whole number"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        small(**arguments)


def test_bad_input():
    x = torch.zeros(1, 2, 8, 3, 4)
    with pytest.raises(ValueError, match="levels has 1 maps, level=2"):
        small(level=2)([x])
    with pytest.raises(
        ValueError, match=r"levels\[-1\] must be \(B, cameras, C=8, H, W\), got shape \(1, 2, 7, 3, 4\)"
    ):
        small()([x[:, :, :7]])
    head = small().eval()
    with pytest.raises(ValueError, match=r"points must be \(B, cameras, H, W\), got shape \(2, 12, 16\)"):
        head.loss(head([x]), torch.zeros(2, 12, 16))
