"""InLine attention on the bodies of DeiT, PVT and Swin.

Bridging the Divide: Reconsidering Softmax and Linear Attention, https://arxiv.org/abs/2412.06590,
https://github.com/LeapLabTHU/InLine (no licence; written from the paper and from facts about the published models).

Injective linear attention: queries against a head_dim x head_dim covariance of keys and values, plus a depth-wise 3x3
convolution of the values whose kernels are made, for each image, from the mean of the normed input. Nothing of it is
tied to the input size; the bodies say how they take any size. The repository has no dense-prediction code.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from timm.models import generate_default_cfgs
from torch import nn

from .bodies.deit import CFG, FEATURES, DeiT
from .bodies.exchange import convert_exchanged, leading_blocks
from .bodies.layers import sizes_stay_free
from .bodies.pvt import PyramidVisionTransformer
from .bodies.swin import SwinTransformer
from .contract.facts import Check, Facts, Variant
from .contract.registration import imagenet_cfg, register

__all__ = ["InLineDeiT", "InLinePVT", "InLineSwin"]


class InLineAttention(nn.Module):
    """Injective linear attention (equation 5 of the paper) with its local residual (equation 7).

    The published code adds `q (K^T V) scale / n` and `(1 - scale q mean(k)) mean(v)`; both are linear in q, and means
    of k and v are those of the input, projected: one small matrix for each head and image serves both terms.

    Args:
        dim: channels.
        num_heads: divides `dim`.
        grid: unused: nothing is tied to the size of the map.
        class_token: the first token is not of the map; it takes part in all but the convolution.
        proj_drop: dropout behind the output projection.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: tuple[int, int] | None = None,
        class_token: bool = False,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.class_token = class_token
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, **dd)
        self.kernels = nn.Sequential(
            nn.Conv1d(dim, dim, 1, groups=num_heads, **dd),
            nn.GELU(),
            nn.Conv1d(dim, 9 * dim, 1, groups=num_heads, **dd),
        )
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """(B, N, C) -> the same, N = height * width, and 1 more with a class token in front."""
        n = x.shape[1]
        mean = x.mean(1, keepdim=True)
        q, k, v = self._heads(self.qkv(x))
        means = self.qkv(mean)
        _, mean_k, mean_v = self._heads(means)
        # Half of the factor before the sum over n and half behind: neither overflows in float16.
        covariance = (k * (self.scale * n**-0.5)).transpose(2, 3) @ v * n**-0.5
        covariance = covariance - mean_k.transpose(2, 3) * self.scale * mean_v
        out = (q @ covariance).transpose(1, 2)
        v, bias = v.transpose(1, 2).flatten(2), means.chunk(3, dim=2)[2]
        kernels = self.kernels(mean.transpose(1, 2))
        if self.class_token:
            local = torch.cat((bias, convolve_locally(v[:, 1:], kernels, bias, height, width)), 1)
        else:
            local = convolve_locally(v, kernels, bias, height, width)
        # In this order the sum has the layout of a map, not of heads.
        out = local.unflatten(2, [self.num_heads, -1]) + out
        return self.proj_drop(self.proj(out.flatten(2)))

    def _heads(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, N, 3 * C) -> three times (B, heads, N, C / heads)."""
        q, k, v = qkv.unflatten(2, [3, self.num_heads, -1]).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v


@register_notrace_function
def convolve_locally(
    v: torch.Tensor, kernels: torch.Tensor, bias: torch.Tensor, height: int, width: int
) -> torch.Tensor:
    """Depth-wise 3x3 convolution with kernels and biases of each image's own.

    Args:
        v: (B, height * width, C).
        kernels: (B, 9 * C, 1), a channel's nine in a row.
        bias: (B, 1, C).
        height: of the map.
        width: of the map.

    Returns:
        (B, height * width, C).
    """
    b, _, c = v.shape
    free = sizes_stay_free()
    if free:
        # A convolution of as many groups as the batch asks for has no place in an ONNX graph.
        # Explicit copies: whether a view is contiguous depends on the batch, and asking would bind the graph to it.
        v = v.clone(memory_format=torch.contiguous_format)
        x = F.pad(v.unflatten(1, [height, width]), (0, 0, 1, 1, 1, 1))
        taps = kernels.squeeze(2).unflatten(1, [c, 9]).permute(2, 0, 1)[:, :, None, None]
        out = bias.unsqueeze(1)
        for i in range(9):
            out = out + x[:, i // 3 : i // 3 + height, i % 3 : i % 3 + width] * taps[i]
        return out.clone(memory_format=torch.contiguous_format).view(b, height * width, c)
    if b == 0:
        # A convolution of no groups is refused; the sum keeps what there is of a graph.
        return v + (kernels.sum() + bias.sum())
    # Images side by side in the channels of one map, in channels_last; a view for a single image.
    x = v.unflatten(1, [height, width]).permute(1, 2, 0, 3).flatten(2).unsqueeze(0).permute(0, 3, 1, 2)
    x = F.conv2d(x, kernels.reshape(b * c, 1, 3, 3), bias.flatten(), padding=1, groups=b * c)
    return x.permute(0, 2, 3, 1).squeeze(0).unflatten(2, [b, c]).permute(2, 0, 1, 3).flatten(1, 2)


class InLineDeiT(DeiT):
    """DeiT with InLine attention in every block.

    Args:
        kwargs: of the body.

    Raises:
        ValueError: where the body raises it.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(attention=lambda stage, block: InLineAttention, **kwargs)


