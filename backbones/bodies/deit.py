"""The body of DeiT with exchangeable attention; its contract is that of timm's VisionTransformer.

Training data-efficient image transformers & distillation through attention, https://arxiv.org/abs/2012.12877,
https://github.com/facebookresearch/deit (Apache-2.0); with class token, without distillation token.

The published code that exchanges the attention serves its training size alone. Ours takes any: the image is zero-padded
right and bottom to whole patches, and the position embedding is resized bilinearly (no antialiasing, `align_corners`
False), as that code does when it loads a checkpoint at another size, where timm's own resizing is bicubic.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm.layers import calculate_drop_path_rates
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint
from timm.models.vision_transformer import global_pool_nlc
from torch import nn

from ..contract.arguments import check_divisible, check_integers, check_numbers, check_pool, check_rates
from .attention import softmax_attention
from .layers import PatchConv, TokenBlock, init_weights, resize_map
from .pyramid import ROUNDED_UP

__all__ = ["DeiT"]

# What the configuration of a model says of this body.
CFG = {"pool_size": None, "first_conv": "patch_embed.proj", "classifier": "head"}
_POOLS = ("", "token", "avg", "max", "avgmax")


class Attention(nn.Module):
    """DeiT's own attention: softmax over all tokens.

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
        self.qkv = nn.Linear(dim, 3 * dim, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """(B, 1 + height * width, C) -> the same."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        x = softmax_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(x))


class Block(TokenBlock):
    """Attention and MLP over tokens, the class token in front."""

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:  # type: ignore[override]
        """(B, 1 + height * width, C) -> the same."""
        x = x + self.drop_path(self.attn(self.norm1(x), height, width))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Patches of an image, padded to whole ones; (B, C, H, W) -> (B, D, ceil(H / patch), ceil(W / patch))."""

    def __init__(self, in_chans: int, dim: int, patch_size: int, device=None, dtype=None):
        super().__init__()
        self.proj = PatchConv(in_chans, dim, patch_size, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, D, ceil(H / patch), ceil(W / patch))."""
        return self.proj(x)


class DeiT(nn.Module):
    """DeiT: a Vision Transformer with a class token.

    Args:
        in_chans: channels of the image.
        num_classes: 0 for no classifier.
        global_pool: `"token"` for the class token, `"avg"`, `"max"` or `"avgmax"` of the others, `""` for none; behind
            the final norm, whichever.
        depth: blocks.
        embed_dim: channels.
        num_heads: divides `embed_dim`.
        mlp_ratio: hidden over outer channels of the MLPs.
        patch_size: side of a patch, in pixels.
        img_size: side of the image that the position embedding and the attentions' tables belong to; any other size
            runs too.
        attention: given 0 and the block's number, what builds the block's attention, called as `layer(dim, num_heads,
            grid=(height, width) at img_size, class_token=True, proj_drop=..., device=..., dtype=...)`; None, or None
            for a block, for softmax attention.
        drop_rate: dropout before the classifier.
        pos_drop_rate: dropout behind the position embedding.
        proj_drop_rate: dropout behind the projections of attention and MLP.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: for an unknown `global_pool`, heads that do not divide `embed_dim`, or an `img_size` below a patch.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        depth: int = 12,
        embed_dim: int = 192,
        num_heads: int = 3,
        mlp_ratio: float = 4.0,
        patch_size: int = 16,
        img_size: int = 224,
        attention: Callable[[int, int], Callable[..., nn.Module] | None] | None = None,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        check_integers(
            in_chans=in_chans,
            depth=depth,
            embed_dim=embed_dim,
            num_heads=num_heads,
            patch_size=patch_size,
            img_size=img_size,
        )
        check_integers(least=0, num_classes=num_classes)
        check_divisible("embed_dim", "num_heads", embed_dim=embed_dim, num_heads=num_heads)
        check_numbers(least=1 / embed_dim, mlp_ratio=mlp_ratio)
        check_rates(drop_rate=drop_rate, pos_drop_rate=pos_drop_rate)
        check_rates(proj_drop_rate=proj_drop_rate, drop_path_rate=drop_path_rate)
        if img_size < patch_size:
            raise ValueError(f"img_size={img_size!r}: at least patch_size={patch_size} is needed")
        check_pool(global_pool, _POOLS)
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.global_pool = global_pool
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.num_prefix_tokens = 1
        self.grad_checkpointing = False
        level = dict(num_chs=embed_dim, reduction=patch_size, size=ROUNDED_UP.format(stride=patch_size))
        self.feature_info = [dict(level, module=f"blocks.{i}") for i in range(depth)]
        self.grid = (img_size // patch_size,) * 2
        self.patch_embed = PatchEmbed(in_chans, embed_dim, patch_size, **dd)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim, **dd))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.grid[0] * self.grid[1], embed_dim, **dd))
        self.pos_drop = nn.Dropout(pos_drop_rate)
        drop_path: Any = calculate_drop_path_rates(drop_path_rate, depth)
        blocks = []
        for i in range(depth):
            layer = attention(0, i) if attention else None
            if layer is None:
                attn: nn.Module = Attention(embed_dim, num_heads, proj_drop_rate, **dd)
            else:
                attn = layer(embed_dim, num_heads, grid=self.grid, class_token=True, proj_drop=proj_drop_rate, **dd)
            blocks.append(Block(embed_dim, attn, mlp_ratio, proj_drop_rate, drop_path[i], 1e-6, **dd))
        self.blocks = nn.ModuleList(blocks)
        self.norm: nn.Module = nn.LayerNorm(embed_dim, eps=1e-6, **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes, **dd) if num_classes > 0 else nn.Identity()
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.apply(init_weights)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters to exempt from weight decay, beside those of one dimension."""
        return {"cls_token", "pos_embed"}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        """Patterns that order the parameters by depth, for layer-wise learning-rate decay."""
        return dict(
            stem=r"^cls_token|^pos_embed|^patch_embed", blocks=[(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The linear classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier; `num_classes=0` removes it, `global_pool=""` the pooling too."""
        check_integers(least=0, num_classes=num_classes)
        if global_pool is not None:
            check_pool(global_pool, _POOLS)
            self.global_pool = global_pool
        self.num_classes = num_classes
        weight = self.cls_token
        self.head = (
            nn.Linear(self.embed_dim, num_classes, device=weight.device, dtype=weight.dtype)
            if num_classes > 0
            else nn.Identity()
        )

    def _embed(self, x: torch.Tensor) -> torch.Tensor:
        """Class token and position embedding; (B, C, H, W) -> (B, 1 + H * W, C)."""
        pos_embed = self.pos_embed[:, 1:].unflatten(1, self.grid).permute(0, 3, 1, 2)
        x = (x + resize_map(pos_embed, x.shape[2], x.shape[3])).flatten(2).transpose(1, 2)
        token = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        return self.pos_drop(torch.cat((token, x), 1))

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """The normed tokens of the last block together with what chosen blocks put out.

        Args:
            x: (B, in_chans, H, W).
            indices: the last n blocks if an int, all if None, else the blocks listed.
            return_prefix_tokens: give each block's output as a pair of the map and the class token (B, 1, C).
            norm: apply the final norm to them.
            stop_early: stop after the last block that is asked for.
            output_fmt: `"NCHW"` for maps (B, C, H / patch, W / patch), `"NLC"` for tokens.
            intermediates_only: return the list alone.

        Raises:
            ValueError: for another `output_fmt`.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt={output_fmt!r}: 'NCHW' or 'NLC' is needed")
        take_indices, max_index = feature_take_indices(len(self.blocks), indices)
        x = self.patch_embed(x)
        height, width = x.shape[2], x.shape[3]
        x = self._embed(x)
        intermediates = []
        # TorchScript cannot slice modules.
        if torch.jit.is_scripting() or not stop_early:
            blocks = self.blocks
        else:
            blocks = self.blocks[: max_index + 1]
        for i, block in enumerate(blocks):
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(block, x, height, width)
            else:
                x = block(x, height, width)
            if i in take_indices:
                intermediates.append(self.norm(x) if norm else x)
        prefix_tokens = [y[:, :1] for y in intermediates]
        intermediates = [y[:, 1:] for y in intermediates]
        if output_fmt == "NCHW":
            intermediates = [y.unflatten(1, [height, width]).permute(0, 3, 1, 2) for y in intermediates]
        if not torch.jit.is_scripting() and return_prefix_tokens:
            intermediates = list(zip(intermediates, prefix_tokens, strict=True))
        if intermediates_only:
            return intermediates
        return self.norm(x), intermediates

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drops the blocks behind the last of `indices`, and the classifier; returns the indices as a list."""
        take_indices, max_index = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: max_index + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take_indices

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) -> (B, 1 + tokens, C), the class token in front."""
        x = self.patch_embed(x)
        height, width = x.shape[2], x.shape[3]
        x = self._embed(x)
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(block, x, height, width)
            else:
                x = block(x, height, width)
        return self.norm(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """(B, 1 + tokens, C) -> (B, num_classes), or the pooled (B, C) before the classifier."""
        x = self.head_drop(global_pool_nlc(x, self.global_pool, num_prefix_tokens=1))
        return x if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) -> (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


def _blocks_of(kwargs: Mapping[str, Any]) -> int:
    """Blocks that the arguments of a model ask for; a depth that is no number is the constructor's to refuse."""
    depth = kwargs.get("depth")
    return depth if isinstance(depth, int) else 12


# Of `contract.facts.Facts`: as many blocks' tokens as timm's vision transformers give.
FEATURES: dict[str, Any] = dict(levels=_blocks_of, default_levels=3, feature_cfg=dict(feature_cls="getter"))
