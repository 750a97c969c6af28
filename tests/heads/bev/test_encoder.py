"""The encoder and its temporal attention: against published figures, and batches of which each sample is its own."""

import bev_goldens
import golden_files
import pytest
import torch
import torchvision.transforms.functional as F

import attnzoo.heads  # noqa: F401  installs mmcv's operators
from attnzoo.heads.bev.bev_encoder import BEVEncoder
from attnzoo.heads.bev.encoder import BEVEncoderLayer, BEVEncoderLayers
from attnzoo.heads.bev.motion import history_shift, rotate_map
from attnzoo.heads.bev.spatial_cross_attention import SpatialCrossAttention, camera_views
from attnzoo.heads.bev.temporal_self_attention import TemporalSelfAttention

RANGE = (-20.0, -16.0, -5.0, 20.0, 16.0, 3.0)
SMALL = dict(
    embed_dims=16, rows=4, columns=5, point_range=RANGE, num_layers=2, num_levels=2, num_heads=2, num_points=2,
    num_pillar_points=2, num_temporal_points=2, feedforward_channels=8, dropout=0.0, num_cameras=3,
)  # fmt: skip


def layers_of(golden: dict, count: int) -> BEVEncoderLayers:
    kwargs = golden["kwargs"]
    dims, heads, levels = kwargs["embed_dims"], kwargs["num_heads"], len(kwargs["spatial_shapes"])
    spatial = (dims, heads, levels, kwargs["spatial_points"], kwargs["num_points_in_pillar"])
    layers = BEVEncoderLayers(
        [
            BEVEncoderLayer(
                TemporalSelfAttention(dims, heads, kwargs["temporal_points"]),
                SpatialCrossAttention(*spatial),
                kwargs["feedforward_channels"],
            )
            for _ in range(count)
        ]
    )
    state = bev_goldens.weights(golden, "pts_bbox_head.transformer.encoder.", "bev_encoder.encoder.")
    missing, _ = layers.double().eval().load_state_dict(state, strict=count == kwargs["num_layers"])
    assert not missing
    return layers


def test_equals_the_published_encoder():
    golden = golden_files.load("bevformer_encoder")
    kwargs, outputs = golden["kwargs"], golden["outputs"]
    query, tokens, position, previous = bev_goldens.inputs(golden)
    query, position, previous = (x.transpose(0, 1) for x in (query, position, previous))
    size = kwargs["bev_h"], kwargs["bev_w"]
    views = camera_views(bev_goldens.points(golden))
    given = query, position, size, tokens.permute(2, 0, 1, 3), kwargs["spatial_shapes"], views
    history = dict(history=previous, shift=torch.tensor(kwargs["shift"], dtype=torch.float64))
    with torch.no_grad():
        layers = layers_of(golden, kwargs["num_layers"])
        assert golden_files.error(layers(*given), outputs["first_frame"]) < 1e-12
        # The shift was float32 there.
        assert golden_files.error(layers(*given, **history), outputs["with_history"]) < 1e-7
        one = layers_of(golden, 1)
        assert golden_files.error(one(*given, **history), outputs["with_history_layer0"]) < 1e-7


