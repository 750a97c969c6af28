"""VAN and MSCAN: pyramids of large-kernel convolutional attention.

Visual Attention Network, https://arxiv.org/abs/2202.09741,
https://github.com/Visual-Attention-Network/VAN-Classification (Apache-2.0).
SegNeXt (MSCAN), https://arxiv.org/abs/2209.08575, https://github.com/Visual-Attention-Network/SegNeXt (Apache-2.0).
Both repositories ask commercial users to contact the authors.

The LayerNorm at the end of each stage is part of the trunk: the normed map is the stage's feature and goes on into the
next stage, in classification as in dense prediction. Odd sizes become ceil(n / stride). VAN's published segmentation
code differs from its classification code in `norm_eps` alone (1e-5 for 1e-6).
"""

import math
import re
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm2d, calculate_drop_path_rates
from timm.models import generate_default_cfgs
from torch import nn

from ..kernels import pointwise_conv
from .bodies.layers import ChannelsLastConv, DepthwiseConv2d, LargeKernelGate, PointwiseConv2d
from .bodies.pyramid import PyramidBackbone, PyramidStage
from .checkpoints.conversion import converted, renamed
from .contract.arguments import check_body, check_integers, check_numbers
from .contract.facts import Facts, Variant
from .contract.registration import imagenet_cfg, register

__all__ = ["VisualAttentionNetwork"]

# Maps are channels_last in memory throughout; PyTorch's GELU is only quick if their shape says so as well.


