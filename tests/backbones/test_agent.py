"""Agent attention: dense use, tables of positions, arguments, and what the bodies of DeiT and PVT promise."""

import golden_files
import pytest
import timm
import torch
from torch import nn

from attnzoo.backbones import agent
from attnzoo.backbones.bodies.deit import DeiT
from attnzoo.backbones.bodies.pvt import PyramidVisionTransformer
from attnzoo.backbones.checkpoints.conversion import fuse_qkv

SMALL_PVT = dict(depths=(1, 1, 1, 1), embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 3, 4), num_agents=(4, 4, 4, 4))
SMALL_DEIT = dict(depth=2, embed_dim=16, num_heads=2, num_agents=4)


def published_bias(cells, lines, columns, rows, cols, height, width):
    """As the published dense code has it: rows and columns summed at 224, resized to the map, agents resized last."""
    heads, agents = cells.shape[:2]
    side = round(agents**0.5)
    total = 0
    for table in (cells, lines + columns):
        table = nn.functional.interpolate(table, (height, width), mode="bilinear")
        table = table.reshape(heads, side, side, height * width).permute(0, 3, 1, 2)
        table = nn.functional.interpolate(table, (rows, cols), mode="bilinear")
        total = total + table.reshape(heads, height * width, rows * cols)
    return total


