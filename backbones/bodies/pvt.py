"""The body of PVT (v1) with exchangeable attention.

Pyramid Vision Transformer, https://arxiv.org/abs/2102.12122, https://github.com/whai362/PVT (Apache-2.0); without the
class token and the final norm, as Agent attention and InLine attention use it.

Each stage adds a learned position embedding, of the grid at `img_size`, resized bilinearly to the map. Odd sizes are
floored at each patch embedding, as in the published code: the last rows and columns fall away; a map smaller than one
patch, where the published code fails, is zero-padded to one. The published code leaves the embedding unresized in every
stage whose map has as many cells as the first stage's at 224 (3136: it raises at 448x448); ours is always resized.
"""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import calculate_drop_path_rates
from torch import nn

from ..contract.arguments import check_body, check_integers
from .attention import softmax_attention
from .layers import TokenBlock, init_weights, pad_to_least, resize_map
from .pyramid import ROUNDED_DOWN, PyramidBackbone, PyramidStage

__all__ = ["RENAMES", "PyramidVisionTransformer"]


class PatchEmbed(nn.Module):
    """Patches, LayerNorm, position embedding; (B, C, H, W) -> (B, D, H // patch_size, W // patch_size), at least 1.

    Args:
        in_chans: channels of the input.
        dim: channels of the output.
        patch_size: side of a patch.
        grid: height and width of the position embedding.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(self, in_chans: int, dim: int, patch_size: int, grid: tuple[int, int], device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.grid = grid
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size, **dd)
        self.norm = nn.LayerNorm(dim, eps=1e-5, **dd)
        self.pos_embed = nn.Parameter(torch.empty(1, grid[0] * grid[1], dim, **dd))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, D, H // patch_size, W // patch_size), at least 1."""
        x = self.norm(self.proj(pad_to_least(x, self.patch_size)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        pos_embed = self.pos_embed.unflatten(1, self.grid).permute(0, 3, 1, 2)
        return x + resize_map(pos_embed, x.shape[2], x.shape[3])


class SpatialReductionAttention(nn.Module):
    """PVT's own attention: softmax over keys and values of a map that a strided convolution has reduced.

    Args:
        dim: channels.
        num_heads: divides `dim`.
        sr_ratio: stride of the reduction; 1 for none.
        proj_drop: dropout behind the output projection.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(self, dim: int, num_heads: int, sr_ratio: int, proj_drop: float = 0.0, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.sr_ratio = sr_ratio
        self.q = nn.Linear(dim, dim, **dd)
        self.kv = nn.Linear(dim, 2 * dim, **dd)
        self.sr = nn.Conv2d(dim, dim, sr_ratio, stride=sr_ratio, **dd) if sr_ratio > 1 else None
        self.norm = nn.LayerNorm(dim, eps=1e-5, **dd) if sr_ratio > 1 else nn.Identity()
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """(B, height * width, C) -> the same."""
        q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        if self.sr is not None:
            x = pad_to_least(x.unflatten(1, (height, width)).permute(0, 3, 1, 2), self.sr_ratio)
            x = self.sr(x).flatten(2).transpose(1, 2)
        k, v = self.kv(self.norm(x)).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        x = softmax_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(x))


class PyramidVisionTransformer(PyramidBackbone):
    """PVT (v1) without class token.

    Args:
        in_chans: channels of the image.
        num_classes: 0 for no classifier.
        global_pool: pooling before the classifier, `""` for none.
        depths: blocks of each stage.
        embed_dims: channels of each stage.
        num_heads: heads of each stage.
        mlp_ratios: hidden over outer channels of each stage's MLPs.
        sr_ratios: reduction of keys and values in each stage's softmax blocks.
        img_size: side of the image that the position embeddings and the attentions' tables belong to; any other size
            runs too.
        attention: given stage and block, what builds the block's attention, called as `layer(dim, num_heads,
            grid=(height, width) at img_size, class_token=False, proj_drop=..., device=..., dtype=...)`; None, or None
            for a block, for the spatial-reduction attention.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout behind the projections of attention and MLP.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: where the tuples differ in length, heads do not divide `embed_dims`, or `img_size` is too small.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: tuple[int, ...] = (2, 2, 2, 2),
        embed_dims: tuple[int, ...] = (64, 128, 320, 512),
        num_heads: tuple[int, ...] = (1, 2, 5, 8),
        mlp_ratios: tuple[float, ...] = (8.0, 8.0, 4.0, 4.0),
        sr_ratios: tuple[int, ...] = (8, 4, 2, 1),
        img_size: int = 224,
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
            sr_ratios=sr_ratios,
            mlp_ratios=mlp_ratios,
        )
        check_integers(tuples=True, sr_ratios=sr_ratios)
        check_integers(img_size=img_size)
        if img_size < 4 * 2 ** (len(depths) - 1):
            raise ValueError(f"img_size={img_size!r}: at least {4 * 2 ** (len(depths) - 1)} is needed")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        drop_path: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        grids = [(img_size // (4 * 2**i),) * 2 for i in range(len(depths))]
        stages = []
        for i, dim in enumerate(embed_dims):
            blocks: list[nn.Module] = []
            for j in range(depths[i]):
                layer = attention(i, j) if attention else None
                if layer is None:
                    attn: nn.Module = SpatialReductionAttention(dim, num_heads[i], sr_ratios[i], proj_drop_rate, **dd)
                else:
                    attn = layer(dim, num_heads[i], grid=grids[i], class_token=False, proj_drop=proj_drop_rate, **dd)
                blocks.append(TokenBlock(dim, attn, mlp_ratios[i], proj_drop_rate, drop_path[i][j], 1e-6, **dd))
            downsample = PatchEmbed(embed_dims[i - 1], dim, 2, grids[i], **dd) if i > 0 else nn.Identity()
            stages.append(PyramidStage(downsample, blocks, nn.Identity()))
        stem = PatchEmbed(in_chans, embed_dims[0], 4, grids[0], **dd)
        classifier = (num_classes, in_chans, global_pool, drop_rate)
        super().__init__(stem, stages, nn.Identity(), embed_dims, *classifier, size=ROUNDED_DOWN, **dd)
        self.apply(init_weights)


# Published names of the body, to ours; stages count from 1 there, and the first patch embedding is our stem.
RENAMES = [
    (r"^patch_embed1\.", "stem."),
    (r"^pos_embed1$", "stem.pos_embed"),
    *[(rf"^patch_embed{i + 1}\.", f"stages.{i}.downsample.") for i in (1, 2, 3)],
    *[(rf"^pos_embed{i + 1}$", f"stages.{i}.downsample.pos_embed") for i in (1, 2, 3)],
    *[(rf"^block{i + 1}\.", f"stages.{i}.blocks.") for i in (0, 1, 2, 3)],
    (r"^head\.", "head.fc."),
]
