"""Swin's body with exchangeable attention.

Swin Transformer: Hierarchical Vision Transformer using Shifted Windows, https://arxiv.org/abs/2103.14030,
https://github.com/microsoft/Swin-Transformer (MIT).

Any image size is taken as the published dense-prediction code takes it: the image is zero-padded right and bottom to a
multiple of 4; in a block of window attention the normed map is zero-padded to a multiple of the window before the
query-key-value projection, unmasked, and cropped behind the attention; odd maps are zero-padded before patch merging.
Published classification code does not shift in a stage whose map is one window (the last, 7x7 at 224x224), published
dense code shifts there too: ours follows the classification code at that size of that stage, else the dense code.
"""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import LayerNorm2d, calculate_drop_path_rates, register_notrace_function, to_2tuple
from torch import nn

from ...kernels import window_attention_packed
from ..contract.arguments import check_body, check_integers, check_sides
from .layers import PatchConv, TokenBlock, crop, init_weights, pad_to_multiple, sizes_stay_free
from .pyramid import PyramidBackbone, PyramidStage

# A leaf of FX graphs: it reads sizes.
register_notrace_function(window_attention_packed)


@register_notrace_function
def attend_in_windows(
    qkv: torch.Tensor,
    num_heads: int,
    window_size: int,
    shift: int,
    table: torch.Tensor,
    size: tuple[int, int],
    single: bool,
) -> torch.Tensor:
    """Window attention of a padded map whose own `size` is given; with `single`, unshifted where that is one window.

    `qkv` is (B, H, W, 3 * C).
    """
    free = sizes_stay_free()
    if single and shift > 0:
        if free:
            # Both, for a branch on the size would bind an exported graph to the example's.
            rows, cols = qkv.new_ones(size[0]).sum(), qkv.new_ones(size[1]).sum()
            plain = window_attention_packed(qkv, num_heads, window_size, 0, bias_table=table)
            shifted = window_attention_packed(qkv, num_heads, window_size, shift, bias_table=table)
            return torch.where((rows == window_size) & (cols == window_size), plain, shifted)
        if size[0] == window_size and size[1] == window_size:
            shift = 0
    return window_attention_packed(qkv, num_heads, window_size, shift, bias_table=table)


class WindowAttention(nn.Module):
    """Multi-head attention within windows, shifted or not, with a relative position bias.

    Args:
        dim: channels.
        num_heads: divides `dim`.
        window_size: side of a window, in pixels.
        shift: of the windows against the map, in pixels.
        single: do not shift on a map that is exactly one window.
        proj_drop: dropout behind the output projection.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int = 7,
        shift: int = 0,
        single: bool = False,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.window_size = window_size
        self.shift = shift
        self.single = single
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads, **dd))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = nn.Linear(dim, 3 * dim, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """(B, height * width, C) -> the same."""
        x = pad_to_multiple(x.unflatten(1, [height, width]), self.window_size)
        table, size = self.relative_position_bias_table, (height, width)
        x = attend_in_windows(self.qkv(x), self.num_heads, self.window_size, self.shift, table, size, self.single)
        return self.proj_drop(self.proj(crop(x, height, width))).flatten(1, 2)


class PatchMerging(nn.Module):
    """Each 2x2 pixels' channels, normed and projected; (B, C, H, W) -> (B, D, ceil(H/2), ceil(W/2))."""

    def __init__(self, in_dim: int, dim: int, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm = nn.LayerNorm(4 * in_dim, **dd)
        self.reduction = nn.Linear(4 * in_dim, dim, bias=False, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, D, ceil(H/2), ceil(W/2))."""
        x = pad_to_multiple(x.permute(0, 2, 3, 1), 2)
        # Row parity runs faster than column parity, as in the published code.
        x = x.unflatten(2, [-1, 2]).unflatten(1, [-1, 2]).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(x)).permute(0, 3, 1, 2)


class SwinTransformer(PyramidBackbone):
    """Swin, with the window attention of chosen blocks exchanged.

    Args:
        in_chans: channels of the image.
        num_classes: 0 for no classifier.
        global_pool: pooling before the classifier, `""` for none.
        img_size: of the images that the tables of an exchanged attention belong to; others are served by resized ones.
        depths: blocks of each stage.
        embed_dims: channels of each stage.
        num_heads: heads of each stage.
        mlp_ratio: hidden over outer channels of the MLPs.
        window_size: side of a window, in pixels; every second block shifts by half of it.
        attention: `attention(stage, block)` gives None for window attention, or what makes another:
            `layer(dim, num_heads, grid=(height, width), class_token=False, proj_drop=..., device=..., dtype=...)`, a
            module with `forward(x, height, width)`, x (B, height * width, C) -> the same. `grid` is the stage's map at
            `img_size`.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout behind the projections of attention and MLP.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: where the tuples differ in length, heads do not divide `embed_dims`, or `window_size` is below 1.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        img_size: int | tuple[int, int] = 224,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        embed_dims: tuple[int, ...] = (96, 192, 384, 768),
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        mlp_ratio: float = 4.0,
        window_size: int = 7,
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
            mlp_ratio=mlp_ratio,
        )
        check_integers(window_size=window_size)
        check_sides(img_size=img_size)
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        drop_path: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stem = nn.Sequential(PatchConv(in_chans, embed_dims[0], 4, **dd), LayerNorm2d(embed_dims[0], eps=1e-5, **dd))
        image = to_2tuple(img_size)
        stages = []
        for i, (dim, heads) in enumerate(zip(embed_dims, num_heads, strict=True)):
            grid = (-(-image[0] // 2 ** (i + 2)), -(-image[1] // 2 ** (i + 2)))
            blocks: list[nn.Module] = []
            for j in range(depths[i]):
                layer = attention(i, j) if attention else None
                if layer is None:
                    shift = j % 2 * (window_size // 2)
                    single = grid == (window_size, window_size)
                    attn: nn.Module = WindowAttention(dim, heads, window_size, shift, single, proj_drop_rate, **dd)
                else:
                    attn = layer(dim, heads, grid=grid, class_token=False, proj_drop=proj_drop_rate, **dd)
                blocks.append(TokenBlock(dim, attn, mlp_ratio, proj_drop_rate, drop_path[i][j], **dd))
            downsample = PatchMerging(embed_dims[i - 1], dim, **dd) if i > 0 else nn.Identity()
            stages.append(PyramidStage(downsample, blocks, nn.Identity()))
        norm = LayerNorm2d(embed_dims[-1], eps=1e-5, **dd)
        super().__init__(stem, stages, norm, embed_dims, num_classes, in_chans, global_pool, drop_rate, **dd)
        self.apply(init_weights)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the position bias tables, as in the published code."""
        return {name for name, _ in self.named_parameters() if name.endswith("relative_position_bias_table")}


# Published keys of the body, `layers.<i>.downsample` being the next stage's; an exchanged attention keeps its names.
RENAMES = [
    (r"^patch_embed\.proj\.", "stem.0."),
    (r"^patch_embed\.norm\.", "stem.1."),
    (r"^layers\.0\.downsample\.", "stages.1.downsample."),
    (r"^layers\.1\.downsample\.", "stages.2.downsample."),
    (r"^layers\.2\.downsample\.", "stages.3.downsample."),
    (r"^layers\.(\d)\.", r"stages.\1."),
    (r"^head\.", "head.fc."),
]
