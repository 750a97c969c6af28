"""NAT, DiNAT and DiNAT_s: pyramids of sliding-window attention, plain or dilated.

Neighborhood Attention Transformer, https://arxiv.org/abs/2204.07143; Dilated Neighborhood Attention Transformer,
https://arxiv.org/abs/2209.15001; https://github.com/SHI-Labs/Neighborhood-Attention-Transformer (MIT).

A map smaller than a block's window, `kernel_size * dilation`, is taken as NATTEN took it when the models were
published (up to 0.15; later ones refuse): the normed map is zero-padded right and bottom to that size before the
query-key-value projection, unmasked, and cropped behind the attention. DiNAT_s zero-pads images right and bottom to a
multiple of 4, and odd maps before patch merging.

The published dense recipes take the classification weights with other `dilations`, and return `LayerNorm(stage_i)`
with eps 1e-5, `norm0` to `norm3`, while the un-normed map goes on (the mm adapter's `stage_norms`):
- COCO, DiNAT: ((1, 28), (1, 7, 1, 14), (1, 3, 1, 5, 1, 7), (1, 3)); DiNAT_s: (1, 14) in the second stage.
- ADE20K at 512x512, DiNAT: ((1, 16), (1, 4, 1, 8), (1, 2, 1, 3, 1, 4), (1, 2)); DiNAT_s: (1, 8) in the second stage.
- ADE20K at 640x640, DiNAT-Large: ((1, 20), (1, 5, 1, 10), (1, 2, 1, 3, 1, 4, 1, 5, 1, 2, 1, 3, 1, 4, 1, 5, 1, 5),
  (1, 2)); DiNAT_s-Large: (1, 10) in the second stage.
- Mask2Former, DiNAT-Large: `kernel_size=11`, the 7x7 tables resized (which `checkpoint_filter_fn` does), and ((1, 14),
  (1, 4, 1, 7), (1, 2, 1, 3, 1, 2, 1, 3, 1, 2, 1, 3, 1, 2, 1, 3, 1, 3), (1,)).
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import (
    DropPath,
    LayerNorm2d,
    LayerScale,
    Mlp,
    calculate_drop_path_rates,
    register_notrace_function,
)
from timm.models import generate_default_cfgs
from torch import nn

from ..kernels import neighborhood_attention_packed
from .bodies import swin
from .bodies.layers import PatchConv, init_weights, larger_of, sizes_stay_free
from .bodies.pyramid import PyramidBackbone, PyramidStage
from .checkpoints.conversion import converted, renamed
from .contract.arguments import check_body, check_integers, check_numbers
from .contract.facts import Check, Facts, Variant
from .contract.registration import imagenet_cfg, register

__all__ = ["NeighborhoodAttentionTransformer"]

# A leaf of FX graphs: it reads sizes.
register_notrace_function(neighborhood_attention_packed)


@register_notrace_function
def pad_to_window(x: torch.Tensor, window: int) -> torch.Tensor:
    """Zero-pads a map (B, H, W, C) at the right and the bottom where it is smaller than `window`."""
    free = sizes_stay_free()
    pad_h, pad_w = larger_of(window - x.shape[1], 0), larger_of(window - x.shape[2], 0)
    # A branch on the size would bind an exported graph to the example's.
    if free or pad_h > 0 or pad_w > 0:
        x = F.pad(x, (0, 0, 0, pad_w, 0, pad_h))
    return x


@register_notrace_function
def crop(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The upper left `height` x `width` pixels of a map (B, H, W, C)."""
    free = sizes_stay_free()
    # A slice that takes all of the example's map would bind an exported graph to sizes where it does.
    if free:
        x = x.index_select(1, torch.arange(height, device=x.device))
        return x.index_select(2, torch.arange(width, device=x.device))
    return x[:, :height, :width]


class NeighborhoodAttention(nn.Module):
    """Multi-head attention of each pixel to a window around itself, with a relative position bias.

    Args:
        dim: channels.
        num_heads: divides `dim`.
        kernel_size: side of the window, in pixels of the dilated grid; odd.
        dilation: distance of the window's pixels. No weight depends on it.
        proj_drop: dropout behind the output projection.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int = 7,
        dilation: int = 1,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.qkv = nn.Linear(dim, 3 * dim, **dd)
        self.rpb = nn.Parameter(torch.empty(num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1, **dd))
        nn.init.trunc_normal_(self.rpb, std=0.02)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> the same."""
        height, width = x.shape[1], x.shape[2]
        qkv = self.qkv(pad_to_window(x, self.kernel_size * self.dilation))
        x = neighborhood_attention_packed(qkv, self.num_heads, self.kernel_size, self.dilation, self.rpb)
        return self.proj_drop(self.proj(crop(x, height, width)))