class InLinePyramid(nn.Module):
    """Before a body with stages: InLine attention in its leading blocks.

    Args:
        depths: blocks of each stage.
        inline_blocks: of each stage the leading blocks with InLine attention, the others with the body's own; None for
            all.
        kwargs: of the body.

    Raises:
        ValueError: where the body raises it, or `inline_blocks` has not one entry a stage.
    """

    def __init__(self, depths: tuple[int, ...], inline_blocks: tuple[int | None, ...], **kwargs: Any):
        attention = leading_blocks("inline_blocks", inline_blocks, depths, lambda stage: InLineAttention)
        super().__init__(depths=depths, attention=attention, **kwargs)


class InLinePVT(InLinePyramid, PyramidVisionTransformer):
    """PVT with InLine attention, twice PVT's heads."""

    def __init__(
        self,
        depths: tuple[int, ...] = (2, 2, 2, 2),
        num_heads: tuple[int, ...] = (2, 4, 10, 16),
        inline_blocks: tuple[int | None, ...] = (None, None, None, None),
        **kwargs: Any,
    ):
        super().__init__(depths, inline_blocks, num_heads=num_heads, **kwargs)


class InLineSwin(InLinePyramid, SwinTransformer):
    """Swin with InLine attention, over the whole map and never shifted."""

    def __init__(
        self,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        inline_blocks: tuple[int | None, ...] = (None, None, None, 0),
        **kwargs: Any,
    ):
        super().__init__(depths, inline_blocks, **kwargs)


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Renames a published checkpoint (or one of a detector or segmentor) to our keys; returns ours untouched."""
    return convert_exchanged(state_dict, model, ".kernels.", [(r"\.residual\.", ".kernels.")])


_cfg = partial(
    imagenet_cfg,
    crop_pct=0.9,
    first_conv="stem.proj",
    license="other",
    origin_url="https://github.com/LeapLabTHU/InLine",
    paper_name="Bridging the Divide: Reconsidering Softmax and Linear Attention",
    paper_ids="arXiv:2412.06590",
    notes=("The repository has no licence.",),
)
_deit_cfg = partial(_cfg, **CFG)
_swin_cfg = partial(_cfg, first_conv="stem.0")

default_cfgs = generate_default_cfgs(
    {
        "inline_deit_tiny.in1k": _deit_cfg(74.5),
        "inline_deit_small.in1k": _deit_cfg(80.2, input_size=(3, 288, 288)),
        "inline_pvt_tiny.in1k": _cfg(78.2),
        "inline_pvt_small.in1k": _cfg(82.0),
        "inline_pvt_medium.in1k": _cfg(83.2),
        "inline_pvt_large.in1k": _cfg(83.6),
        "inline_swin_tiny.in1k": _swin_cfg(82.4),
        "inline_swin_small.in1k": _swin_cfg(83.6),
        "inline_swin_base.in1k": _swin_cfg(84.1),
    }
)

_facts = partial(Facts, checkpoint_filter=checkpoint_filter_fn)
_ATTENTION = Check("the attention matrix of the paper", "tests/backbones/test_inline.py::test_is_the_papers_attention")
_DEIT = Check("timm's DeiT (the body)", "tests/backbones/test_agent.py::test_deit_body_equals_timm")
_NO_GOLDEN = "none was made of the published body; its attention is that of inline_pvt_tiny"

register(
    __name__,
    _facts(InLineDeiT, **FEATURES),
    {
        "inline_deit_tiny": Variant("InLine-DeiT-T, 6.5 M parameters.", dict(embed_dim=192, num_heads=6)),
        "inline_deit_small": Variant(
            "InLine-DeiT-S, 16.7 M parameters; published at 288x288.", dict(embed_dim=320, num_heads=10, img_size=288)
        ),
    },
    checks=(_ATTENTION, _DEIT),
    no_golden=_NO_GOLDEN,
)

register(
    __name__,
    _facts(InLinePVT),
    {
        "inline_pvt_tiny": Variant(
            "InLine-PVT-T, 12.0 M parameters.", dict(depths=(2, 2, 2, 2)), golden=("inline_pvt_tiny",)
        ),
        "inline_pvt_small": Variant("InLine-PVT-S, 21.6 M parameters.", dict(depths=(3, 4, 6, 3))),
        "inline_pvt_medium": Variant("InLine-PVT-M, 37.6 M parameters.", dict(depths=(3, 4, 18, 3))),
        "inline_pvt_large": Variant("InLine-PVT-L, 51.2 M parameters.", dict(depths=(3, 8, 27, 3))),
    },
    checks=(_ATTENTION,),
)

register(
    __name__,
    _facts(InLineSwin),
    {
        "inline_swin_tiny": Variant(
            "InLine-Swin-T, 30 M parameters; window attention in the last stage.",
            dict(depths=(2, 2, 6, 2), inline_blocks=(None, None, None, 0)),
        ),
        "inline_swin_small": Variant(
            "InLine-Swin-S, 50 M parameters; window attention in the last two stages.",
            dict(depths=(2, 2, 18, 2), inline_blocks=(None, None, 0, 0)),
        ),
        "inline_swin_base": Variant(
            "InLine-Swin-B, 88 M parameters; window attention in the last stage and behind two blocks of the third.",
            dict(
                depths=(2, 2, 18, 2),
                embed_dims=(128, 256, 512, 1024),
                num_heads=(4, 8, 16, 32),
                inline_blocks=(None, None, 2, 0),
            ),
        ),
    },
    checks=(_ATTENTION,),
    no_golden=_NO_GOLDEN,
)
