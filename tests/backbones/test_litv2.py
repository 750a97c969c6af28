"""LITv2: deformable merging, HiLo attention, and what its detection and segmentation checkpoints hold."""

import golden_files
import pytest
import timm
import torch
import torch.nn.functional as F
from torchvision.ops import deform_conv2d

from attnzoo.backbones.litv2 import DeformableMerge, HiLo, checkpoint_filter_fn, sample_patches


def shallow(**kwargs) -> torch.nn.Module:
    return timm.create_model("litv2_small", depths=(1, 1, 1, 1), **kwargs)


@pytest.mark.parametrize("size", [(2, 2), (7, 10), (13, 5)])
def test_merging_is_deformable_convolution(size):
    """torchvision's operator equals the published one; some offsets here lead beyond the border."""
    x = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
    offset = 2 * torch.randn(2, 8, size[0] // 2, size[1] // 2, dtype=torch.float64)
    offset[..., 0] *= 10
    offset.requires_grad_()
    weight, bias = torch.randn(4, 6, 2, 2, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    ours = F.conv2d(sample_patches(x, offset), weight, bias, stride=2)
    want = deform_conv2d(x, offset, weight, bias, stride=2)
    torch.testing.assert_close(ours, want, rtol=1e-10, atol=1e-10)
    cotangent = torch.randn_like(want)
    for ours_grad, want_grad in zip(
        torch.autograd.grad(ours, (x, offset), cotangent),
        torch.autograd.grad(want, (x, offset), cotangent),
        strict=True,
    ):
        torch.testing.assert_close(ours_grad, want_grad, rtol=1e-8, atol=1e-8)


def test_merging_starts_as_a_convolution():
    merge = shallow(num_classes=0).stages[1].downsample.eval()
    assert isinstance(merge, DeformableMerge)
    x = torch.randn(1, 96, 11, 8)
    with torch.inference_mode():
        torch.testing.assert_close(merge(x), merge.act(merge.norm(merge.conv(x))), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_offsets_are_exact_in_half_precision(dtype):
    """Half precision cannot tell neighbouring pixels of a wide map apart: coordinates must be wider."""
    x = torch.randn(1, 2, 2, 1200).to(dtype)
    offset = torch.full((1, 8, 1, 600), 0.25, dtype=dtype)
    want = sample_patches(x.double(), offset.double())
    torch.testing.assert_close(sample_patches(x, offset).double(), want, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("window_size", "alpha"), [(1, 0.9), (2, 0.0), (2, 0.5), (2, 1.0), (3, 0.9), (4, 0.9)])
def test_hilo_is_the_attention_of_the_paper(window_size, alpha):
    """Every token against every key, one by one, with a mask for the windows; 12 x 12 fits all windows."""
    torch.manual_seed(0)
    attn = HiLo(40, 10, window_size, alpha).double()
    x = torch.randn(2, 12, 12, 40, dtype=torch.float64)
    place = torch.arange(12) // window_size
    window = (place[:, None] * 12 + place).flatten()
    same = window[:, None] == window
    parts = []
    if attn.high_heads:
        q, k, v = _heads(attn.high_qkv(x), 3 * attn.high_heads).chunk(3, 1)
        weights = ((q @ k.mT) / 2).masked_fill(~same, -torch.inf).softmax(-1)
        parts.append(attn.high_proj((weights @ v).transpose(1, 2).reshape(2, 12, 12, -1)))
    if attn.low_heads:
        q = _heads(attn.low_q(x), attn.low_heads)
        averages = same.double() / same.sum(1)
        means = (averages @ x.flatten(1, 2))[:, [int((window == i).nonzero()[0]) for i in window.unique()]]
        k, v = _heads(attn.low_kv(means)[:, None], 2 * attn.low_heads).chunk(2, 1)
        parts.append(attn.low_proj((((q @ k.mT) / 2).softmax(-1) @ v).transpose(1, 2).reshape(2, 12, 12, -1)))
    torch.testing.assert_close(attn(x), torch.cat(parts, -1), rtol=1e-10, atol=1e-10)


def _heads(x: torch.Tensor, num_heads: int) -> torch.Tensor:
    return x.flatten(1, 2).unflatten(-1, (num_heads, -1)).transpose(1, 2)


def test_hilo_pads_unmasked():
    attn = HiLo(40, 10, 4, 0.9).double()
    x = torch.randn(1, 7, 9, 40, dtype=torch.float64)
    torch.testing.assert_close(attn(x), attn(F.pad(x, (0, 0, 0, 3, 0, 1)))[:, :7, :9], rtol=1e-12, atol=1e-12)


def test_early_stages_have_no_attention():
    model = timm.create_model("litv2_small", device="meta")
    assert [stage.blocks[0].attn is not None for stage in model.stages] == [False, False, True, True]
    assert (model.stages[2].blocks[0].attn.low_heads, model.stages[2].blocks[0].attn.high_heads) == (10, 2)
    assert (model.stages[3].blocks[0].attn.low_heads, model.stages[3].blocks[0].attn.high_heads) == (24, 0)


def test_detection_window_uses_the_same_weights():
    assert {k: v.shape for k, v in shallow(local_ws=(0, 0, 4, 1)).state_dict().items()} == {
        k: v.shape for k, v in shallow().state_dict().items()
    }


@pytest.mark.parametrize("norms", [(1, 2, 3), (0, 1, 2, 3)], ids=["detection", "segmentation"])
def test_dense_checkpoint_loads_without_its_stage_norms(norms):
    golden = golden_files.load("litv2_small")
    weights = {k: v.float() for k, v in golden_files.checkpoint(golden).items()}
    dense = {f"backbone.{k}": v for k, v in weights.items() if not k.startswith(("head.", "norm."))}
    for i in norms:
        dense |= {f"backbone.norm{i}.{leaf}": torch.ones(96 * 2**i) for leaf in ("weight", "bias")}
    model, plain = timm.create_model("litv2_small"), timm.create_model("litv2_small")
    model.load_state_dict(checkpoint_filter_fn({"state_dict": dense}, model))
    plain.load_state_dict(checkpoint_filter_fn({"model": weights}, plain))
    got, want = model.state_dict(), plain.state_dict()
    assert all(torch.equal(got[k], v) for k, v in want.items() if not k.startswith(("head.", "norm.")))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(depths=(1, 1)), "one entry a stage"),
        (dict(num_heads=(5, 6, 12, 24)), "num_heads"),
        (dict(local_ws=(0, 0, -1, 1)), "local_ws"),
        (dict(alpha=1.5), "alpha"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("litv2_small", **kwargs)