class Block(nn.Module):
    """Attention and MLP, each behind a LayerNorm, scaled per channel where `init_values` says so."""

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        mlp_ratio: float,
        proj_drop: float,
        drop_path: float,
        init_values: float | None,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.attn = attn
        self.ls1 = nn.Identity() if init_values is None else LayerScale(dim, init_values, **dd)
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop, **dd)
        self.ls2 = nn.Identity() if init_values is None else LayerScale(dim, init_values, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same."""
        x = x.permute(0, 2, 3, 1)
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x))))
        x = x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))
        return x.permute(0, 3, 1, 2)


class NeighborhoodAttentionTransformer(PyramidBackbone):
    """NAT, or with `dilations` DiNAT, or with both these and `swin_layout` DiNAT_s.

    Args:
        in_chans: channels of the image.
        num_classes: 0 for no classifier.
        global_pool: pooling before the classifier, `""` for none.
        depths: blocks of each stage.
        embed_dims: channels of each stage.
        num_heads: heads of each stage.
        mlp_ratio: hidden over outer channels of the MLPs.
        kernel_size: side of the windows, odd, 3 to 15.
        dilations: of each stage, those of its blocks in turn, again from the start where there are more blocks. No
            weight depends on them.
        init_values: of the layer scale, None for none.
        swin_layout: DiNAT_s: patch stem and patch merging, in place of overlapping convolutions.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout behind the projections of attention and MLP.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: where the tuples differ in length, heads do not divide `embed_dims`, `kernel_size` is none of 3, 5
            ... 15, or a stage's `dilations` are none or below 1.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: tuple[int, ...] = (3, 4, 6, 5),
        embed_dims: tuple[int, ...] = (64, 128, 256, 512),
        num_heads: tuple[int, ...] = (2, 4, 8, 16),
        mlp_ratio: float = 3.0,
        kernel_size: int = 7,
        dilations: Sequence[Sequence[int]] = ((1,), (1,), (1,), (1,)),
        init_values: float | None = None,
        swin_layout: bool = False,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        check_body(
            depths,
            embed_dims,
            in_chans,
            num_classes,
            global_pool,
            drop_rate,
            proj_drop_rate,
            drop_path_rate,
            num_heads=num_heads,
            dilations=dilations,
            mlp_ratio=mlp_ratio,
        )
        if any(not isinstance(steps, Sequence) or len(steps) == 0 for steps in dilations):
            raise ValueError(f"dilations={dilations!r}: one or more integers of each stage are needed")
        for steps in dilations:
            check_integers(tuples=True, dilations=steps)
        if kernel_size not in range(3, 16, 2):
            raise ValueError(f"kernel_size={kernel_size!r}: an odd number from 3 to 15 is needed")
        # The stem of two convolutions has half of the channels between them.
        check_integers(least=1 if swin_layout else 2, embed_dims=embed_dims[0])
        if init_values is not None:
            check_numbers(init_values=init_values)
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        drop_path: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        downsample = swin.PatchMerging if swin_layout else _conv_downsample
        stages = []
        for i, (dim, heads) in enumerate(zip(embed_dims, num_heads, strict=True)):
            blocks: list[nn.Module] = []
            for j in range(depths[i]):
                dilation = dilations[i][j % len(dilations[i])]
                attn = NeighborhoodAttention(dim, heads, kernel_size, dilation, proj_drop_rate, **dd)
                blocks.append(Block(dim, attn, mlp_ratio, proj_drop_rate, drop_path[i][j], init_values, **dd))
            stages.append(
                PyramidStage(
                    downsample(embed_dims[i - 1], dim, **dd) if i > 0 else nn.Identity(), blocks, nn.Identity()
                )
            )
        stem = (_patch_stem if swin_layout else _conv_stem)(in_chans, embed_dims[0], **dd)
        norm = LayerNorm2d(embed_dims[-1], eps=1e-5, **dd)
        super().__init__(stem, stages, norm, embed_dims, num_classes, in_chans, global_pool, drop_rate, **dd)
        self.apply(init_weights)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the position bias tables, as in the published code."""
        return {name for name, _ in self.named_parameters() if name.endswith(".rpb")}


def _conv_stem(in_chans: int, dim: int, **dd) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_chans, dim // 2, 3, stride=2, padding=1, **dd),
        nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1, **dd),
        LayerNorm2d(dim, eps=1e-5, **dd),
    )


def _conv_downsample(in_dim: int, dim: int, **dd) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_dim, dim, 3, stride=2, padding=1, bias=False, **dd), LayerNorm2d(dim, eps=1e-5, **dd)
    )


def _patch_stem(in_chans: int, dim: int, **dd) -> nn.Sequential:
    return nn.Sequential(PatchConv(in_chans, dim, 4, **dd), LayerNorm2d(dim, eps=1e-5, **dd))


_RENAMES = [
    (r"^patch_embed\.proj\.(\d)\.", r"stem.\1."),
    (r"^patch_embed\.norm\.", "stem.2."),
    # A published downsampler ends its level, ours begins the next.
    (r"^levels\.0\.downsample\.", "stages.1.downsample."),
    (r"^levels\.1\.downsample\.", "stages.2.downsample."),
    (r"^levels\.2\.downsample\.", "stages.3.downsample."),
    (r"\.downsample\.reduction\.", ".downsample.0."),
    (r"\.downsample\.norm\.", ".downsample.1."),
    (r"^levels\.(\d)\.", r"stages.\1."),
    (r"\.gamma([12])$", r".ls\1.gamma"),
    (r"^head\.", "head.fc."),
]


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Renames a published checkpoint (classifier, detector or segmentor) to our keys; returns ours untouched.

    The bias tables of another `kernel_size` are resized (bicubic, as the authors did for 11x11 windows). A detector's
    or segmentor's `norm0` to `norm3` are the mm adapter's and left out.
    """

    def translate(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        own = model.state_dict()
        # The body of DiNAT_s is Swin's, names included.
        renames = swin.RENAMES if "patch_embed.proj.weight" in state_dict else _RENAMES
        out = {renamed(key, renames): v for key, v in state_dict.items() if not re.match(r"norm\d\.", key)}
        for key, value in out.items():
            if key.endswith(".rpb") and key in own and own[key].shape[1:] != value.shape[1:]:
                resized = F.interpolate(value[None].float(), own[key].shape[1:], mode="bicubic")[0]
                out[key] = resized.to(value.dtype)
        return out

    return converted(state_dict, model, lambda state: "stem.0.weight" in state, translate, ("norm.", "head."))


_cfg = partial(
    imagenet_cfg,
    license="mit",
    origin_url="https://github.com/SHI-Labs/Neighborhood-Attention-Transformer",
    paper_name="Neighborhood Attention Transformer",
    paper_ids="arXiv:2204.07143",
)
_dinat_cfg = partial(_cfg, paper_name="Dilated Neighborhood Attention Transformer", paper_ids="arXiv:2209.15001")
_dinat_384_cfg = partial(_dinat_cfg, input_size=(3, 384, 384), pool_size=(12, 12), crop_pct=1.0)

default_cfgs = generate_default_cfgs(
    {
        "nat_mini.in1k": _cfg(81.8),
        "nat_tiny.in1k": _cfg(83.2),
        "nat_small.in1k": _cfg(83.7),
        "nat_base.in1k": _cfg(84.3),
        "dinat_mini.in1k": _dinat_cfg(81.8),
        "dinat_tiny.in1k": _dinat_cfg(82.7),
        "dinat_small.in1k": _dinat_cfg(83.8),
        "dinat_base.in1k": _dinat_cfg(84.4),
        "dinat_large.in22k_ft_in1k": _dinat_cfg(86.6),
        "dinat_large_384.in22k_ft_in1k": _dinat_384_cfg(87.4),
        "dinat_large_384_11x11.in22k_ft_in1k": _dinat_384_cfg(87.5),
        "dinat_s_tiny.in1k": _dinat_cfg(81.8),
        "dinat_s_small.in1k": _dinat_cfg(83.5),
        "dinat_s_base.in1k": _dinat_cfg(83.8),
        "dinat_s_large.in22k_ft_in1k": _dinat_cfg(86.5),
        "dinat_s_large_384.in22k_ft_in1k": _dinat_384_cfg(87.4),
    }
)

# Window and its dilation grow to a stage's whole map: at 224x224, and at 384x384 with a window of 7.
_DILATIONS = ((1, 8), (1, 4), (1, 2), (1,))
_DILATIONS_384 = ((1, 13), (1, 6), (1, 3), (1,))

_FACTS = Facts(NeighborhoodAttentionTransformer, checkpoint_filter_fn, stage_norms="norm")
# Channels, heads and hidden channels of the sizes.
_MINI = dict(embed_dims=(64, 128, 256, 512), num_heads=(2, 4, 8, 16), mlp_ratio=3.0)
_SMALL = dict(embed_dims=(96, 192, 384, 768), num_heads=(3, 6, 12, 24), mlp_ratio=2.0)
_BASE = dict(embed_dims=(128, 256, 512, 1024), num_heads=(4, 8, 16, 32), mlp_ratio=2.0)
_LARGE = dict(embed_dims=(192, 384, 768, 1536), num_heads=(6, 12, 24, 48), mlp_ratio=2.0)
# DiNAT_s in Swin's layout.
_SWIN = dict(mlp_ratio=4.0, dilations=_DILATIONS, swin_layout=True)

register(
    __name__,
    _FACTS,
    {
        "nat_mini": Variant("NAT-Mini, 20.0 M parameters.", dict(_MINI, depths=(3, 4, 6, 5)), golden=("nat_mini",)),
        "nat_tiny": Variant("NAT-Tiny, 27.9 M parameters.", dict(_MINI, depths=(3, 4, 18, 5))),
        "nat_small": Variant(
            "NAT-Small, 50.7 M parameters.", dict(_SMALL, depths=(3, 4, 18, 5), init_values=1e-5), beyond="layer scale"
        ),
        "nat_base": Variant(
            "NAT-Base, 89.8 M parameters.", dict(_BASE, depths=(3, 4, 18, 5), init_values=1e-5), beyond="layer scale"
        ),
        "dinat_mini": Variant(
            "DiNAT-Mini, 20.0 M parameters.",
            dict(_MINI, depths=(3, 4, 6, 5), dilations=_DILATIONS),
            golden=("dinat_mini",),
        ),
        "dinat_tiny": Variant(
            "DiNAT-Tiny, 27.9 M parameters.", dict(_MINI, depths=(3, 4, 18, 5), dilations=_DILATIONS)
        ),
        "dinat_small": Variant(
            "DiNAT-Small, 50.7 M parameters; no layer scale, unlike NAT-Small.",
            dict(_SMALL, depths=(3, 4, 18, 5), dilations=_DILATIONS),
        ),
        "dinat_base": Variant(
            "DiNAT-Base, 89.8 M parameters.",
            dict(_BASE, depths=(3, 4, 18, 5), init_values=1e-5, dilations=_DILATIONS),
            beyond="layer scale",
        ),
        "dinat_large": Variant(
            "DiNAT-Large, 200.9 M parameters; no layer scale, unlike DiNAT-Base.",
            dict(_LARGE, depths=(3, 4, 18, 5), dilations=_DILATIONS),
        ),
        "dinat_large_384": Variant(
            "DiNAT-Large, dilated for 384x384; `dinat_large` but for that.",
            dict(_LARGE, depths=(3, 4, 18, 5), dilations=_DILATIONS_384),
        ),
        "dinat_large_384_11x11": Variant(
            "DiNAT-Large with 11x11 windows for 384x384, 201.1 M parameters.",
            dict(_LARGE, depths=(3, 4, 18, 5), kernel_size=11, dilations=_DILATIONS),
        ),
    },
    golden_note="with plain PyTorch in the place of NATTEN's kernel, with which it agrees",
)

register(
    __name__,
    _FACTS,
    {
        "dinat_s_tiny": Variant("DiNAT_s-Tiny, 28.3 M parameters.", dict(_SMALL | _SWIN, depths=(2, 2, 6, 2))),
        "dinat_s_small": Variant("DiNAT_s-Small, 49.6 M parameters.", dict(_SMALL | _SWIN, depths=(2, 2, 18, 2))),
        "dinat_s_base": Variant("DiNAT_s-Base, 87.8 M parameters.", dict(_BASE | _SWIN, depths=(2, 2, 18, 2))),
        "dinat_s_large": Variant("DiNAT_s-Large, 196.5 M parameters.", dict(_LARGE | _SWIN, depths=(2, 2, 18, 2))),
        "dinat_s_large_384": Variant(
            "DiNAT_s-Large, dilated for 384x384; `dinat_s_large` but for that.",
            dict(_LARGE | _SWIN, depths=(2, 2, 18, 2), dilations=_DILATIONS_384),
        ),
    },
    no_golden="none was made of the published layout of Swin; its attention is that of dinat_mini",
    checks=(
        Check(
            "a plain definition of patch merging",
            "tests/backbones/bodies/test_swin_bodies.py::test_patch_merging_order_and_padding",
        ),
    ),
)
