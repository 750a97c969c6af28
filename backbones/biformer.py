"""BiFormer: a pyramid whose attention is routed between regions.

BiFormer: Vision Transformer with Bi-Level Routing Attention, https://arxiv.org/abs/2303.08810,
https://github.com/rayleizhu/BiFormer (MIT).

The first three stages attend within routed regions, the last to everything. Any image size is taken as the published
dense-prediction code takes it: the normed map is zero-padded right and bottom to a multiple of `n_win` before the
query-key-value projection, unmasked, and cropped behind the output projection. The published dense recipes use
`n_win=16` for detection and `n_win=8` for segmentation with the classification weights, return
`LayerNorm2d(stage_i)` with eps 1e-6 while the un-normed map goes on (the mm adapter's `stage_norms`), and freeze the
batch norm. The published `biformer_stl` has no padding and refuses other sizes; ours pads as the others do, and its
patches leave out what does not fill one, but for the first.
"""

from functools import partial
from typing import Any

import torch
from timm.layers import DropPath, Mlp, calculate_drop_path_rates, register_notrace_function
from timm.models import generate_default_cfgs
from torch import nn

from ..kernels import routing_attention_packed
from .bodies.attention import softmax_attention
from .bodies.layers import ChannelsLastConv, DepthwiseConv, StridedConv, pad_to_multiple
from .bodies.pyramid import ROUNDED_DOWN, ROUNDED_UP, PyramidBackbone, PyramidStage
from .checkpoints.conversion import STAGE_NORMS, converted, renamed
from .contract.arguments import check_body, check_integers
from .contract.facts import Facts, Variant
from .contract.registration import imagenet_cfg, register

__all__ = ["BiFormer"]

# A leaf of FX graphs: it reads sizes.
register_notrace_function(routing_attention_packed)


class RoutingAttention(nn.Module):
    """Bi-level routing attention plus a depth-wise convolution of v (equation 7 of the paper).

    Args:
        dim: channels.
        num_heads: divides `dim`.
        n_win: regions per side.
        topk: regions that each region attends to.
        proj_drop: dropout behind the output projection.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self, dim: int, num_heads: int, n_win: int, topk: int, proj_drop: float = 0.0, device=None, dtype=None
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.n_win = n_win
        self.topk = topk
        # Over all heads together, as in the published code.
        self.scale = dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim, **dd)
        self.lepe = DepthwiseConv(dim, 5, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> the same."""
        height, width = x.shape[1], x.shape[2]
        qkv, regions = self.qkv(pad_to_multiple(x, self.n_win)), (self.n_win, self.n_win)
        # The convolution of v in one call: a kernel adds it to the result where it has a GPU.
        x = routing_attention_packed(
            qkv, self.num_heads, regions, self.topk, self.scale, self.lepe.weight, self.lepe.bias
        )
        return self.proj_drop(self.proj(x)[:, :height, :width])


