"""CSwin's body with exchangeable attention.

CSWin Transformer: A General Vision Transformer Backbone with Cross-Shaped Windows, https://arxiv.org/abs/2107.00652,
https://github.com/microsoft/CSWin-Transformer (MIT).

Any image size is taken as CSwin's own dense-prediction code takes it: projected queries, keys and values are
zero-padded on both sides (the odd pixel right or below) to a multiple of the stripes' width, unmasked, and cropped
behind the attention. That code returns a LayerNorm of each stage while the un-normed map goes on (the mm adapter's
`stage_norms`). The dropout that the published blocks declare behind the projection, and never apply, is applied.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d, calculate_drop_path_rates, register_notrace_function, to_2tuple
from torch import nn

from ..contract.arguments import check_body, check_integers, check_sides
from .attention import softmax_attention
from .layers import DepthwiseConv, StridedConv, TokenBlock, init_weights, sizes_stay_free
from .pyramid import PyramidBackbone, PyramidStage


@register_notrace_function
def pad_to_stripes(qkv: torch.Tensor, rows: int, cols: int) -> tuple[torch.Tensor, int, int]:
    """Zero-pads (B, H, W, 3, C) around to multiples of a stripe's sides; also returns the pixels above and left."""
    height, width = qkv.shape[1], qkv.shape[2]
    # In this form, not as a remainder, a symbolic size stays one that an exporter can divide again.
    pad_h = (height + rows - 1) // rows * rows - height
    pad_w = (width + cols - 1) // cols * cols - width
    top, left = pad_h // 2, pad_w // 2
    free = sizes_stay_free()
    # A branch on the size would bind an exported graph to the example's.
    if free or pad_h > 0 or pad_w > 0:
        qkv = F.pad(qkv, (0, 0, 0, 0, left, pad_w - left, top, pad_h - top))
    return qkv, top, left


