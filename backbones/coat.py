"""CoaT: timm's models of this name, made ready for dense prediction and faster.

Co-Scale Conv-Attentional Image Transformers, https://arxiv.org/abs/2104.06399, https://github.com/mlpc-ucsd/CoaT
(Apache-2.0).

Importing attnzoo registers these models under timm's own names, `coat_*`, in place of timm's; `timm.models.coat` keeps
the originals, untouched. The class is a subclass of timm's for its name alone: its layers are this file's, and nothing
is inherited that a later timm could change. Parameters, their names, configurations and hub weights are timm's, and at
timm's input size so are the outputs. Different are the sizes (any; timm's models are bound to `img_size`, those with
parallel blocks to multiples of 32 as well), gradient checkpointing (timm's have none), and what a checkpoint may look
like. Where timm's CoaT takes other arguments than ours, or is gone, timm's models stay, and a warning says so; so do
those whose names this file does not know.

Any size is taken as the published code takes it: every scale floors, and the cross-scale resizing of the parallel
blocks goes to explicit sizes; a map smaller than a patch, where the published code fails, is zero-padded to one. The
published detection code takes the four maps of `features_only=True`, strides 4 to 32: after the parallel blocks,
without class token and without a norm.
"""

import inspect
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm, Mlp
from timm.models import generate_default_cfgs
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint
from torch import nn

from .bodies.layers import DepthwiseConv2d, init_weights, pad_to_least
from .bodies.pyramid import ROUNDED_DOWN
from .checkpoints.conversion import keep_classifier, trunk_of
from .contract.arguments import (
    check_divisible,
    check_integers,
    check_numbers,
    check_pool,
    check_rates,
    check_sides,
    check_stages,
)
from .contract.facts import Check, Facts, Variant
from .contract.registration import TimmChangedError, register

try:
    from timm.models import coat as original

    # Any: what this file inherits of timm's class is its name.
    TimmsCoaT: Any = original.CoaT
    _TIMMS_ARGUMENTS = inspect.signature(TimmsCoaT.__init__).parameters.keys()
    _TIMMS_CFGS = original.default_cfgs
except (ImportError, AttributeError) as error:
    raise TimmChangedError(f"timm has no CoaT where it was: {error}") from error

__all__ = ["CoaT"]

# Of timm, names and places of which stay in checkpoints: one a head in the attention's convolutions.
_WINDOWS = {3: 2, 5: 3, 7: 3}