class GlobalAttention(nn.Module):
    """Multi-head attention over the whole map plus a depth-wise convolution of its input.

    Args:
        dim: channels.
        num_heads: divides `dim`.
        proj_drop: dropout behind the output projection.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(self, dim: int, num_heads: int, proj_drop: float = 0.0, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False, **dd)
        self.lepe = DepthwiseConv(dim, 5, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> the same."""
        b, h, w, c = x.shape
        qkv = self.qkv(x).reshape(b, h * w, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        out = softmax_attention(q, k, v).transpose(1, 2).reshape(b, h, w, c)
        return self.proj_drop(self.proj(out + self.lepe(x)))


class Block(nn.Module):
    """Depth-wise 3x3 shortcut (the position encoding), attention, MLP."""

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        mlp_ratio: float,
        pos_embed: bool,
        proj_drop: float,
        drop_path: float,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.pos_embed = DepthwiseConv(dim, 3, **dd) if pos_embed else None
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same."""
        x = x.permute(0, 2, 3, 1)
        if self.pos_embed is not None:
            x = x + self.pos_embed(x)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x.permute(0, 3, 1, 2)


class BiFormer(PyramidBackbone):
    """BiFormer, or its Swin-T-like layout (STL).

    Args:
        in_chans: channels of the image.
        num_classes: 0 for no classifier.
        global_pool: pooling before the classifier, `""` for none.
        depths: blocks of each stage.
        embed_dims: channels of each stage.
        mlp_ratios: hidden over outer channels of each stage's MLPs.
        head_dim: channels of a head in the routed stages; an attention to everything has 8 heads.
        n_win: regions per side. No weight depends on it.
        topks: regions that a region attends to, of each stage; -2 for attention to everything.
        swin_layout: STL: patch stem, patch merging, no position encoding in the blocks.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout behind the projections of attention and MLP.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: where the tuples differ in length, heads do not divide `embed_dims`, or `topks` do not fit `n_win`.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: tuple[int, ...] = (2, 2, 8, 2),
        embed_dims: tuple[int, ...] = (64, 128, 256, 512),
        mlp_ratios: tuple[float, ...] = (3.0, 3.0, 3.0, 3.0),
        head_dim: int = 32,
        n_win: int = 7,
        topks: tuple[int, ...] = (1, 4, 16, -2),
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
            topks=topks,
            mlp_ratios=mlp_ratios,
        )
        check_integers(head_dim=head_dim, n_win=n_win)
        for dim, topk in zip(embed_dims, topks, strict=True):
            if topk != -2:
                check_integers(topks=topk)
            if topk > n_win**2:
                raise ValueError(f"topks={topks!r}: -2 or 1 to n_win ** 2 = {n_win**2} are needed")
            width = 8 if topk == -2 else head_dim
            if dim % width:
                kind = "8 (the heads of attention to everything)" if topk == -2 else f"head_dim={head_dim}"
                raise ValueError(f"embed_dims={embed_dims!r}: multiples of {kind} are needed, got {dim}")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        drop_path: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stem = _patch_stem(in_chans, embed_dims[0], **dd) if swin_layout else _conv_stem(in_chans, embed_dims[0], **dd)
        downsample = _merge_patches if swin_layout else _conv_downsample
        stages = []
        for i, (dim, topk) in enumerate(zip(embed_dims, topks, strict=True)):
            blocks: list[nn.Module] = []
            for j in range(depths[i]):
                if topk == -2:
                    attn: nn.Module = GlobalAttention(dim, 8, proj_drop_rate, **dd)
                else:
                    attn = RoutingAttention(dim, dim // head_dim, n_win, topk, proj_drop_rate, **dd)
                blocks.append(Block(dim, attn, mlp_ratios[i], not swin_layout, proj_drop_rate, drop_path[i][j], **dd))
            stages.append(
                PyramidStage(
                    downsample(embed_dims[i - 1], dim, **dd) if i > 0 else nn.Identity(), blocks, nn.Identity()
                )
            )
        norm = nn.BatchNorm2d(embed_dims[-1], **dd)
        classifier = (num_classes, in_chans, global_pool, drop_rate)
        size = ROUNDED_DOWN if swin_layout else ROUNDED_UP
        super().__init__(stem, stages, norm, embed_dims, *classifier, size=size, **dd)
        self.apply(_init_weights)


def _conv_stem(in_chans: int, dim: int, **dd) -> nn.Sequential:
    return nn.Sequential(
        ChannelsLastConv(in_chans, dim // 2, 3, stride=2, padding=1, **dd),
        nn.BatchNorm2d(dim // 2, **dd),
        nn.GELU(),
        nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1, **dd),
        nn.BatchNorm2d(dim, **dd),
    )


def _conv_downsample(in_dim: int, dim: int, **dd) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_dim, dim, 3, stride=2, padding=1, **dd), nn.BatchNorm2d(dim, **dd))


def _patch_stem(in_chans: int, dim: int, **dd) -> nn.Sequential:
    return nn.Sequential(ChannelsLastConv(in_chans, dim, 4, stride=4, **dd), nn.BatchNorm2d(dim, **dd))


def _merge_patches(in_dim: int, dim: int, **dd) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(in_dim, **dd), StridedConv(in_dim, dim, 2, stride=2, **dd))


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_RENAMES = [
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.attn\.qkv\.qkv\.", ".attn.qkv."),
    (r"\.attn\.wo\.", ".attn.proj."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.[23]\.", ".mlp.fc2."),
    (r"^head\.", "head.fc."),
]


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Renames a published checkpoint (classifier, detector or segmentor) to our keys; returns ours untouched.

    The `extra_norms` of a detector or segmentor are the mm adapter's and left out.
    """

    def translate(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {renamed(key, _RENAMES): value for key, value in state_dict.items() if not key.startswith(STAGE_NORMS)}

    return converted(state_dict, model, lambda state: "stem.0.weight" in state, translate, ("norm.", "head."))


_cfg = partial(
    imagenet_cfg,
    license="mit",
    origin_url="https://github.com/rayleizhu/BiFormer",
    paper_name="BiFormer: Vision Transformer with Bi-Level Routing Attention",
    paper_ids="arXiv:2303.08810",
)

default_cfgs = generate_default_cfgs(
    {
        "biformer_tiny.in1k": _cfg(81.4),
        "biformer_small.in1k": _cfg(83.8),
        "biformer_base.in1k": _cfg(84.3),
        "biformer_stl.in1k": _cfg(82.7),
    }
)


_FACTS = Facts(BiFormer, checkpoint_filter_fn, stage_norms=STAGE_NORMS)

register(
    __name__,
    _FACTS,
    {
        "biformer_tiny": Variant(
            "BiFormer-T, 13.1 M parameters.",
            dict(depths=(2, 2, 8, 2), embed_dims=(64, 128, 256, 512)),
            golden=("biformer_tiny", "biformer_tiny_256x320"),
        ),
        "biformer_small": Variant(
            "BiFormer-S, 25.5 M parameters.", dict(depths=(4, 4, 18, 4), embed_dims=(64, 128, 256, 512))
        ),
        "biformer_base": Variant(
            "BiFormer-B, 56.8 M parameters.", dict(depths=(4, 4, 18, 4), embed_dims=(96, 192, 384, 768))
        ),
    },
)

register(
    __name__,
    _FACTS,
    {
        "biformer_stl": Variant(
            "BiFormer in Swin-T's layout, 28.4 M parameters.",
            dict(depths=(2, 2, 6, 2), embed_dims=(96, 192, 384, 768), mlp_ratios=(4.0,) * 4, swin_layout=True),
            golden=("biformer_stl",),
        ),
    },
)
