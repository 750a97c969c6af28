"""Lifting from cameras to queries: against published figures, and right in batches, graphs and half precision."""

import bev_goldens
import golden_files
import pytest
import torch
from torch import Tensor

import attnzoo.heads  # noqa: F401  installs mmcv's operators
from attnzoo.heads.bev.depth_bins import DepthBins
from attnzoo.heads.bev.projection import CameraPoints
from attnzoo.heads.bev.spatial_cross_attention import LIFTINGS, SpatialCrossAttention, camera_views

SIZES = [(4, 6), (2, 3)]
TOKENS = 30


def published(name: str) -> tuple[SpatialCrossAttention, dict, list[Tensor]]:
    golden = golden_files.load(name)
    kwargs = golden["kwargs"]
    lifting = "dfa3d" if "dfa3d" in name else "2d"
    levels = len(kwargs["spatial_shapes"])
    module = SpatialCrossAttention(
        kwargs["embed_dims"], kwargs["num_heads"], levels, kwargs["num_points"], kwargs["num_points_in_pillar"], lifting
    )
    layer = "layers.0."
    module.double().eval().load_state_dict(
        bev_goldens.weights(
            golden,
            f"pts_bbox_head.transformer.encoder.{layer}attentions.1.",
            f"bev_encoder.encoder.{layer}spatial_attention.",
        )
    )
    query, value, *code = bev_goldens.inputs(golden)
    return module, golden, [query, *(x.permute(2, 0, 1, 3) for x in (value, *code))]


def test_equals_the_published_attention():
    module, golden, (query, value) = published("bevformer_sca")
    views = camera_views(bev_goldens.points(golden))
    with torch.no_grad():
        out = module(query, value, golden["kwargs"]["spatial_shapes"], views)
    assert golden_files.error(out, golden["outputs"]["out"]) < 1e-12


def test_equals_the_reference_of_dfa3d():
    module, golden, (query, value, code) = published("dfa3d_sca")
    kwargs, outputs = golden["kwargs"], golden["outputs"]
    points = bev_goldens.points(golden)
    bins = DepthBins(*kwargs["d_bound"], kwargs["depth_groups"])
    depth = bins.spread(code.softmax(-1))
    assert golden_files.error(depth.permute(1, 2, 0, 3), outputs["dist"]) < 1e-12
    views = camera_views(points, bins.range)
    seen = camera_views(points._replace(visible=points.visible.any(-1, keepdim=True) | True), bins.range)
    places = seen.places.view(1, 6, -1, 4, 3).transpose(0, 1)[points.visible.transpose(0, 1)]
    assert golden_files.error(places, outputs["reference_points_cam_seen"]) < 1e-12
    with torch.no_grad():
        for name, spread in (("out", depth), ("out_depth_one", torch.ones_like(depth))):
            out = module(query, value, kwargs["spatial_shapes"], views, spread)
            assert golden_files.error(out, outputs[name]) < 1e-12


def scene(batch: int = 3, cameras: int = 4, queries: int = 20, seed: int = 0) -> tuple[CameraPoints, Tensor, Tensor]:
    """Points, tokens and distributions of which each sample and camera has its own."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, cameras, queries, 2)
    places = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * 1.4 - 0.2
    depth = torch.rand(shape, generator=generator, dtype=torch.float64) * 60
    visible = torch.rand(shape, generator=generator) < torch.linspace(0.1, 0.5, batch)[:, None, None, None]
    visible[:, :, 3] = False
    tokens = torch.randn(batch, cameras, TOKENS, 8, generator=generator, dtype=torch.float64)
    spread = torch.randn(batch, cameras, TOKENS, 5, generator=generator, dtype=torch.float64).softmax(-1)
    return CameraPoints(places, depth, visible), tokens, spread


def module_of(lifting: str) -> SpatialCrossAttention:
    module = SpatialCrossAttention(8, 2, 2, 4, 2, lifting, dropout=0.0).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


def run(module: SpatialCrossAttention, query: Tensor, points: CameraPoints, tokens: Tensor, depth: Tensor) -> Tensor:
    is_flat = module.lifting == "2d"
    views = camera_views(points, None if is_flat else (2.0, 58.0))
    return module(query, tokens, SIZES, views, None if is_flat else depth)


@pytest.mark.parametrize("lifting", LIFTINGS)
def test_each_sample_has_its_own_queries(lifting):
    """Different cameras in a batch: the same as one by one. What nobody sees gets the output layer's bias."""
    module, (points, tokens, depth) = module_of(lifting), scene()
    query = torch.randn(3, 20, 8, dtype=torch.float64)
    together = run(module, query, points, tokens, depth)
    for i in range(3):
        part = slice(i, i + 1)
        single = CameraPoints(*(x[part] for x in points))
        torch.testing.assert_close(together[part], run(module, query[part], single, tokens[part], depth[part]))
    torch.testing.assert_close(together[:, 3], query[:, 3] + module.output_proj.bias)


@pytest.mark.parametrize("lifting", LIFTINGS)
def test_traced_form_is_the_same(lifting, monkeypatch):
    """Lists of all queries, whose length depends on nothing that is seen."""
    module, (points, tokens, depth) = module_of(lifting), scene()
    query = torch.randn(3, 20, 8, dtype=torch.float64)
    want = run(module, query, points, tokens, depth)
    monkeypatch.setattr("attnzoo.heads.bev.spatial_cross_attention.leaves_sizes_free", lambda: True)
    torch.testing.assert_close(run(module, query, points, tokens, depth), want)


