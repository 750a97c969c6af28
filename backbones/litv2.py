"""LITv2: convolutional MLPs in the early stages, HiLo attention in the later ones, deformable merging between them.

Fast Vision Transformers with HiLo Attention, https://arxiv.org/abs/2205.13213, https://github.com/ziplab/LITv2
(Apache-2.0); deformable token merging from Less is More, https://arxiv.org/abs/2105.14217.

Any image size is taken as the published dense-prediction code takes it: the image is zero-padded right and bottom to a
multiple of 4; HiLo zero-pads its normed input right and bottom to a multiple of the window, unmasked, and crops;
merging floors odd sizes, but a single row or column, where the published code fails, is zero-padded to two. The
published detection code returns LayerNorms (eps 1e-5) of stages 1 to 3, the segmentation code of all four, while the
un-normed maps go on (the mm adapter's `stage_norms`); both keep the classification weights, detection also with
`local_ws=(0, 0, 4, 1)`.

The offsets of the merging start at zero; the published recipe trains `stages.*.downsample.offset.weight` at 0.01 times
the learning rate of the rest, and `offset.bias` at the full rate.
"""

import math
import re
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d, calculate_drop_path_rates, register_notrace_function
from timm.models import generate_default_cfgs
from torch import nn

from ..kernels import window_attention_packed
from .bodies.attention import softmax_attention
from .bodies.layers import DepthwiseConv, PatchConv, init_weights, pad_to_least, pad_to_multiple
from .bodies.pyramid import PyramidBackbone, PyramidStage
from .checkpoints.conversion import converted, renamed
from .contract.arguments import check_body, check_integers, check_numbers
from .contract.facts import Facts, Variant
from .contract.registration import imagenet_cfg, register

__all__ = ["LITv2"]

# A leaf of FX graphs: it reads sizes.
register_notrace_function(window_attention_packed)


class HiLo(nn.Module):
    """HiLo attention: some heads attend within windows, the others to the windows' means (section 4 of the paper).

    Args:
        dim: channels.
        num_heads: divides `dim`.
        window_size: side of a window in pixels; 1 for attention of all heads to everything.
        alpha: share of the low-frequency heads, rounded down to whole heads.
        proj_drop: dropout behind the output projections.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        alpha: float,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.window_size = window_size
        self.low_heads = num_heads if window_size == 1 else int(num_heads * alpha)
        self.high_heads = num_heads - self.low_heads
        low_dim = dim // num_heads * self.low_heads
        high_dim = dim - low_dim
        self.high_qkv = nn.Linear(dim, 3 * high_dim, **dd) if self.high_heads > 0 else None
        self.high_proj = nn.Linear(high_dim, high_dim, **dd) if self.high_heads > 0 else None
        self.low_q = nn.Linear(dim, low_dim, **dd) if self.low_heads > 0 else None
        self.low_kv = nn.Linear(dim, 2 * low_dim, **dd) if self.low_heads > 0 else None
        self.low_proj = nn.Linear(low_dim, low_dim, **dd) if self.low_heads > 0 else None
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> the same."""
        height, width = x.shape[1], x.shape[2]
        x = pad_to_multiple(x, self.window_size)
        parts: list[torch.Tensor] = []
        if self.high_qkv is not None and self.high_proj is not None:
            high = window_attention_packed(self.high_qkv(x), self.high_heads, self.window_size)
            parts.append(self.high_proj(high))
        if self.low_q is not None and self.low_kv is not None and self.low_proj is not None:
            means = x
            if self.window_size > 1:
                means = F.avg_pool2d(x.permute(0, 3, 1, 2), self.window_size).permute(0, 2, 3, 1)
            q = self.low_q(x).flatten(1, 2).unflatten(-1, (self.low_heads, -1)).transpose(1, 2)
            kv = self.low_kv(means).flatten(1, 2).unflatten(-1, (2, self.low_heads, -1))
            k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
            low = softmax_attention(q, k, v).transpose(1, 2).flatten(2)
            parts.append(self.low_proj(low.unflatten(1, (x.shape[1], x.shape[2]))))
        return self.proj_drop(torch.cat(parts, dim=-1)[:, :height, :width])