def _attend(qkv: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Multi-head attention within stripes (B, h, w, 3, C) -> (B, h, w, C)."""
    b, h, w, _, c = qkv.shape
    q, k, v = qkv.view(b, h * w, 3, num_heads, c // num_heads).permute(2, 0, 3, 1, 4).unbind(0)
    return softmax_attention(q, k, v).transpose(1, 2).reshape(b, h, w, c)


class StripeAttention(nn.Module):
    """Attention in a cross of stripes plus a depth-wise convolution of v within each (LePE), or to the whole map.

    The first half of the heads attends within vertical stripes, the second within horizontal ones.

    Args:
        dim: channels.
        num_heads: divides `dim`; even where there are stripes.
        split_size: width of the stripes in pixels; None for one stripe that is the map.
        proj_drop: dropout behind the output projection.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        split_size: int | None = None,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.split_size = 0 if split_size is None else split_size
        self.qkv = nn.Linear(dim, 3 * dim, **dd)
        self.lepe = DepthwiseConv(dim if split_size is None else dim // 2, 3, **dd)
        self.lepe_across = None if split_size is None else DepthwiseConv(dim // 2, 3, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """(B, height * width, C) -> the same."""
        qkv = self.qkv(x).unflatten(1, [height, width]).unflatten(3, [3, -1])
        if self.lepe_across is None:
            x = _attend(qkv, self.num_heads) + self.lepe(qkv[:, :, :, 2])
        else:
            half, heads = x.shape[2] // 2, self.num_heads // 2
            stripes, _, left = pad_to_stripes(qkv[..., :half], 1, self.split_size)
            cols = stripes.shape[2] // self.split_size
            stripes = _columns(stripes, self.split_size)
            down = _attend(stripes, heads) + self.lepe(stripes[:, :, :, 2])
            down = down.unflatten(0, [x.shape[0], cols]).transpose(1, 2).flatten(2, 3)[:, :, left : left + width]
            stripes, top, _ = pad_to_stripes(qkv[..., half:], self.split_size, 1)
            rows = stripes.shape[1] // self.split_size
            stripes = _rows(stripes, self.split_size)
            across = _attend(stripes, heads) + self.lepe_across(stripes[:, :, :, 2])
            across = across.unflatten(0, [x.shape[0], rows]).flatten(1, 2)[:, top : top + height]
            x = torch.cat((down, across), 3)
        return self.proj_drop(self.proj(x)).flatten(1, 2)


def _columns(qkv: torch.Tensor, width: int) -> torch.Tensor:
    """(B, H, W, 3, C) -> (B * W / width, H, width, 3, C)."""
    x = qkv.unflatten(2, [-1, width]).transpose(1, 2)
    return x.clone(memory_format=torch.contiguous_format).flatten(0, 1)


def _rows(qkv: torch.Tensor, height: int) -> torch.Tensor:
    """(B, H, W, 3, C) -> (B * H / height, height, W, 3, C)."""
    x = qkv.unflatten(1, [-1, height])
    return x.clone(memory_format=torch.contiguous_format).flatten(0, 1)


class CSwinTransformer(PyramidBackbone):
    """CSwin, with the stripe attention of chosen blocks exchanged.

    Args:
        in_chans: channels of the image.
        num_classes: 0 for no classifier.
        global_pool: pooling before the classifier, `""` for none.
        img_size: of the images that the tables of an exchanged attention belong to; others are served by resized ones.
        depths: blocks of each stage.
        embed_dims: channels of each stage.
        num_heads: heads of each stage.
        split_sizes: width of each stage's stripes in pixels; None for attention to the whole map.
        mlp_ratio: hidden over outer channels of the MLPs.
        attention: `attention(stage, block)` gives None for stripe attention, or what makes another:
            `layer(dim, num_heads, grid=(height, width), class_token=False, proj_drop=..., device=..., dtype=...)`, a
            module with `forward(x, height, width)`, x (B, height * width, C) -> the same. `grid` is the stage's map at
            `img_size`.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout behind the projections of attention and MLP.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: where the tuples differ in length, heads do not divide `embed_dims`, a stage of stripes has an odd
            number of heads, or `split_sizes` are below 1.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        img_size: int | tuple[int, int] = 224,
        depths: tuple[int, ...] = (2, 4, 18, 1),
        embed_dims: tuple[int, ...] = (64, 128, 256, 512),
        num_heads: tuple[int, ...] = (2, 4, 8, 16),
        split_sizes: tuple[int | None, ...] = (1, 2, 7, None),
        mlp_ratio: float = 4.0,
        attention: Callable[[int, int], Callable[..., nn.Module] | None] | None = None,
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
            split_sizes=split_sizes,
            mlp_ratio=mlp_ratio,
        )
        check_sides(img_size=img_size)
        check_integers(tuples=True, split_sizes=[split for split in split_sizes if split is not None])
        if any(split is not None and heads % 2 for heads, split in zip(num_heads, split_sizes, strict=True)):
            raise ValueError(f"num_heads={num_heads!r}: even numbers are needed where split_sizes={split_sizes!r}")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        drop_path: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stem = _conv_norm(in_chans, embed_dims[0], 7, 4, 2, **dd)
        image = to_2tuple(img_size)
        stages = []
        for i, (dim, heads) in enumerate(zip(embed_dims, num_heads, strict=True)):
            grid = (-(-image[0] // 2 ** (i + 2)), -(-image[1] // 2 ** (i + 2)))
            blocks: list[nn.Module] = []
            for j in range(depths[i]):
                layer = attention(i, j) if attention else None
                if layer is None:
                    attn: nn.Module = StripeAttention(dim, heads, split_sizes[i], proj_drop_rate, **dd)
                else:
                    attn = layer(dim, heads, grid=grid, class_token=False, proj_drop=proj_drop_rate, **dd)
                blocks.append(TokenBlock(dim, attn, mlp_ratio, proj_drop_rate, drop_path[i][j], **dd))
            downsample = _conv_norm(embed_dims[i - 1], dim, 3, 2, 1, **dd) if i > 0 else nn.Identity()
            stages.append(PyramidStage(downsample, blocks, nn.Identity()))
        norm = LayerNorm2d(embed_dims[-1], eps=1e-5, **dd)
        classifier = (num_classes, in_chans, global_pool, drop_rate)
        super().__init__(stem, stages, norm, embed_dims, *classifier, size="ceil(max((n + 1) // 4, 1) / {step})", **dd)
        self.apply(init_weights)


def _conv_norm(in_dim: int, dim: int, kernel_size: int, stride: int, padding: int, **dd) -> nn.Sequential:
    return nn.Sequential(StridedConv(in_dim, dim, kernel_size, stride, padding, **dd), LayerNorm2d(dim, eps=1e-5, **dd))


# Published keys of the body; what the published block holds of its attention is our attention's.
RENAMES = [
    (r"^stage1_conv_embed\.0\.", "stem.0."),
    (r"^stage1_conv_embed\.2\.", "stem.1."),
    (r"^merge(\d)\.conv\.", r"stages.\1.downsample.0."),
    (r"^merge(\d)\.norm\.", r"stages.\1.downsample.1."),
    (r"^stage1\.", "stages.0.blocks."),
    (r"^stage2\.", "stages.1.blocks."),
    (r"^stage3\.", "stages.2.blocks."),
    (r"^stage4\.", "stages.3.blocks."),
    (r"^(stages\.\d\.blocks\.\d+)\.(qkv|proj)\.", r"\1.attn.\2."),
    (r"\.attns\.0\.get_v\.", ".attn.lepe."),
    (r"\.attns\.1\.get_v\.", ".attn.lepe_across."),
    (r"\.attns\.0\.", ".attn."),
    (r"^head\.", "head.fc."),
]