@pytest.mark.parametrize("agents_last", [False, True])
@pytest.mark.parametrize(("rows", "cols"), [(3, 3), (5, 4)])
@pytest.mark.parametrize(("height", "width"), [(14, 14), (9, 23), (1, 1)])
def test_bias_is_resized_as_published(height, width, rows, cols, agents_last):
    tables = [torch.randn(2, 9, *shape, dtype=torch.float64) for shape in ((7, 7), (14, 1), (1, 14))]
    bias = agent.agent_bias(*tables, 3, rows, cols, height, width, agents_last)
    want = published_bias(*tables, rows, cols, height, width)
    assert bias.is_contiguous()
    assert torch.allclose(bias, want if agents_last else want.transpose(1, 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("height", "width", "rows", "cols"), [(14, 14, 7, 7), (9, 23, 4, 5), (3, 2, 5, 7)])
def test_matrices_of_averages_pool_as_adaptive_pooling_does(height, width, rows, cols):
    x = torch.randn(2, height * width, 6, dtype=torch.float64)
    by_rows = torch.einsum("ph,bhwc->bpwc", agent._averages(height, rows, x), x.unflatten(1, (height, width)))
    pooled = torch.einsum("qw,bpwc->bpqc", agent._averages(width, cols, x), by_rows).flatten(1, 2)
    assert torch.allclose(pooled, agent.pool_agents(x, height, width, rows, cols), rtol=0, atol=1e-12)


def test_class_token_and_more_agents():
    """With tables that are constant, a class token in front changes nothing that it does not attend to."""
    layer = agent.AgentAttention(8, 2, (4, 4), 4, (3, 5), class_token=True).double().eval()
    x = torch.randn(2, 1 + 6 * 7, 8, dtype=torch.float64)
    out = layer(x, 6, 7)
    assert out.shape == x.shape
    flipped = layer(x[[1, 0]], 6, 7)
    assert torch.allclose(out, flipped[[1, 0]], rtol=0, atol=1e-12)
    with torch.no_grad():
        layer.ca_bias.add_(5.0)
        assert torch.allclose(layer(x, 6, 7), out, atol=1e-12), "a constant over the agents leaves the softmax alone"
        layer.ac_bias.fill_(1e4)
        hidden = layer(x, 6, 7)
        x[:, 1:] += torch.randn_like(x[:, 1:])
        # All agents read the class token alone: what they give no longer depends on the map.
        assert torch.allclose(layer(x, 6, 7)[:, 0], hidden[:, 0], atol=1e-9)


@pytest.mark.parametrize(("name", "blocks"), [("agent_deit_base", 4), ("agent_swin_base", (2, 2, 2, 0))])
def test_which_blocks_have_agents(name, blocks):
    model = timm.create_model(name, device="meta")
    stages = [model.blocks] if isinstance(blocks, int) else [stage.blocks for stage in model.stages]
    counts = [sum(isinstance(block.attn, agent.AgentAttention) for block in stage) for stage in stages]
    assert counts == ([blocks] if isinstance(blocks, int) else list(blocks))


PARAMETERS = {
    "agent_deit_tiny": 6_015_640,
    "agent_deit_small": 22_647_112,
    "agent_deit_base": 87_204_904,
    "agent_pvt_tiny": 11_570_352,
    "agent_pvt_small": 20_635_066,
    "agent_pvt_medium": 35_921_746,
    "agent_pvt_large": 48_738_180,
    "agent_swin_tiny": 28_902_964,
    "agent_swin_small": 49_666_684,
    "agent_swin_base": 88_095_096,
    "agent_cswin_tiny": 20_458_672,
    "agent_cswin_small": 32_814_100,
    "agent_cswin_base": 73_249_696,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_the_published_models(name):
    """Counted in the published code under its yaml files."""
    model = timm.create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@torch.inference_mode()
def test_position_embeddings_are_resized_at_3136_cells_too():
    """The published code leaves them as they are where a map has as many cells as stage 1 at 224."""
    model = timm.create_model("agent_pvt_tiny", **SMALL_PVT).eval()
    assert [x.shape[2] for x in model.forward_intermediates(torch.randn(1, 3, 448, 448))[1]] == [112, 56, 28, 14]
    nn.init.zeros_(model.stem.norm.weight)
    model.stem.pos_embed.copy_(torch.arange(56.0).repeat_interleave(56)[None, :, None])
    rows = model.stem(torch.zeros(1, 3, 112, 448))[0, 0]
    assert rows.shape == (28, 112)
    assert torch.equal(rows, rows[:, :1].expand_as(rows)) and (rows[1:, 0] > rows[:-1, 0]).all()


@pytest.mark.parametrize("name", ["agent_deit_tiny", "agent_pvt_tiny", "agent_swin_tiny"])
def test_checkpoint_of_another_image_size(name):
    """As the published code fine-tunes: tables of lines linearly, position embeddings bicubically."""
    weights = golden_files.checkpoint(golden_files.load(name))
    model = timm.create_model(name, img_size=256).double()
    model.load_state_dict(agent.checkpoint_filter_fn(weights, model), strict=True)
    attn = model.blocks[0].attn if "deit" in name else model.stages[0].blocks[0].attn
    old = next(value for key, value in weights.items() if key.endswith("0.attn.wa_bias"))[0, :, 0]
    wide = nn.functional.interpolate(old.transpose(1, 2), attn.wa_bias.shape[2], mode="linear").transpose(1, 2)
    assert torch.allclose(attn.wa_bias[:, 0], wide, atol=1e-6)
    if "deit" in name:
        assert torch.equal(model.pos_embed[:, 0], weights["pos_embed"][:, 0])
        grid = weights["pos_embed"][:, 1:].unflatten(1, (14, 14)).permute(0, 3, 1, 2)
        grid = nn.functional.interpolate(grid, (16, 16), mode="bicubic").flatten(2).transpose(1, 2)
        assert torch.allclose(model.pos_embed[:, 1:], grid, atol=1e-6)


def test_tables_of_other_heads_are_refused():
    model = timm.create_model("agent_deit_tiny", **SMALL_DEIT)
    weights = golden_files.checkpoint(golden_files.load("agent_deit_tiny"))
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict(agent.checkpoint_filter_fn(weights, model), strict=False)


def test_dense_swin_checkpoint_leaves_out_its_norms():
    model = timm.create_model("agent_swin_tiny")
    weights = golden_files.checkpoint(golden_files.load("agent_swin_tiny"))
    dense = {f"backbone.{k}": v for k, v in weights.items() if not k.startswith(("head.", "norm."))}
    for i, dim in enumerate((96, 192, 384, 768)):
        dense[f"backbone.norm{i}.weight"] = dense[f"backbone.norm{i}.bias"] = torch.ones(dim)
    dense["backbone.layers.3.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
    dense["backbone.layers.3.blocks.1.attn_mask"] = torch.zeros(1, 49, 49)
    model.load_state_dict(agent.checkpoint_filter_fn({"state_dict": dense}, model), strict=True)


def test_fused_projections():
    """q and kv become qkv where the model has one; a half that is missing stays visible to the strict load."""
    model = nn.ModuleDict(
        {"fused": nn.ModuleDict({"qkv": nn.Linear(2, 6)}), "split": nn.ModuleDict({"q": nn.Linear(2, 2)})}
    )
    published = {f"{part}.{kind}.weight": torch.randn(n, 2) for part in model for kind, n in (("q", 2), ("kv", 4))}
    out = fuse_qkv(published, model)
    assert set(out) == {"fused.qkv.weight", "split.q.weight", "split.kv.weight"}
    assert torch.equal(out["fused.qkv.weight"], torch.cat((published["fused.q.weight"], published["fused.kv.weight"])))
    del published["fused.kv.weight"]
    assert "fused.q.weight" in fuse_qkv(published, model)


def test_deit_body_equals_timm():
    """With softmax attention in every block the body is timm's DeiT."""
    ours = DeiT(depth=2).eval()
    timms = timm.create_model("deit_tiny_patch16_224", depth=2).eval()
    ours.load_state_dict(timms.state_dict(), strict=True)
    x = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        assert torch.allclose(ours(x), timms(x), rtol=1e-4, atol=1e-5)
        maps, wants = (m.forward_intermediates(x, norm=True, return_prefix_tokens=True)[1] for m in (ours, timms))
        for got, want in zip(maps, wants, strict=True):
            assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(got, want, strict=True))
        tokens = ours.forward_intermediates(x, 1, output_fmt="NLC", intermediates_only=True)[0]
        assert tokens.shape == (2, 196, 192)
        for pool in ("avg", "max", "avgmax", "token", ""):
            ours.reset_classifier(0, pool), timms.reset_classifier(0, pool)
            assert torch.allclose(ours(x), timms(x), rtol=1e-4, atol=1e-5), pool


def test_pvt_body_reduces_keys_and_values():
    """PVT's own blocks, also as part of an agent model; every parameter has a gradient."""
    kwargs = dict(depths=(1, 1, 1, 1), embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 3, 4), num_classes=3)
    plain = PyramidVisionTransformer(**kwargs)
    mixed = timm.create_model("agent_pvt_tiny", agent_blocks=(None, 0, 0, None), **kwargs)
    for model in (plain, mixed):
        model(torch.randn(2, 3, 64, 96)).square().mean().backward()
        assert all(p.grad is not None for p in model.parameters())
    assert plain.stages[0].blocks[0].attn.sr.kernel_size == (8, 8) and plain.stages[3].blocks[0].attn.sr is None
    attn, x = plain.stages[1].blocks[0].attn, torch.randn(1, 8 * 12, 16)
    reduced = attn.norm(attn.sr(x.transpose(1, 2).reshape(1, 16, 8, 12)).flatten(2).transpose(1, 2))
    q, (k, v) = attn.q(x), attn.kv(reduced).chunk(2, -1)
    heads = [y.reshape(1, -1, 2, 8).transpose(1, 2) for y in (q, k, v)]
    weights = (heads[0] @ heads[1].transpose(2, 3) / 8**0.5).softmax(-1)
    want = attn.proj((weights @ heads[2]).transpose(1, 2).reshape(1, -1, 16))
    assert torch.allclose(attn(x, 8, 12), want, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("agent_pvt_tiny", dict(num_agents=(9, 16, 50, 49)), "squares"),
        ("agent_pvt_tiny", dict(agent_grids=(3, 4)), "one entry a stage"),
        ("agent_pvt_tiny", dict(agent_grids=(3, 4, 7, 0)), "agent_grids"),
        ("agent_pvt_tiny", dict(depths=(2, 2)), "one entry a stage"),
        ("agent_pvt_tiny", dict(num_heads=(1, 2, 5, 7)), "num_heads"),
        ("agent_pvt_tiny", dict(img_size=16), "img_size"),
        ("agent_deit_tiny", dict(agent_grid=0), "agent_grids"),
        ("agent_deit_tiny", dict(num_heads=5), "num_heads"),
        ("agent_deit_tiny", dict(img_size=8), "img_size"),
        ("agent_deit_tiny", dict(global_pool="map"), "global_pool"),
    ],
)
def test_bad_arguments(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model(name, **kwargs)
