"""HAT: window attention beside channel attention, with overlapping key windows, for super-resolution.

Activating More Pixels in Image Super-Resolution Transformer, https://arxiv.org/abs/2205.04437,
HAT: Hybrid Attention Transformer for Image Restoration, https://arxiv.org/abs/2309.05239,
https://github.com/XPixelGroup/HAT (Apache-2.0).

A model maps an image (B, 3, H, W) with values in [0, 1] to one of `upscale` times its sides. It subtracts the data's
mean itself and does not clamp. Any size is taken as the published test code takes it: the image is reflected at the
right and the bottom up to a multiple of the window, and the result is cropped. Where that code fails, as reflection
has no pixels left, the reflection is reflected again. Channel attention pools over the padded map, as published.

As features of dense prediction there are the output of each residual group and, last, the map from which the image is
made, all with stride 1. They are cropped, so that `forward_head(forward_features(x))` differs from `forward(x)` near
the right and bottom border of images that need padding.

Deviations: the distances of the overlapping attention's bias are in the order of `window_attention`, where the
published index wraps round its table; dropout and stochastic depth are off by default, the latter 0.1 as published.
"""

import re
import struct
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, calculate_drop_path_rates, register_notrace_function
from timm.models import generate_default_cfgs
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint, checkpoint_seq
from torch import nn

from ..kernels import window_attention_packed
from .bodies.layers import channels_last, init_weights, larger_of, sizes_stay_free
from .checkpoints.conversion import renamed, trunk_of
from .contract.arguments import check_divisible, check_integers, check_numbers, check_rates, check_stages
from .contract.facts import Facts, Variant, stages_of
from .contract.registration import register

__all__ = ["HAT"]

# A leaf of FX graphs: it reads sizes.
register_notrace_function(window_attention_packed)


