"""What NAT, DiNAT and DiNAT_s have beyond the contract: published configurations, dilations, maps below the window."""

import golden_files
import pytest
import timm
import torch

import attnzoo
from attnzoo.backbones.nat import NeighborhoodAttention, checkpoint_filter_fn

PARAMETERS = {
    "nat_mini": 19984174,
    "nat_tiny": 27901582,
    "nat_small": 50743297,
    "nat_base": 89769652,
    "dinat_mini": 19984174,
    "dinat_tiny": 27901582,
    "dinat_small": 50719681,
    "dinat_base": 89769652,
    "dinat_large": 200943514,
    "dinat_large_384": 200943514,
    "dinat_large_384_11x11": 201144250,
    "dinat_s_tiny": 28288354,
    "dinat_s_small": 49606258,
    "dinat_s_base": 87768224,
    "dinat_s_large": 196532476,
    "dinat_s_large_384": 196532476,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    """As counted in the published classes."""
    model = timm.create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_every_variant_is_registered():
    assert sorted(attnzoo.list_models("*nat_*")) == sorted(PARAMETERS)


def dilations(model) -> list[list[int]]:
    return [[block.attn.dilation for block in stage.blocks] for stage in model.stages]


def test_published_dilations():
    assert dilations(timm.create_model("nat_mini", device="meta")) == [[1] * n for n in (3, 4, 6, 5)]
    assert dilations(timm.create_model("dinat_tiny", device="meta")) == [[1, 8, 1], [1, 4] * 2, [1, 2] * 9, [1] * 5]
    assert dilations(timm.create_model("dinat_s_tiny", device="meta")) == [[1, 8], [1, 4], [1, 2] * 3, [1, 1]]
    large = dilations(timm.create_model("dinat_large_384", device="meta"))
    assert large == [[1, 13, 1], [1, 6] * 2, [1, 3] * 9, [1] * 5]


def test_dense_recipes_dilate_the_same_weights_otherwise():
    published = [[1, 28, 1], [1, 7, 1, 14], [1, 3, 1, 5, 1, 7], [1, 3, 1, 3, 1]]
    model = timm.create_model("dinat_mini", dilations=published, num_classes=0).eval()
    assert dilations(model) == published
    pattern = ((1, 28), (1, 7, 1, 14), (1, 3, 1, 5, 1, 7), (1, 3))
    assert dilations(timm.create_model("dinat_mini", dilations=pattern, device="meta")) == published
    plain = timm.create_model("dinat_mini", num_classes=0).eval()
    plain.load_state_dict(model.state_dict())
    with torch.inference_mode():
        x = torch.randn(1, 3, 64, 64)
        assert not torch.allclose(plain(x), model(x))


@pytest.mark.parametrize(("h", "w"), [(3, 9), (9, 4), (2, 2)])
def test_a_map_below_the_window_is_padded_before_the_projection(h, w):
    """Pixels of the padding carry the projection's bias and are attended to, as in NATTEN up to 0.15."""
    layer = NeighborhoodAttention(8, 2, kernel_size=3, dilation=2).eval()
    x = torch.randn(2, h, w, 8)
    larger = torch.zeros(2, max(h, 6), max(w, 6), 8)
    larger[:, :h, :w] = x
    torch.testing.assert_close(layer(x), layer(larger)[:, :h, :w])


def published() -> dict[str, torch.Tensor]:
    return {key: value.float() for key, value in golden_files.checkpoint(golden_files.load("dinat_mini")).items()}


def test_dense_norms_are_left_out():
    weights = {f"backbone.{k}": v for k, v in published().items() if not k.startswith(("head.", "norm."))}
    for i, dim in enumerate((64, 128, 256, 512)):
        weights[f"backbone.norm{i}.weight"] = torch.ones(dim)
        weights[f"backbone.norm{i}.bias"] = torch.zeros(dim)
    model = timm.create_model("dinat_mini")
    model.load_state_dict(checkpoint_filter_fn({"state_dict": weights}, model), strict=True)


def test_bias_tables_fit_another_kernel_size():
    model = timm.create_model("dinat_mini", kernel_size=11)
    state = checkpoint_filter_fn(published(), model)
    model.load_state_dict(state, strict=True)
    table = published()["levels.0.blocks.1.attn.rpb"]
    want = torch.nn.functional.interpolate(table[None], (21, 21), mode="bicubic")[0]
    assert torch.equal(model.stages[0].blocks[1].attn.rpb, want)


def test_dinat_s_and_layer_scale_load_from_the_published_layout():
    """Names as in the published classes, which have no golden file here; the mapping back is written out."""
    for name, level in (("dinat_s_tiny", "layers"), ("nat_small", "levels")):
        model = timm.create_model(name, depths=(1, 1, 1, 1))
        state = {}
        for key, value in model.state_dict().items():
            stage = key.split(".")[1]
            if ".downsample." in key:
                key = key.replace(f"stages.{stage}", f"{level}.{int(stage) - 1}")
            key = key.replace("stages.", f"{level}.").replace("head.fc.", "head.")
            key = key.replace(".ls1.gamma", ".gamma1").replace(".ls2.gamma", ".gamma2")
            if level == "levels":
                key = key.replace(".downsample.0.", ".downsample.reduction.")
                key = key.replace(".downsample.1.", ".downsample.norm.")
                key = key.replace("stem.2.", "patch_embed.norm.").replace("stem.", "patch_embed.proj.")
            else:
                key = key.replace("stem.0.", "patch_embed.proj.").replace("stem.1.", "patch_embed.norm.")
            state[key] = value + 1
        back = checkpoint_filter_fn(state, model)
        assert back.keys() == model.state_dict().keys()
        assert all(torch.equal(back[key], value + 1) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(depths=(1, 1)), "one entry a stage"),
        (dict(dilations=((1,), (1,))), "one entry a stage"),
        (dict(dilations=((1,), (1,), (), (1,))), r"dilations=.*: one or more integers of each stage"),
        (dict(dilations=((1,), (0,), (1,), (1,))), r"dilations=.*: integers of at least 1"),
        (dict(num_heads=(3, 4, 8, 16)), r"embed_dims=.*: multiples of num_heads=.* are needed"),
        (dict(kernel_size=8), "kernel_size=.*: an odd number"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("nat_mini", **kwargs)
