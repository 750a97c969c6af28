"""InLine attention is the paper's, and the published variants are what their configurations say."""

import golden_files
import pytest
import timm
import torch
import torch.nn.functional as F

from attnzoo.backbones.inline import InLineAttention, checkpoint_filter_fn


def definition(layer: InLineAttention, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The attention matrix itself: scores less their mean over the keys, plus one, over n: rows that sum to one."""
    b, n, c = x.shape
    heads, prefix = layer.num_heads, n - height * width
    q, k, v = layer.qkv(x).view(b, n, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(2, 3) * (c // heads) ** -0.5
    matrix = (scores - scores.mean(3, keepdim=True) + 1) / n
    torch.testing.assert_close(matrix.sum(3), torch.ones_like(matrix[..., 0]))
    out = (matrix @ v).transpose(1, 2).reshape(b, n, c)
    kernels = layer.kernels(x.mean(1)[:, :, None]).view(b, c, 1, 3, 3)
    maps = v.transpose(1, 2).reshape(b, n, c)[:, prefix:].transpose(1, 2).reshape(b, c, height, width)
    local = torch.stack([F.conv2d(*one, padding=1, groups=c) for one in zip(maps, kernels, strict=True)])
    return layer.proj(out + F.pad(local.flatten(2).transpose(1, 2), (0, 0, prefix, 0)))


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", [(5, 7), (1, 1), (2, 1)])
def test_is_the_papers_attention(class_token, batch, size):
    torch.manual_seed(0)
    layer = InLineAttention(24, 3, class_token=class_token).double()
    x = torch.randn(batch, size[0] * size[1] + class_token, 24, dtype=torch.float64)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    got, want = layer(ours, *size), definition(layer, theirs, *size)
    torch.testing.assert_close(got, want)
    weight = torch.randn_like(got)
    got.backward(weight), want.backward(weight)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_many_large_tokens_do_not_overflow_in_float16():
    layer = InLineAttention(32, 1, dtype=torch.float16)
    with torch.inference_mode():
        # Every key and value near 4: their plain sum of products over the tokens is beyond float16.
        layer.qkv.weight.zero_()
        layer.qkv.bias.fill_(4.0)
        assert layer(torch.randn(1, 128 * 128, 32, dtype=torch.float16), 128, 128).isfinite().all()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # Counted on the published implementation, built as its yaml files say.
        ("inline_deit_tiny", 6477736),
        ("inline_deit_small", 16734760),
        ("inline_pvt_tiny", 12032232),
        ("inline_pvt_small", 21556136),
        ("inline_pvt_medium", 37618856),
        ("inline_pvt_large", 51154280),
        ("inline_swin_tiny", 29223544),
        ("inline_swin_small", 49793296),
        ("inline_swin_base", 88350120),
    ],
)
def test_published_parameters(name, parameters):
    assert sum(p.numel() for p in timm.create_model(name, device="meta").parameters()) == parameters


def published_swin(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The layout of the published Swin files, buffers and all, with tensors of `model`."""
    out = {}
    for key, value in model.state_dict().items():
        for old, new in [
            ("stem.0.", "patch_embed.proj."),
            ("stem.1.", "patch_embed.norm."),
            ("stages.1.downsample.", "layers.0.downsample."),
            ("stages.2.downsample.", "layers.1.downsample."),
            ("stages.3.downsample.", "layers.2.downsample."),
            ("stages.", "layers."),
            (".kernels.", ".residual."),
            ("head.fc.", "head."),
        ]:
            key = key.replace(old, new)
        out[key] = value
    out["layers.3.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)
    out["layers.3.blocks.1.attn_mask"] = torch.zeros(1, 49, 49)
    return out


def test_published_swin_layout_loads_without_its_buffers():
    source, model = (timm.create_model("inline_swin_tiny", depths=(1, 1, 1, 2)) for _ in range(2))
    model.load_state_dict(checkpoint_filter_fn({"model": published_swin(source)}, model), strict=True)
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_checkpoint_of_another_input_size():
    golden = golden_files.load("inline_pvt_tiny")
    weights = {key: value.float() for key, value in golden_files.checkpoint(golden).items()}
    model = timm.create_model("inline_pvt_tiny", img_size=256).eval()
    model.load_state_dict(checkpoint_filter_fn(weights, model), strict=True)
    assert model.stem.pos_embed.shape == (1, 64 * 64, 64)
    deit = timm.create_model("inline_deit_tiny", img_size=192, depth=1)
    wider = timm.create_model("inline_deit_tiny", depth=1)
    wider.load_state_dict(checkpoint_filter_fn({"model": _published_deit(deit)}, wider), strict=True)
    assert torch.equal(wider.pos_embed[:, 0], deit.pos_embed[:, 0])


def _published_deit(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key.replace(".kernels.", ".residual."): value for key, value in model.state_dict().items()}


@pytest.mark.parametrize("name", ["inline_pvt_tiny", "inline_swin_tiny"])
def test_one_entry_a_stage(name):
    with pytest.raises(ValueError, match=r"inline_blocks=\(None, 0\): one entry a stage is needed"):
        timm.create_model(name, inline_blocks=(None, 0))


def test_blocks_of_a_mixed_stage():
    model = timm.create_model("inline_swin_base", device="meta")
    kinds = [[isinstance(block.attn, InLineAttention) for block in stage.blocks] for stage in model.stages]
    assert kinds == [[True] * 2, [True] * 2, [True] * 2 + [False] * 16, [False] * 2]
    assert [block.attn.shift for block in model.stages[2].blocks[2:]] == [0, 3] * 8