class PatchEmbed(nn.Module):
    """Convolution of adjoining patches and a norm; what does not fill a patch is left out, but for the first."""

    def __init__(self, in_chans: int, dim: int, patch_size: int, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size, **dd)
        self.norm = nn.LayerNorm(dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, h, w, D), h and w at least 1."""
        return self.norm(self.proj(pad_to_least(x, self.patch_size)).permute(0, 2, 3, 1))


class PositionEncoding(nn.Module):
    """Depth-wise convolution of the map, with a shortcut, past the class token."""

    def __init__(self, dim: int, device=None, dtype=None):
        super().__init__()
        self.proj = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """(B, 1 + H * W, C) -> the same."""
        image = _map(x, size)
        return _tokens(x[:, :1], (image + self.proj(image)).permute(0, 2, 3, 1))


class RelativePositions(nn.Module):
    """Depth-wise convolutions of the values, of one window for each group of heads.

    Args:
        head_dim: channels of a head.
        windows: heads of each window.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(self, head_dim: int, windows: dict[int, int], device=None, dtype=None):
        super().__init__()
        self.channels = [heads * head_dim for heads in windows.values()]
        self.conv_list = nn.ModuleList(
            DepthwiseConv2d(channels, window, device=device, dtype=dtype)
            for window, channels in zip(windows, self.channels, strict=True)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same."""
        parts = x.split(self.channels, dim=1)
        out: list[torch.Tensor] = []
        for i, conv in enumerate(self.conv_list):
            out.append(conv(parts[i]))
        return torch.cat(out, dim=1)


class FactorAttention(nn.Module):
    """Factorised attention with a convolutional relative position encoding (section 3 of the paper)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        crpe: RelativePositions,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.crpe = crpe

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """(B, 1 + H * W, C) -> the same."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        keys = k.softmax(dim=1).unflatten(-1, (self.num_heads, -1)).permute(0, 2, 3, 1)
        context = self.scale * (keys @ v.unflatten(-1, (self.num_heads, -1)).transpose(1, 2))
        out = (q.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) @ context).transpose(1, 2).flatten(2)
        local = self.crpe(_map(v, size)).flatten(2).transpose(1, 2)
        # The class token has no place and so no relative position.
        image = torch.addcmul(out[:, 1:], q[:, 1:], local)
        return self.proj_drop(self.proj(torch.cat((out[:, :1], image), dim=1)))


class SerialBlock(nn.Module):
    """Position encoding, attention and MLP at one scale.

    Args:
        dim: channels.
        cpe: position encoding that the scale's blocks share.
        crpe: relative position encoding that they share.
        mlp_ratio: hidden over outer channels of the MLP.
        drop_path: stochastic depth of both branches.
        norm_layer: of both norms, called with the channels.
        num_heads: divides `dim`.
        qkv_bias: of the projection of queries, keys and values.
        proj_drop: dropout behind the projections of attention and MLP.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        dim: int,
        cpe: PositionEncoding,
        crpe: RelativePositions,
        mlp_ratio: float,
        drop_path: float,
        norm_layer: Callable[..., nn.Module],
        num_heads: int,
        qkv_bias: bool,
        proj_drop: float,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.grad_checkpointing = False
        self.cpe = cpe
        self.norm1 = norm_layer(dim, **dd)
        self.factoratt_crpe = FactorAttention(dim, num_heads, crpe, qkv_bias, proj_drop, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = norm_layer(dim, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop, **dd)

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """(B, 1 + H * W, C) -> the same."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint(self._forward, x, size)
        return self._forward(x, size)

    def _forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        x = self.cpe(x, size)
        x = x + self.drop_path(self.factoratt_crpe(self.norm1(x), size))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ParallelBlock(nn.Module):
    """Attention and MLP at scales 2 to 4 at once; each gets the attention of the others too, resized to its size.

    Args:
        dim: channels of each of the three scales.
        crpes: relative position encodings that the scale's blocks share.
        mlp_ratio: hidden over outer channels of the MLP, one for the three scales.
        drop_path: stochastic depth of both branches.
        norm_layer: of all norms, called with the channels.
        num_heads: divides `dim`.
        qkv_bias: of the projections of queries, keys and values.
        proj_drop: dropout behind the projections of attention and MLP.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        dim: int,
        crpes: tuple[RelativePositions, RelativePositions, RelativePositions],
        mlp_ratio: float,
        drop_path: float,
        norm_layer: Callable[..., nn.Module],
        num_heads: int,
        qkv_bias: bool,
        proj_drop: float,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.grad_checkpointing = False
        self.norm12 = norm_layer(dim, **dd)
        self.norm13 = norm_layer(dim, **dd)
        self.norm14 = norm_layer(dim, **dd)
        self.factoratt_crpe2 = FactorAttention(dim, num_heads, crpes[0], qkv_bias, proj_drop, **dd)
        self.factoratt_crpe3 = FactorAttention(dim, num_heads, crpes[1], qkv_bias, proj_drop, **dd)
        self.factoratt_crpe4 = FactorAttention(dim, num_heads, crpes[2], qkv_bias, proj_drop, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm22: nn.Module | None = norm_layer(dim, **dd)
        self.norm23: nn.Module | None = norm_layer(dim, **dd)
        self.norm24: nn.Module | None = norm_layer(dim, **dd)
        # One module under the three names that checkpoints have.
        mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop, **dd)
        self.mlp2: nn.Module | None = mlp
        self.mlp3: nn.Module | None = mlp
        self.mlp4: nn.Module | None = mlp

    def forward(
        self,
        x1: torch.Tensor,
        x2: torch.Tensor,
        x3: torch.Tensor,
        x4: torch.Tensor,
        sizes: list[tuple[int, int]],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens (B, 1 + H * W, C) of four scales -> the same; the first are passed through.

        Args:
            x1: of scale 1.
            x2: of scale 2.
            x3: of scale 3.
            x4: of scale 4.
            sizes: (H, W) of each scale.
        """
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x2, x3, x4 = checkpoint(self._forward, x2, x3, x4, sizes)
        else:
            x2, x3, x4 = self._forward(x2, x3, x4, sizes)
        return x1, x2, x3, x4

    def _forward(
        self, x2: torch.Tensor, x3: torch.Tensor, x4: torch.Tensor, sizes: list[tuple[int, int]]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        size2, size3, size4 = sizes[1], sizes[2], sizes[3]
        cur2 = self.factoratt_crpe2(self.norm12(x2), size2)
        cur3 = self.factoratt_crpe3(self.norm13(x3), size3)
        cur4 = self.factoratt_crpe4(self.norm14(x4), size4)
        token = cur2[:, :1] + cur3[:, :1] + cur4[:, :1]
        map2, map3, map4 = _map(cur2, size2), _map(cur3, size3), _map(cur4, size4)
        sum2 = map2 + _resize(map3, size2) + _resize(map4, size2)
        sum3 = map3 + _resize(map4, size3) + _resize(map2, size3)
        sum4 = map4 + _resize(map3, size4) + _resize(map2, size4)
        x2 = x2 + self.drop_path(_tokens(token, sum2.permute(0, 2, 3, 1)))
        x3 = x3 + self.drop_path(_tokens(token, sum3.permute(0, 2, 3, 1)))
        x4 = x4 + self.drop_path(_tokens(token, sum4.permute(0, 2, 3, 1)))
        if self.norm22 is not None and self.mlp2 is not None:
            x2 = x2 + self.drop_path(self.mlp2(self.norm22(x2)))
        if self.norm23 is not None and self.mlp3 is not None:
            x3 = x3 + self.drop_path(self.mlp3(self.norm23(x3)))
        if self.norm24 is not None and self.mlp4 is not None:
            x4 = x4 + self.drop_path(self.mlp4(self.norm24(x4)))
        return x2, x3, x4

    def prune(self, scales: list[int]) -> None:
        """Drops the MLPs of other scales than these, counted from 1: of the last block nothing else asks for them."""
        for i in (2, 3, 4):
            if i not in scales:
                setattr(self, f"norm2{i}", None)
                setattr(self, f"mlp{i}", None)


def _tokens(token: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Class tokens, (B or 1, 1, C), and map, (B, H, W, C), as tokens (B, 1 + H * W, C)."""
    return torch.cat((token.expand(image.shape[0], -1, -1), image.flatten(1, 2)), dim=1)


def _map(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Tokens (B, 1 + H * W, C) as a map (B, C, H, W), a view."""
    return x[:, 1:].unflatten(1, (size[0], size[1])).permute(0, 3, 1, 2)


def _resize(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(x, [size[0], size[1]], mode="bilinear", align_corners=False)


class CoaT(TimmsCoaT):
    """CoaT, or CoaT-Lite where `parallel_depth` is 0.

    Args:
        img_size: taken as timm takes it; it binds nothing here.
        patch_size: side of a patch of the first scale, in pixels; each further scale halves the map.
        in_chans: channels of the image.
        num_classes: 0 for no classifier.
        embed_dims: channels of the four scales.
        serial_depths: blocks of each scale.
        parallel_depth: blocks over scales 2 to 4 behind them.
        num_heads: divides all of `embed_dims`.
        mlp_ratios: hidden over outer channels of each scale's MLPs.
        qkv_bias: of the projections of queries, keys and values.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout behind the projections of attention and MLP.
        attn_drop_rate: 0: the factorised attention has no place for it, in timm's models as little.
        drop_path_rate: stochastic depth, the same of all blocks, as published.
        norm_layer: of the blocks and the final norms, called with the channels.
        return_interm_layers: no classifier; the model returns a dict of the maps that `out_features` names.
        out_features: among `x1_nocls` to `x4_nocls`, with `return_interm_layers`.
        crpe_window: heads of each window, odd, of the relative position encoding; a number for one window.
        global_pool: `"token"` for the class tokens, `"avg"` for the mean of the others.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: where a tuple has not four entries, heads do not divide `embed_dims`, the windows' heads are not
            `num_heads` together, scales 2 to 4 of parallel blocks differ, or a value is outside of what is said above.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dims: tuple[int, ...] = (64, 128, 320, 512),
        serial_depths: tuple[int, ...] = (3, 4, 6, 3),
        parallel_depth: int = 0,
        num_heads: int = 8,
        mlp_ratios: tuple[float, ...] = (4.0, 4.0, 4.0, 4.0),
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_layer: Callable[..., nn.Module] = LayerNorm,
        return_interm_layers: bool = False,
        out_features: list[str] | None = None,
        crpe_window: dict[int, int] | int | None = None,
        global_pool: str = "token",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        check_stages(embed_dims=embed_dims, serial_depths=serial_depths, mlp_ratios=mlp_ratios)
        if len(embed_dims) != 4:
            raise ValueError(f"embed_dims={embed_dims!r}: four scales are needed")
        check_integers(tuples=True, embed_dims=embed_dims, serial_depths=serial_depths)
        check_integers(patch_size=patch_size, in_chans=in_chans, num_heads=num_heads)
        check_sides(img_size=img_size)
        check_integers(least=0, parallel_depth=parallel_depth, num_classes=num_classes)
        check_numbers(above=0, tuples=True, mlp_ratios=mlp_ratios)
        check_rates(drop_rate=drop_rate, proj_drop_rate=proj_drop_rate, drop_path_rate=drop_path_rate)
        check_divisible("embed_dims", "num_heads", embed_dims=embed_dims, num_heads=num_heads)
        if attn_drop_rate != 0:
            raise ValueError(f"attn_drop_rate={attn_drop_rate!r}: the factorised attention has none, 0 is needed")
        windows = {crpe_window: num_heads} if isinstance(crpe_window, int) else crpe_window or _WINDOWS
        if not isinstance(windows, dict):
            raise ValueError(f"crpe_window={crpe_window!r}: a dict of windows and their heads is needed")
        check_integers(odd=True, tuples=True, crpe_window=tuple(windows))
        check_integers(tuples=True, crpe_window=tuple(windows.values()))
        if sum(windows.values()) != num_heads:
            raise ValueError(f"crpe_window={windows!r}: as many heads together as num_heads={num_heads} are needed")
        if parallel_depth > 0 and (len(set(embed_dims[1:])) > 1 or len(set(mlp_ratios[1:])) > 1):
            raise ValueError(
                f"embed_dims={embed_dims!r}, mlp_ratios={mlp_ratios!r}: the same for scales 2 to 4 of parallel blocks "
                "are needed"
            )
        names = [f"x{i}_nocls" for i in (1, 2, 3, 4)]
        if return_interm_layers and not (out_features and set(out_features) <= set(names)):
            raise ValueError(
                f"out_features={out_features!r}: with return_interm_layers some of {', '.join(names)} are needed"
            )
        check_pool(global_pool, ("token", "avg"))
        # Not timm's constructor, which builds timm's layers.
        nn.Module.__init__(self)
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.return_interm_layers = return_interm_layers
        self.out_features = out_features
        self.embed_dims = embed_dims
        self.num_features = self.head_hidden_size = embed_dims[-1]
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.global_pool = global_pool
        blocks: dict[str, Any] = dict(drop_path=drop_path_rate, norm_layer=norm_layer, num_heads=num_heads)
        blocks |= dict(qkv_bias=qkv_bias, proj_drop=proj_drop_rate, **dd)
        scales = (1, 2, 3, 4)
        # In timm's order, so that the states of its optimizers belong to the same parameters.
        for i, dim in zip(scales, embed_dims, strict=True):
            patch = (in_chans, dim, patch_size) if i == 1 else (embed_dims[i - 2], dim, 2)
            setattr(self, f"patch_embed{i}", PatchEmbed(*patch, **dd))
        for i, dim in zip(scales, embed_dims, strict=True):
            setattr(self, f"cls_token{i}", nn.Parameter(torch.empty(1, 1, dim, **dd)))
        cpes = [PositionEncoding(dim, **dd) for dim in embed_dims]
        crpes = [RelativePositions(dim // num_heads, windows, **dd) for dim in embed_dims]
        for name, shared in (("cpe", cpes), ("crpe", crpes)):
            for i, module in zip(scales, shared, strict=True):
                setattr(self, f"{name}{i}", module)
        for i, dim in zip(scales, embed_dims, strict=True):
            layers = (dim, cpes[i - 1], crpes[i - 1], mlp_ratios[i - 1])
            serial = nn.ModuleList(SerialBlock(*layers, **blocks) for _ in range(serial_depths[i - 1]))
            setattr(self, f"serial_blocks{i}", serial)
        self.parallel_depth = parallel_depth
        self.parallel_blocks: nn.ModuleList | None = None
        if parallel_depth > 0:
            layer = partial(ParallelBlock, embed_dims[1], (crpes[1], crpes[2], crpes[3]), mlp_ratios[1], **blocks)
            self.parallel_blocks = nn.ModuleList(layer() for _ in range(parallel_depth))
        classifies, joins = not return_interm_layers, not return_interm_layers and parallel_depth > 0
        # Scales whose maps are whole, by their indices: pruning leaves fewer.
        self.whole_scales = [0, 1, 2, 3]
        self.norm2: nn.Module | None = norm_layer(embed_dims[1], **dd) if joins else None
        self.norm3: nn.Module | None = norm_layer(embed_dims[2], **dd) if joins else None
        self.norm4: nn.Module | None = norm_layer(embed_dims[3], **dd) if classifies else None
        self.aggregate: nn.Module | None = nn.Conv1d(3, 1, 1, **dd) if joins else None
        self.head_drop = nn.Dropout(drop_rate)
        has_head = classifies and num_classes > 0
        self.head: nn.Module = nn.Linear(self.num_features, num_classes, **dd) if has_head else nn.Identity()
        # All scales leave the parallel blocks together; each names its own attention in the last of them.
        last = f"parallel_blocks.{parallel_depth - 1}.factoratt_crpe"
        self.feature_info = [
            dict(
                num_chs=dim,
                reduction=patch_size * 2**i,
                size=ROUNDED_DOWN.format(stride=patch_size * 2**i),
                module=f"{last}{i + 1}" if i > 0 and parallel_depth > 0 else f"serial_blocks{i + 1}",
            )
            for i, dim in enumerate(embed_dims)
        ]
        for i in (1, 2, 3, 4):
            nn.init.trunc_normal_(getattr(self, f"cls_token{i}"), std=0.02)
        self.apply(init_weights)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters to exempt from weight decay, beside those of one dimension."""
        return {"cls_token1", "cls_token2", "cls_token3", "cls_token4"}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block in the backward pass instead of keeping its activations."""
        for module in self.modules():
            if isinstance(module, (SerialBlock, ParallelBlock)):
                module.grad_checkpointing = enable

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        """Patterns that order the parameters by depth, for layer-wise learning-rate decay."""
        if not coarse:
            scales = {}
            for i in (1, 2, 3, 4):
                scales[f"stem{i}"] = rf"^(?:patch_embed|cls_token|cpe|crpe){i}\b"
                scales[f"serial_blocks{i}"] = rf"^serial_blocks{i}\.(\d+)"
            last = [(r"^parallel_blocks\.(\d+)", None), (r"^(?:norm|aggregate)", (99999,))]
            return dict(**scales, parallel_blocks=last)
        coarse_scales = [(rf"^(?:patch_embed|cls_token|cpe|crpe|serial_blocks){i}\b", (i,)) for i in (1, 2, 3, 4)]
        return dict(blocks=[*coarse_scales, (r"^parallel_blocks", (5,)), (r"^(?:norm|aggregate)", (99999,))])

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The linear classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier; `num_classes=0` removes it.

        Raises:
            ValueError: for another `global_pool` than `"token"` and `"avg"`, or a negative number of classes.
        """
        check_integers(least=0, num_classes=num_classes)
        if global_pool is not None:
            check_pool(global_pool, ("token", "avg"))
            self.global_pool = global_pool
        self.num_classes = num_classes
        weight = self.cls_token1
        self.head = (
            nn.Linear(self.num_features, num_classes, device=weight.device, dtype=weight.dtype)
            if num_classes > 0
            else nn.Identity()
        )
        self.head.train(self.training)

    def _scales(self, x: torch.Tensor, scales: int) -> tuple[list[torch.Tensor], list[tuple[int, int]]]:
        """Tokens (B, 1 + h * w, C) and (h, w) of the first `scales` scales, less those pruned.

        The parallel blocks run where all four scales are there.
        """
        # Loop variables differ because TorchScript binds a module to a name once.
        image = self.patch_embed1(x)
        xs, sizes = [_tokens(self.cls_token1, image)], [(image.shape[1], image.shape[2])]
        for block1 in self.serial_blocks1:
            xs[0] = block1(xs[0], sizes[0])
        if self.patch_embed2 is not None and scales > 1:
            image = self.patch_embed2(_map(xs[0], sizes[0]))
            xs.append(_tokens(self.cls_token2, image))
            sizes.append((image.shape[1], image.shape[2]))
            for block2 in self.serial_blocks2:
                xs[1] = block2(xs[1], sizes[1])
        if self.patch_embed3 is not None and scales > 2:
            image = self.patch_embed3(_map(xs[1], sizes[1]))
            xs.append(_tokens(self.cls_token3, image))
            sizes.append((image.shape[1], image.shape[2]))
            for block3 in self.serial_blocks3:
                xs[2] = block3(xs[2], sizes[2])
        if self.patch_embed4 is not None and scales > 3:
            image = self.patch_embed4(_map(xs[2], sizes[2]))
            xs.append(_tokens(self.cls_token4, image))
            sizes.append((image.shape[1], image.shape[2]))
            for block4 in self.serial_blocks4:
                xs[3] = block4(xs[3], sizes[3])
        if self.parallel_blocks is not None and scales > 3:
            x1, x2, x3, x4 = xs
            for block in self.parallel_blocks:
                x2, x3, x4 = self.cpe2(x2, sizes[1]), self.cpe3(x3, sizes[2]), self.cpe4(x4, sizes[3])
                x1, x2, x3, x4 = block(x1, x2, x3, x4, sizes)
            xs = [x1, x2, x3, x4]
        return xs, sizes

    def _norm(self, x: torch.Tensor, scale: int) -> torch.Tensor:
        """The final norm of a scale, where it has one."""
        if scale == 1 and self.norm2 is not None:
            x = self.norm2(x)
        if scale == 2 and self.norm3 is not None:
            x = self.norm3(x)
        if scale == 3 and self.norm4 is not None:
            x = self.norm4(x)
        return x

    def _last(self, xs: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        """What the head takes: tokens of the last scale, or of those of the last three that are whole."""
        if len(xs) < 4:
            return xs[-1]
        if self.parallel_blocks is not None:
            last: list[torch.Tensor] = []
            for i in self.whole_scales:
                if i > 0:
                    last.append(self._norm(xs[i], i))
            return last
        return self._norm(xs[3], 3)

    def _named_maps(self, xs: list[torch.Tensor], sizes: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
        """The maps that timm's `return_interm_layers` and `out_features` ask for, less those pruned."""
        names = {f"x{i + 1}_nocls": i for i in self.whole_scales}
        return {name: _map(xs[i], sizes[i]) for name, i in names.items() if name in (self.out_features or ())}

    def _taken(self, indices: int | list[int] | None) -> tuple[list[int], int]:
        """The indices of scales as a list, and the last of them.

        Raises:
            ValueError: for a scale that has been pruned.
        """
        left = self.whole_scales
        take_indices, max_index = feature_take_indices(left[-1] + 1, left if indices is None else indices)
        for i in take_indices:
            if i not in left:
                raise ValueError(f"indices={indices}: scale {i} has been pruned, some of {left} are needed")
        return take_indices, max_index

    def forward_features(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """(B, in_chans, H, W) -> tokens (B, 1 + h * w, C), behind parallel blocks a list of three less those pruned."""
        xs, sizes = self._scales(x, 4)
        if not torch.jit.is_scripting() and self.return_interm_layers:
            return self._named_maps(xs, sizes)  # type: ignore[return-value]
        return self._last(xs)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor | list[torch.Tensor], list[torch.Tensor]]:
        """What `forward_features` returns together with the maps of chosen scales, without class tokens.

        Args:
            x: (B, in_chans, H, W).
            indices: the last n scales if an int, all that are left if None, else the scales listed.
            norm: apply the final norms of the scales that have one.
            stop_early: stop after the last scale that is asked for; parallel blocks need all but the first.
            output_fmt: `"NCHW"`.
            intermediates_only: return the list alone.

        Raises:
            ValueError: for another `output_fmt`, or a scale that has been pruned.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt}")
        take_indices, max_index = self._taken(indices)
        early = stop_early and (self.parallel_blocks is None or max_index == 0)
        xs, sizes = self._scales(x, max_index + 1 if early else 4)
        maps: list[torch.Tensor] = []
        for i in range(len(xs)):
            if i in take_indices:
                maps.append(_map(self._norm(xs[i], i) if norm else xs[i], sizes[i]))
        if intermediates_only:
            return maps
        return self._last(xs), maps

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drops the scales behind the last of `indices`, and the classifier; returns the indices as a list.

        Parallel blocks need all scales: but for the first scale alone only the last of them loses the MLPs that none of
        `indices` asks for, together with the classifier.

        Raises:
            ValueError: for a scale that has been pruned before.
        """
        take_indices, max_index = self._taken(indices)
        shortened = max_index < 3 and (self.parallel_blocks is None or max_index == 0)
        if shortened:
            self.parallel_blocks = None
            for i in range(max_index + 2, 5):
                for name in ("patch_embed", "cls_token", "cpe", "crpe", "serial_blocks"):
                    setattr(self, f"{name}{i}", None)
            self.num_features = self.head_hidden_size = self.feature_info[max_index]["num_chs"]
            self.whole_scales = [i for i in self.whole_scales if i <= max_index]
        if prune_norm or shortened:
            for name in ("norm2", "norm3", "norm4"):
                if getattr(self, name) is not None:
                    setattr(self, name, nn.Identity())
        if prune_head or shortened:
            self.aggregate = None
            self.reset_classifier(0)
            if self.parallel_blocks is not None:
                cast(ParallelBlock, self.parallel_blocks[-1]).prune([i + 1 for i in take_indices])
                # Parallel blocks pass the first scale through.
                self.whole_scales = sorted({0, *take_indices})
        return take_indices

    def forward_head(self, x: torch.Tensor | list[torch.Tensor], pre_logits: bool = False) -> torch.Tensor:
        """Tokens (B, 1 + h * w, C), or a list of three -> (B, num_classes), or (B, C) before the classifier."""
        if isinstance(x, list):
            if self.aggregate is None:
                raise RuntimeError("the part of the classifier that joins the scales has been cut off")
            pooled = self.aggregate(torch.stack([self._pool(scale) for scale in x], dim=1)).squeeze(1)
        else:
            pooled = self._pool(x)
        pooled = self.head_drop(pooled)
        return pooled if pre_logits else self.head(pooled)

    def _pool(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 1:].mean(1) if self.global_pool == "avg" else x[:, 0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) -> (B, num_classes)."""
        features = self.forward_features(x)
        if not torch.jit.is_scripting() and self.return_interm_layers:
            return features  # type: ignore[return-value]
        return self.forward_head(features)


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Fits a published checkpoint (classifier or detector) to timm's layout, which is ours; returns ours untouched.

    Published checkpoints have norms that are never used. Layers shared between blocks stand under several names; one
    is enough.
    """
    state_dict, dense = trunk_of(state_dict)
    if state_dict.keys() == model.state_dict().keys():
        return state_dict
    # Below `backbone.`, Detectron2 puts `bottom_up.backbone.` and Deformable DETR `0.backbone.`.
    prefix = next((key.removesuffix("cls_token1") for key in state_dict if key.endswith("cls_token1")), "")
    dense = dense or prefix != ""
    out = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    own = model.state_dict().keys()
    unused = re.compile(r"norm[1-4]\.|aggregate\.|head\.")
    out = {key: value for key, value in out.items() if key in own or not unused.match(key)}
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for shared in names.values():
        found = [out[name] for name in shared if name in out]
        if found:
            out = {**dict.fromkeys(shared, found[0]), **out}
    return keep_classifier(out, model, ("norm", "aggregate.", "head.")) if dense else out


# The authors' ImageNet-1k top-1.
_TOP1 = {
    "coat_tiny": 78.3,
    "coat_mini": 81.0,
    "coat_small": 82.1,
    "coat_lite_tiny": 77.5,
    "coat_lite_mini": 79.1,
    "coat_lite_small": 81.9,
    "coat_lite_medium": 83.6,
    "coat_lite_medium_384": 84.5,
}


def _check_timm() -> None:
    """Whether timm's CoaT is still the one that this file stands in for.

    Raises:
        TimmChangedError: if it is not.
    """
    ours = inspect.signature(CoaT.__init__).parameters.keys()
    if ours != _TIMMS_ARGUMENTS:
        raise TimmChangedError(f"timm's CoaT takes other arguments: {', '.join(sorted(ours ^ _TIMMS_ARGUMENTS))}")
    missing = [name for name in _TOP1 if name not in _TIMMS_CFGS]
    if missing:
        raise TimmChangedError(f"timm has no more {', '.join(missing)}")
    new = sorted(_TIMMS_CFGS.keys() - _TOP1.keys())
    if new:
        warnings.warn(
            f"timm has models of CoaT that attnzoo does not know; they stay as timm has them: {', '.join(new)}",
            stacklevel=2,
        )


_check_timm()

default_cfgs = generate_default_cfgs(
    {
        f"{name}.{tag}": replace(
            cfg,
            fixed_input_size=False,
            origin_url="https://github.com/mlpc-ucsd/CoaT",
            paper_name="Co-Scale Conv-Attentional Image Transformers",
            paper_ids="arXiv:2104.06399",
            notes=(f"ImageNet-1k top-1 {_TOP1[name]} (authors' figure).",),
        )
        for name in _TOP1
        for tag, cfg in _TIMMS_CFGS[name].cfgs.items()
    }
)

_FACTS = Facts(CoaT, checkpoint_filter_fn, levels=4, feature_cfg=dict(feature_cls="getter"))
_CHECKS = (Check("timm's own class at its image size", "tests/backbones/test_coat.py::test_equals_timms_at_its_size"),)

with warnings.catch_warnings():
    # In place of timm's.
    warnings.filterwarnings("ignore", message="Overwriting coat_")
    register(
        __name__,
        _FACTS,
        {
            "coat_tiny": Variant(
                "CoaT-Tiny, 5.5 M parameters.",
                dict(patch_size=4, embed_dims=(152, 152, 152, 152), serial_depths=(2, 2, 2, 2), parallel_depth=6),
                golden=("coat_tiny",),
            ),
            "coat_mini": Variant(
                "CoaT-Mini, 10.3 M parameters.",
                dict(patch_size=4, embed_dims=(152, 216, 216, 216), serial_depths=(2, 2, 2, 2), parallel_depth=6),
            ),
            "coat_small": Variant(
                "CoaT-Small, 21.7 M parameters.",
                dict(patch_size=4, embed_dims=(152, 320, 320, 320), serial_depths=(2, 2, 2, 2), parallel_depth=6),
            ),
        },
        checks=_CHECKS,
    )
    register(
        __name__,
        _FACTS,
        {
            "coat_lite_tiny": Variant(
                "CoaT-Lite Tiny, 5.7 M parameters.",
                dict(patch_size=4, embed_dims=(64, 128, 256, 320), serial_depths=(2, 2, 2, 2), mlp_ratios=(8, 8, 4, 4)),
                golden=("coat_lite_tiny",),
            ),
            "coat_lite_mini": Variant(
                "CoaT-Lite Mini, 11.0 M parameters.",
                dict(patch_size=4, embed_dims=(64, 128, 320, 512), serial_depths=(2, 2, 2, 2), mlp_ratios=(8, 8, 4, 4)),
            ),
            "coat_lite_small": Variant(
                "CoaT-Lite Small, 19.8 M parameters.",
                dict(patch_size=4, embed_dims=(64, 128, 320, 512), serial_depths=(3, 4, 6, 3), mlp_ratios=(8, 8, 4, 4)),
            ),
            "coat_lite_medium": Variant(
                "CoaT-Lite Medium, 44.6 M parameters.",
                dict(patch_size=4, embed_dims=(128, 256, 320, 512), serial_depths=(3, 6, 10, 8)),
            ),
            "coat_lite_medium_384": Variant(
                "CoaT-Lite Medium fine-tuned at 384 x 384, 44.6 M parameters.",
                dict(patch_size=4, embed_dims=(128, 256, 320, 512), serial_depths=(3, 6, 10, 8)),
            ),
        },
        checks=_CHECKS,
    )