class MultiScaleGate(nn.Module):
    """MSCAN's gate: depth-wise 5x5, plus three pairs of strips on its output (1xk, then kx1), then point-wise."""

    def __init__(self, dim: int, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.local = DepthwiseConv2d(dim, 5, **dd)
        self.strips = nn.ModuleList(
            nn.Sequential(
                DepthwiseConv2d(dim, (1, k), **dd),
                DepthwiseConv2d(dim, (k, 1), **dd),
            )
            for k in (7, 11, 21)
        )
        self.pointwise = PointwiseConv2d(dim, dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same."""
        local = self.local(x)
        gate = local
        for strip in self.strips:
            gate = gate + strip(local)
        return pointwise_conv(gate, self.pointwise.weight, self.pointwise.bias, x)


class Attention(nn.Module):
    """Point-wise, GELU, gate, point-wise, plus its own input."""

    def __init__(self, dim: int, gate: type[nn.Module], device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.proj_in = PointwiseConv2d(dim, dim, **dd)
        self.act = nn.GELU()
        self.gate = gate(dim, **dd)
        self.proj_out = PointwiseConv2d(dim, dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same."""
        gelu = self.act(self.proj_in(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x + self.proj_out(self.gate(gelu))


class ConvMlp(nn.Module):
    """Point-wise, depth-wise 3x3, GELU, point-wise."""

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.fc1 = PointwiseConv2d(dim, hidden_dim, **dd)
        self.dwconv = DepthwiseConv2d(hidden_dim, 3, **dd)
        self.act = nn.GELU()
        self.drop = nn.Dropout(drop)
        self.fc2 = PointwiseConv2d(hidden_dim, dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same."""
        x = self.act(self.dwconv(self.fc1(x)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.drop(x)
        return self.drop(self.fc2(x))


class Block(nn.Module):
    """Attention and MLP, each behind a batch norm, scaled per channel, with a shortcut around."""

    def __init__(
        self,
        dim: int,
        mlp_ratio: float,
        gate: type[nn.Module],
        proj_drop: float,
        drop_path: float,
        init_values: float,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm1 = nn.BatchNorm2d(dim, **dd)
        self.attn = Attention(dim, gate, **dd)
        self.layer_scale_1 = nn.Parameter(torch.full((dim,), init_values, **dd))
        self.norm2 = nn.BatchNorm2d(dim, **dd)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio), proj_drop, **dd)
        self.layer_scale_2 = nn.Parameter(torch.full((dim,), init_values, **dd))
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same."""
        x = torch.addcmul(x, self.drop_path(self.attn(self.norm1(x))), self.layer_scale_1[:, None, None])
        return torch.addcmul(x, self.drop_path(self.mlp(self.norm2(x))), self.layer_scale_2[:, None, None])


def _patch_embed(in_chans: int, dim: int, kernel_size: int, stride: int, first: bool = False, **dd) -> nn.Sequential:
    conv = ChannelsLastConv if first else nn.Conv2d
    return nn.Sequential(
        conv(in_chans, dim, kernel_size, stride=stride, padding=kernel_size // 2, **dd), nn.BatchNorm2d(dim, **dd)
    )


class VisualAttentionNetwork(PyramidBackbone):
    """VAN, or MSCAN with `multi_scale`.

    Args:
        in_chans: channels of the image.
        num_classes: 0 for no classifier.
        global_pool: pooling before the classifier, `""` for none.
        depths: blocks of each stage.
        embed_dims: channels of each stage.
        mlp_ratios: hidden over outer channels of each stage's MLPs.
        multi_scale: MSCAN's gate and its stem of two 3x3 convolutions, for VAN's.
        norm_eps: of the LayerNorm that ends each stage.
        init_values: of the layer scale.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout in the MLPs.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: where `depths`, `embed_dims` and `mlp_ratios` differ in length.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: tuple[int, ...] = (3, 3, 12, 3),
        embed_dims: tuple[int, ...] = (64, 128, 320, 512),
        mlp_ratios: tuple[float, ...] = (8.0, 8.0, 4.0, 4.0),
        multi_scale: bool = False,
        norm_eps: float = 1e-6,
        init_values: float = 1e-2,
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
            mlp_ratios=mlp_ratios,
        )
        # MSCAN's stem of two convolutions has half of the channels between them.
        check_integers(least=2 if multi_scale else 1, embed_dims=embed_dims[0])
        check_numbers(init_values=init_values)
        check_numbers(above=0, norm_eps=norm_eps)
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        gate = MultiScaleGate if multi_scale else LargeKernelGate
        drop_path: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        if multi_scale:
            half = embed_dims[0] // 2
            stem = nn.Sequential(
                *_patch_embed(in_chans, half, 3, 2, first=True, **dd),
                nn.GELU(),
                *_patch_embed(half, embed_dims[0], 3, 2, **dd),
            )
        else:
            stem = _patch_embed(in_chans, embed_dims[0], 7, 4, first=True, **dd)
        stages = []
        for i, dim in enumerate(embed_dims):
            stages.append(
                PyramidStage(
                    _patch_embed(embed_dims[i - 1], dim, 3, 2, **dd) if i > 0 else nn.Identity(),
                    [
                        Block(dim, mlp_ratios[i], gate, proj_drop_rate, drop_path[i][j], init_values, **dd)
                        for j in range(depths[i])
                    ],
                    LayerNorm2d(dim, eps=norm_eps, **dd),
                )
            )
        super().__init__(stem, stages, nn.Identity(), embed_dims, num_classes, in_chans, global_pool, drop_rate, **dd)
        self.apply(_init_weights)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_RENAMES = [
    (r"^patch_embed1\.proj\.(\d)\.", r"stem.\1."),
    (r"^patch_embed1\.proj\.", "stem.0."),
    (r"^patch_embed1\.norm\.", "stem.1."),
    (r"^patch_embed(\d)\.proj\.", r"stages.<\1>.downsample.0."),
    (r"^patch_embed(\d)\.norm\.", r"stages.<\1>.downsample.1."),
    (r"^block(\d)\.", r"stages.<\1>.blocks."),
    (r"^norm(\d)\.", r"stages.<\1>.norm."),
    (r"^head\.", "head.fc."),
    (r"\.proj_1\.", ".proj_in."),
    (r"\.proj_2\.", ".proj_out."),
    (r"\.dwconv\.dwconv\.", ".dwconv."),
    (r"\.spatial_gating_unit\.conv(\d)_1\.", r".gate.strips.\1.0."),
    (r"\.spatial_gating_unit\.conv(\d)_2\.", r".gate.strips.\1.1."),
    (r"\.spatial_gating_unit\.conv0\.", ".gate.local."),
    (r"\.spatial_gating_unit\.conv_spatial\.", ".gate.dilated."),
    (r"\.spatial_gating_unit\.conv[13]\.", ".gate.pointwise."),
]


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Renames a published checkpoint (classifier, detector or segmentor) to our keys; returns ours untouched."""

    def translate(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        # Published stages count from 1.
        return {
            re.sub(r"<(\d)>", lambda m: str(int(m[1]) - 1), renamed(key, _RENAMES)): value
            for key, value in state_dict.items()
        }

    return converted(state_dict, model, lambda state: "stem.0.weight" in state, translate, ("head.",))


_cfg = partial(
    imagenet_cfg,
    crop_pct=0.9,
    license="apache-2.0",
    origin_url="https://github.com/Visual-Attention-Network/VAN-Classification",
    paper_name="Visual Attention Network",
    paper_ids="arXiv:2202.09741",
    notes=("The authors ask commercial users to contact them.",),
)
_mscan_cfg = partial(
    _cfg,
    origin_url="https://github.com/Visual-Attention-Network/SegNeXt",
    paper_name="SegNeXt: Rethinking Convolutional Attention Design for Semantic Segmentation",
    paper_ids="arXiv:2209.08575",
)

default_cfgs = generate_default_cfgs(
    {
        "van_b0.in1k": _cfg(75.4),
        "van_b1.in1k": _cfg(81.1),
        "van_b2.in1k": _cfg(82.8),
        "van_b3.in1k": _cfg(83.9),
        "van_b4.untrained": _cfg(),
        "van_b5.untrained": _cfg(),
        "van_b6.untrained": _cfg(),
        "mscan_tiny.in1k": _mscan_cfg(),
        "mscan_small.in1k": _mscan_cfg(),
        "mscan_base.in1k": _mscan_cfg(),
        "mscan_large.in1k": _mscan_cfg(),
    }
)

_FACTS = Facts(VisualAttentionNetwork, checkpoint_filter_fn)

register(
    __name__,
    _FACTS,
    {
        "van_b0": Variant(
            "VAN-B0, 4.1 M parameters.",
            dict(embed_dims=(32, 64, 160, 256), depths=(3, 3, 5, 2)),
            golden=("van_b0", "van_b0_200x264"),
        ),
        "van_b1": Variant(
            "VAN-B1, 13.9 M parameters.", dict(embed_dims=(64, 128, 320, 512), depths=(2, 2, 4, 2)), golden=("van_b1",)
        ),
        "van_b2": Variant("VAN-B2, 26.6 M parameters.", dict(embed_dims=(64, 128, 320, 512), depths=(3, 3, 12, 3))),
        "van_b3": Variant("VAN-B3, 44.8 M parameters.", dict(embed_dims=(64, 128, 320, 512), depths=(3, 5, 27, 3))),
        "van_b4": Variant("VAN-B4, 60.3 M parameters.", dict(embed_dims=(64, 128, 320, 512), depths=(3, 6, 40, 3))),
        "van_b5": Variant("VAN-B5, 90.0 M parameters.", dict(embed_dims=(96, 192, 480, 768), depths=(3, 3, 24, 3))),
        "van_b6": Variant("VAN-B6, 199.8 M parameters.", dict(embed_dims=(96, 192, 384, 768), depths=(6, 6, 90, 6))),
    },
)

register(
    __name__,
    _FACTS,
    {
        "mscan_tiny": Variant(
            "MSCAN-T, SegNeXt-T's backbone.",
            dict(embed_dims=(32, 64, 160, 256), depths=(3, 3, 5, 2), multi_scale=True, norm_eps=1e-5),
            golden=("mscan_t",),
        ),
        "mscan_small": Variant(
            "MSCAN-S, SegNeXt-S's backbone.",
            dict(embed_dims=(64, 128, 320, 512), depths=(2, 2, 4, 2), multi_scale=True, norm_eps=1e-5),
        ),
        "mscan_base": Variant(
            "MSCAN-B, SegNeXt-B's backbone.",
            dict(embed_dims=(64, 128, 320, 512), depths=(3, 3, 12, 3), multi_scale=True, norm_eps=1e-5),
        ),
        "mscan_large": Variant(
            "MSCAN-L, SegNeXt-L's backbone.",
            dict(embed_dims=(64, 128, 320, 512), depths=(3, 5, 27, 3), multi_scale=True, norm_eps=1e-5),
        ),
    },
    golden_note="feature maps alone: no classifier is published",
)
