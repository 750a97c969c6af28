"""The bodies of Swin and CSwin: shifts, stripes, merging and padding against plain definitions."""

import pytest
import torch
import torch.nn.functional as F

from attnzoo.backbones.bodies.cswin import CSwinTransformer, StripeAttention
from attnzoo.backbones.bodies.layers import TokenMlp
from attnzoo.backbones.bodies.swin import PatchMerging, SwinTransformer
from attnzoo.kernels import window_attention


def test_a_stage_that_is_one_window_shifts_only_at_other_sizes():
    model = SwinTransformer(depths=(1, 1, 1, 2))
    layers = [model.stages[i].blocks[-1].attn for i in range(4)]
    assert [layer.shift for layer in layers] == [0, 0, 0, 3] and [layer.single for layer in layers] == [False] * 3 + [
        True
    ]
    layer = layers[3]
    for size, shift in {(7, 7): 0, (14, 7): 3, (7, 14): 3, (14, 14): 3}.items():
        x = torch.randn(1, size[0] * size[1], 768)
        with torch.inference_mode():
            q, k, v = layer.qkv(x).unflatten(1, size).chunk(3, -1)
            want = layer.proj(window_attention(q, k, v, 24, 7, shift, bias_table=layer.relative_position_bias_table))
            torch.testing.assert_close(layer(x, *size), want.flatten(1, 2))


@pytest.mark.long
def test_an_exported_shift_knows_the_single_window():
    sizes = dict(depths=(1, 1, 1, 2), embed_dims=(8, 16, 32, 64), num_heads=(1, 1, 2, 2))
    # The last stage, whose map is one window where the image has 224 pixels a side.
    model = SwinTransformer(**sizes).eval().stages[3]
    dynamic = {i: torch.export.Dim.DYNAMIC for i in (0, 2, 3)}
    with torch.fx.experimental._config.patch(backed_size_oblivious=True):
        program = torch.export.export(
            model,
            (torch.randn(2, 32, 16, 20),),
            dynamic_shapes=(dynamic,),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        ).module()
    for size in ((14, 14), (14, 28), (7, 9)):
        x = torch.randn(1, 32, *size)
        with torch.inference_mode():
            torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 1)])
def test_patch_merging_order_and_padding(size):
    layer = PatchMerging(6, 10)
    x = torch.randn(2, 6, *size)
    full = F.pad(x, (0, size[1] % 2, 0, size[0] % 2)).permute(0, 2, 3, 1)
    corners = [full[:, row::2, col::2] for row, col in ((0, 0), (1, 0), (0, 1), (1, 1))]
    want = layer.reduction(layer.norm(torch.cat(corners, 3))).permute(0, 3, 1, 2)
    torch.testing.assert_close(layer(x), want)


def stripes(layer: StripeAttention, x: torch.Tensor) -> torch.Tensor:
    """One stripe after the other; x (B, H, W, C)."""
    split, heads, half = layer.split_size, layer.num_heads // 2, x.shape[3] // 2
    parts = []
    for vertical, conv in ((True, layer.lepe), (False, layer.lepe_across)):
        q, k, v = (t[..., :half] if vertical else t[..., half:] for t in layer.qkv(x).chunk(3, 3))
        q, k, v = (t if vertical else t.transpose(1, 2) for t in (q, k, v))
        width = q.shape[2]
        before = -width % split // 2
        q, k, v = (F.pad(t, (0, 0, before, -width % split - before)) for t in (q, k, v))
        out = torch.zeros_like(q)
        for start in range(0, q.shape[2], split):
            cut = slice(None), slice(None), slice(start, start + split)
            tokens = [t[cut].flatten(1, 2).unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v)]
            seen = (tokens[0] @ tokens[1].transpose(2, 3) * tokens[0].shape[3] ** -0.5).softmax(3) @ tokens[2]
            weight = conv.weight if vertical else conv.weight.transpose(2, 3)
            local = F.conv2d(v[cut].permute(0, 3, 1, 2), weight, conv.bias, padding=1, groups=half)
            out[cut] = seen.transpose(1, 2).flatten(2).view(out[cut].shape) + local.permute(0, 2, 3, 1)
        out = out[:, :, before : before + width]
        parts.append(out if vertical else out.transpose(1, 2))
    return layer.proj(torch.cat(parts, 3))


@pytest.mark.parametrize("size", [(6, 9), (7, 4), (1, 2)])
def test_stripes(size):
    layer = StripeAttention(16, 4, 3)
    x = torch.randn(2, *size, 16)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x.flatten(1, 2), *size), stripes(layer, x).flatten(1, 2))


def test_mlp_in_strips_is_the_mlp():
    layer = TokenMlp(6, 12)
    x = torch.randn(2, 40, 30, 6)
    with torch.inference_mode():
        strips = layer(x)
    torch.testing.assert_close(strips, layer(x).detach())


@pytest.mark.parametrize(
    ("body", "kwargs", "message"),
    [
        (SwinTransformer, dict(depths=(1, 1)), "one entry a stage"),
        (SwinTransformer, dict(num_heads=(5, 6, 12, 24)), r"embed_dims=.*: multiples of num_heads=.* are needed"),
        (SwinTransformer, dict(window_size=0), "window_size=0: integers of at least 1"),
        (CSwinTransformer, dict(split_sizes=(1, 2)), "one entry a stage"),
        (CSwinTransformer, dict(num_heads=(3, 4, 8, 16)), r"embed_dims=.*: multiples of num_heads=.* are needed"),
        (CSwinTransformer, dict(num_heads=(1, 4, 8, 16)), r"num_heads=\(1, 4, 8, 16\): even numbers are needed"),
        (CSwinTransformer, dict(split_sizes=(0, 2, 7, None)), r"split_sizes=\[0, 2, 7\]: integers of at least 1"),
    ],
)
def test_bad_arguments(body, kwargs, message):
    with pytest.raises(ValueError, match=message):
        body(device="meta", **kwargs)