def lidar2img(batch: int, cameras: int, seed: int = 0) -> torch.Tensor:
    """Cameras of random directions on the ground, of images of 32 x 48."""
    generator = torch.Generator().manual_seed(seed)
    yaw = torch.rand(batch, cameras, generator=generator, dtype=torch.float64) * 7
    c, s, zero = yaw.cos(), yaw.sin(), torch.zeros_like(yaw)
    rows = [torch.stack(row, -1) for row in ((c, s, zero, zero), (zero, zero, zero - 1, zero), (-s, c, zero, zero))]
    matrix = torch.zeros(batch, cameras, 4, 4, dtype=torch.float64)
    matrix[..., :3, :] = torch.stack(rows, -2)
    matrix[..., 3, 3] = 1
    inside = torch.tensor([[30.0, 0, 24, 0], [0, 30, 16, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)
    return inside @ matrix


def frame(batch: int = 3, seed: int = 0, cameras: int = 3) -> dict:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    can_bus = draw(batch, 18)
    can_bus[:, -1] *= 40
    return dict(
        levels=[draw(batch, cameras, 16, 4, 6), draw(batch, cameras, 16, 2, 3)],
        lidar2img=lidar2img(batch, cameras, seed), image_shape=torch.tensor([[32, 48]]).expand(batch, -1),
        can_bus=can_bus, history=draw(batch, 20, 16),
    )  # fmt: skip


def encoder(**options) -> BEVEncoder:
    module = BEVEncoder(**SMALL | options).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def sample(given: dict, i: int) -> dict:
    return {
        key: [x[i : i + 1] for x in value] if isinstance(value, list) else value[i : i + 1]
        for key, value in given.items()
        if value is not None
    }


@pytest.mark.parametrize("lifting", ["2d", "dfa3d"])
def test_a_batch_is_its_samples(lifting):
    """Cameras, motion and history differ, and one sample has no history."""
    module, given = encoder(lifting=lifting), frame()
    if lifting == "dfa3d":
        given["depth"] = [torch.rand(3, 3, 7, *level.shape[3:], dtype=torch.float64) for level in given["levels"]]
    together = module(**given, has_history=torch.tensor([True, False, True]))
    for i in range(3):
        single = sample(given, i)
        if i == 1:
            del single["history"]
        torch.testing.assert_close(together[i], module(**single)[0])
    torch.testing.assert_close(module(**given)[2], together[2])
    assert not torch.allclose(module(**given)[1], together[1])


def test_gradients_reach_every_part():
    module, given = encoder(lifting="dfa3d"), frame()
    depth = [torch.rand(3, 3, 7, *level.shape[3:], dtype=torch.float64) for level in given["levels"]]
    leaves = [*given["levels"], *depth]
    for leaf in leaves:
        leaf.requires_grad_()
    module(**given, depth=depth).square().sum().backward()
    assert all(leaf.grad.abs().max() > 0 for leaf in leaves)
    assert [name for name, p in module.named_parameters() if not p.grad.abs().max() > 0] == []


def test_mixed_precision_stays_close():
    module, given = encoder().float(), frame()
    given = {key: [x.float() for x in value] if isinstance(value, list) else value for key, value in given.items()}
    given |= {key: given[key].float() for key in ("lidar2img", "can_bus", "history")}
    want = module(**given)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = module(**given)
    assert (mixed - want).abs().mean() < 0.05


def test_places_are_never_in_half_precision():
    module, given, dtypes = encoder().bfloat16(), frame(), []
    module.encoder.layers[0].register_forward_pre_hook(lambda _, args: dtypes.append(args[4].dtype))
    given["levels"] = [level.bfloat16() for level in given["levels"]]
    given |= {key: given[key].float() for key in ("lidar2img", "can_bus", "history")}
    assert module(**given).dtype == torch.bfloat16 and dtypes == [torch.float32]


def test_history_turns_about_the_middle():
    assert encoder().rotate_center == (2.5, 2) and encoder(rotate_center=(100, 100)).rotate_center == (100, 100)


@pytest.mark.parametrize("center", [(2.5, 2.5), (1, 3), (100, 100)])
def test_maps_turn_as_torchvision_turns_images(center):
    maps = torch.randn(4, 30, 3, dtype=torch.float64)
    angles = torch.tensor([0.0, 17.3, -141.7, 90.0], dtype=torch.float64)
    turned = rotate_map(maps, angles, (5, 6), center)
    for i in range(4):
        image = maps[i].T.reshape(3, 5, 6)
        want = F.rotate(image, angles[i].item(), center=list(center))
        assert torch.equal(turned[i], want.flatten(1).T)


def test_shift_of_the_history():
    """2 m ahead with a heading of 90 degrees in the global frame; and no motion at all."""
    can_bus = torch.zeros(2, 18, dtype=torch.float64)
    can_bus[0, 1], can_bus[0, -2] = 2, torch.pi / 2
    want = torch.tensor([[0, 2 / 32], [0, 0]], dtype=torch.float64)
    torch.testing.assert_close(history_shift(can_bus, RANGE), want)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(rows=0), r"\(rows, columns\)\[0\]=0: must be 1 or more"),
        (dict(embed_dims=15), "embed_dims=15: must be even"),
        (dict(point_range=(0, 0, 0, 1, 1)), r"point_range=\(0, 0, 0, 1, 1\): must be \(x_min, y_min"),
        (dict(depth_range=(5, 2)), r"depth_range=\(5, 2\): the first must be below the second"),
        (dict(rotate_center=3), "rotate_center=3: must be two numbers"),
        (dict(lifting="3d"), "lifting='3d': allowed are"),
        (dict(num_layers=0), "num_layers=0: must be 1 or more"),
        (dict(num_cameras=1.5), "num_cameras=1.5: must be a whole number"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        BEVEncoder(**SMALL | arguments)


def test_bad_input():
    module, given = encoder(), frame()
    for change, message in (
        (dict(levels=given["levels"][:1]), "levels has 1 maps, num_levels=2"),
        (frame(cameras=2), r"levels\[0\] must be \(B=3, cameras=3, C=16, H, W\), got shape \(3, 2, 16, 4, 6\)"),
        (dict(lidar2img=given["lidar2img"][:, :2]), r"lidar2img must be \(B=3, cameras=3, rows=4, columns=4\)"),
        (dict(can_bus=given["can_bus"][:, :17]), r"can_bus must be \(B=3, numbers=18\), got shape \(3, 17\)"),
        (dict(image_shape=torch.ones(3)), r"image_shape must be \(B=3, 2\), height and width, got shape \(3,\)"),
        (dict(history=given["history"][:, 1:]), r"history must be \(B=3, Q=20, C=16\)"),
        (dict(has_history=torch.ones(2)), r"has_history must be \(B=3\), got shape \(2,\)"),
        (dict(depth=given["levels"]), "lifting='2d' takes no depth"),
    ):
        with pytest.raises(ValueError, match=message):
            module(**given | change)