@pytest.mark.long
def test_an_exported_program_serves_other_scenes():
    module = module_of("dfa3d").eval()

    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, query, places, depth, visible, tokens, spread):
            return run(self.module, query, CameraPoints(places, depth, visible), tokens, spread)

    def given(batch: int, seed: int):
        points, tokens, depth = scene(batch, seed=seed)
        return (torch.randn(batch, 20, 8, dtype=torch.float64), *points, tokens, depth)

    free = {0: torch.export.Dim("batch", max=64)}
    with torch.no_grad():
        program = torch.export.export(Whole(), given(3, 0), dynamic_shapes=(free,) * 6).module()
        for batch, seed in ((3, 0), (2, 1), (5, 2)):
            example = given(batch, seed)
            torch.testing.assert_close(program(*example), Whole()(*example))


@pytest.mark.parametrize("lifting", LIFTINGS)
def test_nothing_visible(lifting):
    module, (points, tokens, depth) = module_of(lifting), scene()
    points = points._replace(visible=torch.zeros_like(points.visible))
    query = torch.randn(3, 20, 8, dtype=torch.float64)
    out = run(module, query, points, tokens, depth)
    torch.testing.assert_close(out, query + module.output_proj.bias)
    out.sum().backward()
    # Distributed training waits for the gradients of all.
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("lifting", LIFTINGS)
def test_gradients(lifting):
    module, (points, tokens, depth) = module_of(lifting), scene(2, 2, 5)
    query = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    tokens, depth = tokens.requires_grad_(), depth.requires_grad_(lifting == "dfa3d")
    leaves = [query, tokens, *([depth] if lifting == "dfa3d" else [])]
    assert torch.autograd.gradcheck(lambda *_: run(module, query, points, tokens, depth), leaves, fast_mode=True)
    run(module, query, points, tokens, depth).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize("lifting", LIFTINGS)
def test_half_precision(lifting):
    module, (points, tokens, depth) = module_of(lifting).float(), scene()
    points = points._replace(places=points.places.float(), depth=points.depth.float())
    query, tokens, depth = torch.randn(3, 20, 8), tokens.float(), depth.float()
    want = run(module, query, points, tokens, depth)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = run(module, query, points, tokens, depth)
    half = run(module.bfloat16(), query.bfloat16(), points, tokens.bfloat16(), depth.bfloat16())
    assert mixed.dtype == torch.float32 and half.dtype == torch.bfloat16
    for found in (mixed, half.float()):
        assert (found - want).abs().mean() < 0.05 * want.abs().mean()


def test_initial_samples():
    """A head's samples go out in its direction, and in depth by half the sum of its components."""
    module = SpatialCrossAttention(8, 4, 1, 2, 1, "dfa3d")
    assert module.sampling_offsets.bias.view(4, 2, 2).round(decimals=5).tolist() == [
        [[1, 0], [2, 0]], [[0, 1], [0, 2]], [[-1, 0], [-2, 0]], [[0, -1], [0, -2]]
    ]  # fmt: skip
    assert module.sampling_offsets_depth.bias.view(4, 2).round(decimals=5).tolist() == [
        [0.5, 1], [0.5, 1], [-0.5, -1], [-0.5, -1]
    ]  # fmt: skip
    # Diagonal directions reach whole pixels along both axes.
    assert SpatialCrossAttention(8, 8, 1, 1, 1).sampling_offsets.bias.view(8, 2)[3].round(decimals=5).tolist() == [
        -1,
        1,
    ]
    for layer in (module.sampling_offsets, module.sampling_offsets_depth, module.attention_weights):
        assert not layer.weight.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(lifting="3d"), r"lifting='3d': allowed are '2d', 'dfa3d'"),
        (dict(embed_dims=10), r"embed_dims=10: must be a multiple of num_heads=8"),
        (dict(num_points=6), r"num_points=6: must be a multiple of num_pillar_points=4"),
        (dict(num_levels=0), r"num_levels=0: must be 1 or more"),
        (dict(num_heads=2.0), r"num_heads=2.0: must be a whole number, got float"),
        (dict(dropout=2), r"dropout=2: must be from 0 to 1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        SpatialCrossAttention(**arguments)


def test_bad_input():
    points, tokens, depth = scene()
    query = torch.randn(3, 20, 8, dtype=torch.float64)
    flat, deep = module_of("2d"), module_of("dfa3d")
    views, deep_views = camera_views(points), camera_views(points, (2.0, 58.0))
    for module, given, message in (
        (flat, (query[..., :4], tokens, SIZES, views), r"query must be \(B, Q, C=8\), got shape \(3, 20, 4\)"),
        (flat, (query, tokens, SIZES[:1], views), "sizes has 1 levels, num_levels=2"),
        (flat, (query, tokens[:2], SIZES, views), r"tokens must be \(B=3, cameras, K=30, C=8\), got shape \(2,"),
        (flat, (query, tokens[:, :2], SIZES, views), r"views.places must be \(B \* cameras=6, R, P=2, 2\)"),
        (flat, (query, tokens, SIZES, views, depth), "lifting='2d' takes no depth"),
        (deep, (query, tokens, SIZES, deep_views), "lifting='dfa3d' needs depth"),
        (deep, (query, tokens, SIZES, views, depth), r"views.places must be \(B \* cameras=12, R, P=2, 3\)"),
        (deep, (query, tokens, SIZES, deep_views, depth[:, :, 1:]), r"depth must be \(B=3, cameras=4, K=30, bins\)"),
    ):
        with pytest.raises(ValueError, match=message):
            module(*given)