@register_notrace_function
def reflect_to_multiple(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """Reflects an image at the right and the bottom, again and again where it is small, up to the next multiples.

    Args:
        x: (B, C, H, W).
        multiple: of both sides, in pixels.

    Returns:
        (B, C, H', W'); `x` itself where it fits already.
    """
    for dim in (2, 3):
        size = x.shape[dim]
        padded = (size + multiple - 1) // multiple * multiple
        # A branch on the size would bind a graph to the example's.
        if sizes_stay_free() or padded > size:
            period = 2 * larger_of(size - 1, 1)
            index = torch.arange(padded, device=x.device) % period
            x = x.index_select(dim, torch.minimum(index, period - index).clamp(max=size - 1))
    return x


class WindowAttention(nn.Module):
    """Multi-head attention within windows, or of windows over larger ones around them, with a relative position bias.

    Args:
        dim: channels.
        num_heads: divides `dim`.
        window_size: side of the windows of queries.
        shift: pixels by which the windows are moved.
        overlap: pixels by which the windows of keys are larger.
        proj_drop: dropout behind the output projection.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        shift: int = 0,
        overlap: int = 0,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.window_size = window_size
        self.shift = shift
        self.overlap = overlap
        self.qkv = nn.Linear(dim, 3 * dim, **dd)
        self.relative_position_bias_table = nn.Parameter(
            torch.empty((2 * window_size - 1 + overlap) ** 2, num_heads, **dd)
        )
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> the same; H and W multiples of the window."""
        x = window_attention_packed(
            self.qkv(x),
            self.num_heads,
            (self.window_size, self.window_size),
            (self.shift, self.shift),
            self.overlap,
            self.relative_position_bias_table,
        )
        return self.proj_drop(self.proj(x))


class ChannelAttentionBlock(nn.Module):
    """Two 3x3 convolutions through few channels, and a gate per channel of their mean over the map.

    Args:
        dim: channels.
        compress_ratio: `dim` over the channels between the convolutions.
        squeeze_factor: `dim` over the channels within the gate.
        scale: of the result.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(self, dim: int, compress_ratio: int, squeeze_factor: int, scale: float, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.scale = scale
        self.conv1 = nn.Conv2d(dim, dim // compress_ratio, 3, padding=1, **dd)
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(dim // compress_ratio, dim, 3, padding=1, **dd)
        self.gate = nn.Sequential(
            nn.Linear(dim, dim // squeeze_factor, **dd),
            nn.ReLU(),
            nn.Linear(dim // squeeze_factor, dim, **dd),
            nn.Sigmoid(),
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, H, W, C) -> the same and its gate (B, 1, 1, C), not yet multiplied: a sum takes both at once."""
        x = self.conv1(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = self.conv2(self.act(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x, self.gate(x.mean((1, 2), keepdim=True)) * self.scale


class Block(nn.Module):
    """Window attention and channel attention side by side, then an MLP (HAB, equation 2 of the paper)."""

    def __init__(
        self,
        dim: int,
        attn: WindowAttention,
        conv_block: ChannelAttentionBlock,
        mlp_ratio: float,
        proj_drop: float,
        drop_path: float,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.attn = attn
        self.conv_block = conv_block
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> the same."""
        normed = self.norm1(x)
        conv, gate = self.conv_block(normed)
        x = torch.addcmul(x + self.drop_path(self.attn(normed)), conv, gate)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class OverlapBlock(nn.Module):
    """Attention over overlapping windows, then an MLP (OCAB, section 3.2.3 of the paper)."""

    def __init__(self, dim: int, attn: WindowAttention, mlp_ratio: float, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> the same."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ResidualGroup(nn.Module):
    """Blocks, an overlapping block and a 3x3 convolution with a shortcut around (RHAG)."""

    def __init__(self, dim: int, blocks: list[nn.Module], overlap: nn.Module, device=None, dtype=None):
        super().__init__()
        self.grad_checkpointing = False
        self.blocks = nn.Sequential(*blocks)
        self.overlap = overlap
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same."""
        shortcut = x
        x = x.permute(0, 2, 3, 1)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint(self.overlap, checkpoint_seq(self.blocks, x))
        else:
            x = self.overlap(self.blocks(x))
        return shortcut + self.conv(x.permute(0, 3, 1, 2))


@register_notrace_function
def pixel_shuffle(x: torch.Tensor, factor: int) -> torch.Tensor:
    """PyTorch's, that also has a gradient where the batch is empty."""
    if not sizes_stay_free() and x.shape[0] == 0:
        return x[:, :: factor * factor].repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    return F.pixel_shuffle(x, factor)


class PixelShuffle(nn.PixelShuffle):
    """(B, r * r * C, H, W) -> (B, C, r * H, r * W), r the `upscale_factor`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, r * r * C, H, W) -> (B, C, r * H, r * W)."""
        return pixel_shuffle(x, self.upscale_factor)


def _reconstruction(dim: int, num_feat: int, upscale: int, out_chans: int, **dd) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(dim, num_feat, 3, padding=1, **dd), nn.LeakyReLU()]
    for factor in [3] if upscale == 3 else [2] * (upscale.bit_length() - 1):
        layers += [nn.Conv2d(num_feat, factor**2 * num_feat, 3, padding=1, **dd), PixelShuffle(factor)]
    return nn.Sequential(*layers, nn.Conv2d(num_feat, out_chans, 3, padding=1, **dd))


class HAT(nn.Module):
    """Hybrid Attention Transformer: an image of values in [0, 1] to a larger one.

    Args:
        in_chans: channels of the image, of the output too.
        num_classes: taken for timm's generic tools and ignored: there are no classes.
        global_pool: None for the image; as `reset_classifier` gives them, `""` for the deep features in its place and
            `"avg"` for their mean.
        upscale: 3 or a power of two.
        depths: blocks of each residual group.
        embed_dim: channels.
        num_heads: of each residual group.
        window_size: side of the windows.
        overlap_ratio: what the overlapping windows of keys are larger by, in windows.
        compress_ratio: `embed_dim` over the channels between the convolutions beside the attention.
        squeeze_factor: `embed_dim` over the channels within the channel attention.
        conv_scale: of the convolutions beside the attention.
        mlp_ratio: hidden over outer channels of the MLPs.
        num_feat: channels of the reconstruction.
        drop_rate: dropout before the blocks, behind the projections of their attention and in their MLPs.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: where `depths` and `num_heads` differ in length, heads do not divide `embed_dim`, the channels
            beside the attention vanish, `upscale` is another, the overlap is no even number of pixels, or
            `global_pool` is none of the above.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 0,
        global_pool: str | None = None,
        upscale: int = 4,
        depths: tuple[int, ...] = (6, 6, 6, 6, 6, 6),
        embed_dim: int = 180,
        num_heads: tuple[int, ...] = (6, 6, 6, 6, 6, 6),
        window_size: int = 16,
        overlap_ratio: float = 0.5,
        compress_ratio: int = 3,
        squeeze_factor: int = 30,
        conv_scale: float = 0.01,
        mlp_ratio: float = 2.0,
        num_feat: int = 64,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        check_stages(depths=depths, num_heads=num_heads)
        check_integers(tuples=True, depths=depths, num_heads=num_heads)
        check_integers(
            in_chans=in_chans,
            upscale=upscale,
            embed_dim=embed_dim,
            window_size=window_size,
            compress_ratio=compress_ratio,
            squeeze_factor=squeeze_factor,
            num_feat=num_feat,
        )
        check_divisible("embed_dim", "num_heads", embed_dim=embed_dim, num_heads=num_heads)
        for name, ratio in (("compress_ratio", compress_ratio), ("squeeze_factor", squeeze_factor)):
            if ratio > embed_dim:
                raise ValueError(f"{name}={ratio}: at most embed_dim={embed_dim} is needed")
        check_numbers(least=0, overlap_ratio=overlap_ratio)
        check_numbers(least=1 / embed_dim, mlp_ratio=mlp_ratio)
        check_numbers(conv_scale=conv_scale)
        check_rates(drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        if num_classes not in (0, None):
            check_integers(least=0, num_classes=num_classes)
        if upscale != 3 and upscale & (upscale - 1):
            raise ValueError(f"upscale={upscale}: 3 or a power of two is needed")
        overlap = int(window_size * overlap_ratio)
        if overlap % 2:
            raise ValueError(
                f"overlap_ratio={overlap_ratio}: an even overlap of window_size={window_size} is needed, not {overlap}"
            )
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_classes = 0
        self.in_chans = in_chans
        self.upscale = upscale
        self.window_size = window_size
        self.overlap = overlap
        self.num_features = self.head_hidden_size = embed_dim
        # In float32 as published, also where a model in float64 is compared with it.
        mean = (0.4488, 0.4371, 0.4040) if in_chans == 3 else (0.0,) * in_chans
        self.mean = [struct.unpack("f", struct.pack("f", value))[0] for value in mean]
        self.stem = nn.Conv2d(in_chans, embed_dim, 3, padding=1, **dd)
        self.embed_norm = nn.LayerNorm(embed_dim, **dd)
        self.embed_drop = nn.Dropout(drop_rate)
        drop_path: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages = []
        for depth, heads, rates in zip(depths, num_heads, drop_path, strict=True):
            blocks: list[nn.Module] = []
            for j in range(depth):
                shift = window_size // 2 if j % 2 else 0
                attn = WindowAttention(embed_dim, heads, window_size, shift, proj_drop=drop_rate, **dd)
                conv_block = ChannelAttentionBlock(embed_dim, compress_ratio, squeeze_factor, conv_scale, **dd)
                blocks.append(Block(embed_dim, attn, conv_block, mlp_ratio, drop_rate, rates[j], **dd))
            attn = WindowAttention(embed_dim, heads, window_size, overlap=overlap, **dd)
            stages.append(ResidualGroup(embed_dim, blocks, OverlapBlock(embed_dim, attn, mlp_ratio, **dd), **dd))
        self.stages = nn.Sequential(*stages)
        self.norm: nn.Module = nn.LayerNorm(embed_dim, **dd)
        self.conv_after_body: nn.Module = nn.Conv2d(embed_dim, embed_dim, 3, padding=1, **dd)
        self.head: nn.Module = _reconstruction(embed_dim, num_feat, upscale, in_chans, **dd)
        modules = [*(f"stages.{i}" for i in range(len(depths))), "conv_after_body"]
        self.feature_info = [dict(num_chs=embed_dim, reduction=1, size="n", module=module) for module in modules]
        self.apply(init_weights)
        self.restores = True
        self.global_pool = ""
        if global_pool is not None:
            self.reset_classifier(0, global_pool)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters to exempt from weight decay, beside those of one dimension."""
        return {name for name, _ in self.named_parameters() if name.endswith("relative_position_bias_table")}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        """Patterns that order the parameters by depth, for layer-wise learning-rate decay."""
        # timm adds the parameters of order 99999 to the layer before them; those of the deep features are their own.
        deep = (r"^norm|^conv_after_body", (99998,))
        blocks = [
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^stages\.(\d+)\.(?:overlap|conv)", (99999,)),
            deep,
        ]
        groups = [(r"^stages\.(\d+)", None), deep]
        return dict(stem=r"^stem|^embed_norm", blocks=groups if coarse else blocks)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block in the backward pass instead of keeping its activations."""
        for stage in self.stages:
            cast(ResidualGroup, stage).grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The reconstruction, in the place of other models' classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Removes the reconstruction: the model then gives the mean of its deep features, with `""` their map.

        Raises:
            ValueError: for any number of classes but 0, or another pooling.
        """
        if num_classes != 0:
            raise ValueError(f"num_classes={num_classes!r}: 0 is needed for a model that restores images")
        if global_pool not in (None, "avg", ""):
            raise ValueError(f"global_pool={global_pool!r}: 'avg' or '' is needed for a model that restores images")
        self.restores = False
        self.global_pool = "avg" if global_pool is None else global_pool
        self.head = nn.Identity()

    def _embed(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, in_chans, H, W) -> shallow features and their norm, both (B, C, H', W') at multiples of the window."""
        x = _shift_colours(reflect_to_multiple(x, self.window_size), self.mean, -1.0)
        # In this format the blocks' channels-last views need no copy.
        shallow = self.stem(channels_last(x))
        return shallow, self.embed_drop(self.embed_norm(shallow.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)

    def _merge(self, x: torch.Tensor, shallow: torch.Tensor) -> torch.Tensor:
        return self.conv_after_body(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)) + shallow

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """The deep features together with chosen levels: the residual groups, and last the deep features themselves.

        Args:
            x: (B, in_chans, H, W).
            indices: the last n levels if an int, all if None, else the levels listed.
            norm: apply the final norm to the groups' maps; the deep features have been through it.
            stop_early: stop after the last level that is asked for.
            output_fmt: `"NCHW"`.
            intermediates_only: return the list alone.

        Raises:
            ValueError: for another `output_fmt`.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r}: 'NCHW' is needed")
        last = len(self.feature_info) - 1
        take_indices, max_index = feature_take_indices(last + 1, indices)
        height, width = x.shape[2], x.shape[3]
        shallow, x = self._embed(x)
        intermediates = []
        for i, stage in enumerate(self.stages[: max_index + 1] if stop_early else self.stages):
            x = stage(x)
            if i in take_indices:
                taken = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if norm else x
                intermediates.append(taken[:, :, :height, :width])
        if max_index == last or not (stop_early or intermediates_only):
            x = self._merge(x, shallow)
        x = x[:, :, :height, :width]
        if last in take_indices:
            intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drops what comes behind the last of `indices`, and the reconstruction; returns the indices as a list.

        The final norm comes before the last level, so that `prune_norm` takes it only together with that level.
        """
        take_indices, max_index = feature_take_indices(len(self.feature_info), indices)
        shortened = max_index < len(self.feature_info) - 1
        if shortened:
            self.stages = self.stages[: max_index + 1]
            self.conv_after_body = nn.Identity()
            if prune_norm:
                self.norm = nn.Identity()
        if prune_head or shortened:
            self.reset_classifier(0, "")
        return take_indices

    def _features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) -> (B, C, H', W'), padded."""
        shallow, x = self._embed(x)
        return self._merge(self.stages(x), shallow)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) -> (B, C, H, W)."""
        height, width = x.shape[2], x.shape[3]
        return self._features(x)[:, :, :height, :width]

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """(B, C, H, W) -> the image (B, in_chans, upscale * H, upscale * W), or the mean (B, C) of the features.

        The mean with `pre_logits`, and without a reconstruction, unless that was removed with `global_pool=""`.
        """
        if pre_logits or self.global_pool == "avg":
            return x.mean((2, 3))
        if not self.restores:
            return x
        return _shift_colours(self.head(x), self.mean, 1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) -> (B, in_chans, upscale * H, upscale * W)."""
        if not self.restores:
            return self.forward_head(self.forward_features(x))
        height, width = self.upscale * x.shape[2], self.upscale * x.shape[3]
        return self.forward_head(self._features(x))[:, :, :height, :width]


@register_notrace_function
def _shift_colours(x: torch.Tensor, mean: list[float], sign: float) -> torch.Tensor:
    """Adds `sign` times the mean of each channel to an image (B, C, H, W)."""
    # Filled where the image is: a tensor from the host would be a copy in every pass, and a buffer is lost by a model
    # that was made on the meta device.
    return x + torch.cat([x.new_full((1, 1, 1), sign * value) for value in mean])


_RENAMES = [
    (r"^conv_first\.", "stem."),
    (r"^patch_embed\.norm\.", "embed_norm."),
    (r"^layers\.(\d+)\.residual_group\.blocks\.", r"stages.\1.blocks."),
    (
        r"^layers\.(\d+)\.residual_group\.overlap_attn\.(qkv|proj|relative_position_bias_table)",
        r"stages.\1.overlap.attn.\2",
    ),
    (r"^layers\.(\d+)\.residual_group\.overlap_attn\.", r"stages.\1.overlap."),
    (r"^layers\.(\d+)\.conv\.", r"stages.\1.conv."),
    (r"\.conv_block\.cab\.0\.", ".conv_block.conv1."),
    (r"\.conv_block\.cab\.2\.", ".conv_block.conv2."),
    (r"\.conv_block\.cab\.3\.attention\.1\.", ".conv_block.gate.0."),
    (r"\.conv_block\.cab\.3\.attention\.3\.", ".conv_block.gate.2."),
    (r"^conv_before_upsample\.0\.", "head.0."),
    (r"^upsample\.0\.", "head.2."),
    (r"^upsample\.2\.", "head.4."),
    (r"^upsample\.4\.", "head.6."),
]


def _upscale_of(state_dict: dict[str, torch.Tensor]) -> int:
    """By how much a published checkpoint enlarges."""
    weights = [v for k, v in state_dict.items() if re.fullmatch(r"upsample\.\d\.weight", k)]
    return 3 if len(weights) == 1 and weights[0].shape[0] == 9 * weights[0].shape[1] else 2 ** len(weights)


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Renames a published checkpoint to our keys; returns ours untouched.

    Raises:
        ValueError: if the checkpoint enlarges by another factor than the model.
    """
    state_dict, _ = trunk_of(state_dict)
    if "stem.weight" in state_dict:
        return state_dict
    model = cast(HAT, model)
    upscale = _upscale_of(state_dict)
    if model.restores and "conv_last.weight" in state_dict and upscale != model.upscale:
        raise ValueError(
            f"the checkpoint enlarges {upscale} times, the model {model.upscale} times: take a *_x{upscale}"
        )
    last = 2 * len({k for k in state_dict if re.fullmatch(r"upsample\.\d\.weight", k)}) + 2
    # From the first entry of the published table to that of no distance less the greatest, see `window_attention`.
    side = 2 * model.window_size - 1 + model.overlap
    roll = (model.window_size + model.overlap - 2) * (side + 1)
    out = {}
    for key, value in state_dict.items():
        if key.startswith("relative_position_index") or key == "attn_mask":
            continue
        key = renamed(key, [*_RENAMES, (r"^conv_last\.", f"head.{last}.")])
        if key.endswith("overlap.attn.relative_position_bias_table"):
            # The published index wraps round the table, and counts key minus query.
            value = value.roll(roll, 0).flip(0)
        elif ".conv_block.gate." in key:
            value = value.flatten(1) if value.dim() == 4 else value
        if model.restores or not key.startswith("head."):
            out[key] = value
    return out


def _cfg(*notes: str) -> dict:
    return {
        "num_classes": 0,
        "input_size": (3, 64, 64),
        "pool_size": (64, 64),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "first_conv": "stem",
        "classifier": None,
        "license": "apache-2.0",
        "origin_url": "https://github.com/XPixelGroup/HAT",
        "paper_name": "Activating More Pixels in Image Super-Resolution Transformer",
        "paper_ids": "arXiv:2205.04437",
        "notes": notes,
    }


def _psnr(*scores: str) -> str:
    return f"PSNR of the Y channel, x4: {', '.join(scores)} dB (authors' figures)."


_IMAGENET = "Pre-trained on ImageNet, fine-tuned on DF2K."

default_cfgs = generate_default_cfgs(
    {
        "hat_small_x2.df2k": _cfg("Trained on DF2K."),
        "hat_small_x3.df2k": _cfg("Trained on DF2K."),
        "hat_small_x4.df2k": _cfg("Trained on DF2K.", _psnr("Set5 32.92", "Urban100 27.87")),
        "hat_x2.df2k": _cfg("Trained on DF2K."),
        "hat_x3.df2k": _cfg("Trained on DF2K."),
        "hat_x4.df2k": _cfg("Trained on DF2K.", _psnr("Set5 33.04", "Urban100 27.97")),
        "hat_x2.in1k_df2k": _cfg(_IMAGENET),
        "hat_x3.in1k_df2k": _cfg(_IMAGENET),
        "hat_x4.in1k_df2k": _cfg(_IMAGENET, _psnr("Urban100 28.37")),
        "hat_large_x2.in1k_df2k": _cfg(_IMAGENET),
        "hat_large_x3.in1k_df2k": _cfg(_IMAGENET),
        "hat_large_x4.in1k_df2k": _cfg(_IMAGENET, _psnr("Urban100 28.60")),
        "hat_real_x4.gan": _cfg("For photographs with unknown degradations; trained with a GAN, for fidelity."),
        "hat_real_x4.gan_sharp": _cfg("For photographs with unknown degradations; trained with a GAN, for sharpness."),
    }
)

_FACTS = Facts(
    HAT,
    checkpoint_filter_fn,
    restores=True,
    levels=lambda kwargs: stages_of(kwargs, 6) + 1,
    # The levels are cropped and the last is a sum, which no module of the model puts out.
    feature_cfg=dict(feature_cls="getter"),
)
_SMALL = dict(depths=(6,) * 6, embed_dim=144, num_heads=(6,) * 6, compress_ratio=24, squeeze_factor=24)
_BASE = dict(depths=(6,) * 6, embed_dim=180, num_heads=(6,) * 6, compress_ratio=3, squeeze_factor=30)
_LARGE = {**_BASE, "depths": (6,) * 12, "num_heads": (6,) * 12}


register(
    __name__,
    _FACTS,
    {
        "hat_small_x2": Variant(
            "HAT-S, sides x2, 9.5 M parameters.", dict(**_SMALL, upscale=2), golden=("hat_small_x2",)
        ),
        "hat_small_x3": Variant("HAT-S, sides x3, 9.7 M parameters.", dict(**_SMALL, upscale=3)),
        "hat_small_x4": Variant(
            "HAT-S, sides x4, 9.6 M parameters.", dict(**_SMALL, upscale=4), golden=("hat_small_x4",)
        ),
        "hat_x2": Variant("HAT, sides x2, 20.6 M parameters.", dict(**_BASE, upscale=2)),
        "hat_x3": Variant("HAT, sides x3, 20.8 M parameters.", dict(**_BASE, upscale=3)),
        "hat_x4": Variant("HAT, sides x4, 20.8 M parameters.", dict(**_BASE, upscale=4)),
        "hat_large_x2": Variant("HAT-L, sides x2, 40.7 M parameters.", dict(**_LARGE, upscale=2)),
        "hat_large_x3": Variant("HAT-L, sides x3, 40.9 M parameters.", dict(**_LARGE, upscale=3)),
        "hat_large_x4": Variant("HAT-L, sides x4, 40.8 M parameters.", dict(**_LARGE, upscale=4)),
        "hat_real_x4": Variant(
            "Real-world HAT, trained with a GAN: HAT's architecture, sides x4, 20.8 M parameters.",
            dict(**_BASE, upscale=4),
        ),
    },
)