class ConvMlp(nn.Module):
    """Linear, depth-wise 3x3, GELU, linear, on channels-last maps."""

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.fc1 = nn.Linear(dim, hidden_dim, **dd)
        self.dwconv = DepthwiseConv(hidden_dim, 3, **dd)
        self.act = nn.GELU()
        self.drop = nn.Dropout(drop)
        self.fc2 = nn.Linear(hidden_dim, dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> the same."""
        x = self.drop(self.act(self.dwconv(self.fc1(x))))
        return self.drop(self.fc2(x))


class Block(nn.Module):
    """Attention, where the stage has one, and MLP."""

    def __init__(
        self,
        dim: int,
        attn: nn.Module | None,
        mlp_ratio: float,
        proj_drop: float,
        drop_path: float,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm1 = nn.LayerNorm(dim, eps=1e-5, **dd) if attn is not None else nn.Identity()
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=1e-5, **dd)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio), proj_drop, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same."""
        x = x.permute(0, 2, 3, 1)
        if self.attn is not None:
            x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x.permute(0, 3, 1, 2)


@register_notrace_function
def sample_patches(x: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Moves the pixels of adjoining 2x2 patches: each is read, bilinearly, at its own place plus an offset.

    A convolution of stride 2 on the result is the deformable convolution of deformable token merging, at less than
    half the time on the CPU.

    Args:
        x: (B, C, H, W); zero outside.
        offset: (B, 8, H//2, W//2), in pixels: (dy, dx) of the four pixels of a patch, row by row.

    Returns:
        (B, C, 2 * (H//2), 2 * (W//2)), in `x`'s dtype.
    """
    h, w = offset.shape[2], offset.shape[3]
    # Half precision could not tell the pixels of a large map apart.
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    offset = offset.to(wide).unflatten(1, (2, 2, 2)).permute(0, 4, 1, 5, 2, 3)
    row = torch.arange(2 * h, device=x.device, dtype=wide).view(-1, 2, 1, 1)
    column = torch.arange(2 * w, device=x.device, dtype=wide).view(-1, 2)
    # grid_sample counts from -1 to 1 between the outer edges of the map.
    grid_y = (2 * (offset[..., 0] + row) + 1) / x.shape[2] - 1
    grid_x = (2 * (offset[..., 1] + column) + 1) / x.shape[3] - 1
    grid = torch.stack((grid_x, grid_y), dim=-1).flatten(3, 4).flatten(1, 2)
    return F.grid_sample(x.to(wide), grid, align_corners=False).to(x.dtype)


class DeformableMerge(nn.Module):
    """Deformable token merging: 2x2 patches, read at learned places, become one token.

    Odd sizes are floored, but for 1.
    """

    def __init__(self, in_dim: int, dim: int, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.offset = nn.Conv2d(in_dim, 8, 2, stride=2, **dd)
        self.conv = nn.Conv2d(in_dim, dim, 2, stride=2, **dd)
        self.norm = nn.BatchNorm2d(dim, **dd)
        self.act = nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, D, H//2, W//2), at least 1."""
        x = pad_to_least(x, 2)
        return self.act(self.norm(self.conv(sample_patches(x, self.offset(x)))))


class LITv2(PyramidBackbone):
    """LITv2.

    Args:
        in_chans: channels of the image.
        num_classes: 0 for no classifier.
        global_pool: pooling before the classifier, `""` for none.
        depths: blocks of each stage.
        embed_dims: channels of each stage.
        num_heads: attention heads of each stage.
        mlp_ratio: hidden over outer channels of the MLPs.
        alpha: share of the heads that attend to windows' means; the others attend within windows.
        local_ws: window side of each stage; 1 for plain attention, 0 for no attention. No weight depends on it, but
            for 0 and 1.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout behind the projections of attention and MLP.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: where the tuples differ in length, heads do not divide `embed_dims`, or `alpha` is not in [0, 1].
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: tuple[int, ...] = (2, 2, 6, 2),
        embed_dims: tuple[int, ...] = (96, 192, 384, 768),
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        mlp_ratio: float = 4.0,
        alpha: float = 0.9,
        local_ws: tuple[int, ...] = (0, 0, 2, 1),
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
            local_ws=local_ws,
            mlp_ratio=mlp_ratio,
        )
        check_integers(least=0, tuples=True, local_ws=local_ws)
        check_numbers(least=0, most=1, alpha=alpha)
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        drop_path: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stem = nn.Sequential(PatchConv(in_chans, embed_dims[0], 4, **dd), LayerNorm2d(embed_dims[0], eps=1e-5, **dd))
        stages = []
        for i, dim in enumerate(embed_dims):
            blocks: list[nn.Module] = []
            for j in range(depths[i]):
                attn = HiLo(dim, num_heads[i], local_ws[i], alpha, proj_drop_rate, **dd) if local_ws[i] > 0 else None
                blocks.append(Block(dim, attn, mlp_ratio, proj_drop_rate, drop_path[i][j], **dd))
            downsample = DeformableMerge(embed_dims[i - 1], dim, **dd) if i > 0 else nn.Identity()
            stages.append(PyramidStage(downsample, blocks, nn.Identity()))
        norm = LayerNorm2d(embed_dims[-1], eps=1e-5, **dd)
        classifier = (num_classes, in_chans, global_pool, drop_rate)
        super().__init__(stem, stages, norm, embed_dims, *classifier, size="max(ceil(n / 4) // {step}, 1)", **dd)
        self.apply(_init_weights)


def _init_weights(module: nn.Module) -> None:
    init_weights(module)
    if isinstance(module, DepthwiseConv):
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / math.prod(module.kernel_size)))
        nn.init.zeros_(cast(nn.Parameter, module.bias))
    elif isinstance(module, DeformableMerge):
        # The merging starts as a plain convolution.
        for parameter in module.offset.parameters():
            nn.init.zeros_(parameter)


_RENAMES = [
    (r"^patch_embed\.proj\.", "stem.0."),
    (r"^patch_embed\.norm\.", "stem.1."),
    (r"^layers\.(\d)\.blocks\.", r"stages.\1.blocks."),
    (r"^layers\.(\d)\.downsample\.dconv\.conv_offset\.", r"stages.<\1>.downsample.offset."),
    (r"^layers\.(\d)\.downsample\.dconv\.", r"stages.<\1>.downsample.conv."),
    (r"^layers\.(\d)\.downsample\.norm_layer\.", r"stages.<\1>.downsample.norm."),
    (r"\.attn\.h_(qkv|proj)\.", r".attn.high_\1."),
    (r"\.attn\.l_(q|kv|proj)\.", r".attn.low_\1."),
    (r"\.dwconv\.dwconv\.", ".dwconv."),
    (r"^head\.", "head.fc."),
]


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Renames a published checkpoint (classifier, detector or segmentor) to our keys; returns ours untouched.

    The per-stage norms (`norm0` to `norm3`) of a detector or segmentor are the mm adapter's and left out.
    """

    def translate(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        # A published stage ends in the merging that begins ours.
        return {
            re.sub(r"<(\d)>", lambda m: str(int(m[1]) + 1), renamed(key, _RENAMES)): value
            for key, value in state_dict.items()
            if not re.match(r"norm\d\.", key)
        }

    return converted(state_dict, model, lambda state: "stem.0.weight" in state, translate, ("norm.", "head."))


def _cfg(file: str, top1: float, **kwargs: Any) -> dict[str, Any]:
    return imagenet_cfg(
        top1,
        url=f"https://github.com/ziplab/LITv2/releases/download/v1.0/{file}.pth",
        license="apache-2.0",
        origin_url="https://github.com/ziplab/LITv2",
        paper_name="Fast Vision Transformers with HiLo Attention",
        paper_ids="arXiv:2205.13213",
        **kwargs,
    )


default_cfgs = generate_default_cfgs(
    {
        "litv2_small.in1k": _cfg("litv2_s", 82.0),
        "litv2_medium.in1k": _cfg("litv2_m", 83.3),
        "litv2_base.in1k": _cfg("litv2_b", 83.6),
        "litv2_base.in1k_384": _cfg(
            "litv2_b_384", 84.7, input_size=(3, 384, 384), pool_size=(12, 12), crop_pct=1.0, crop_mode="squash"
        ),
    }
)


register(
    __name__,
    Facts(LITv2, checkpoint_filter_fn, stage_norms="norm"),
    {
        "litv2_small": Variant(
            "LITv2-S, 27.8 M parameters.",
            dict(depths=(2, 2, 6, 2), embed_dims=(96, 192, 384, 768), num_heads=(3, 6, 12, 24)),
            golden=("litv2_small",),
        ),
        "litv2_medium": Variant(
            "LITv2-M, 48.8 M parameters.",
            dict(depths=(2, 2, 18, 2), embed_dims=(96, 192, 384, 768), num_heads=(3, 6, 12, 24)),
        ),
        "litv2_base": Variant(
            "LITv2-B, 86.5 M parameters.",
            dict(depths=(2, 2, 18, 2), embed_dims=(128, 256, 512, 1024), num_heads=(4, 8, 16, 32)),
        ),
    },
)
