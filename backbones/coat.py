"""CoaT: timm's models of this name, made ready for dense prediction and faster.

Co-Scale Conv-Attentional Image Transformers, https://arxiv.org/abs/2104.06399, https://github.com/mlpc-ucsd/CoaT
(Apache-2.0).

Importing attnzoo registers these models under timm's own names, `coat_*`, in place of timm's; `timm.models.coat` keeps
the originals. Parameters, their names, configurations and hub weights are timm's, and at timm's input size so are the
outputs. Different are the sizes (any from 32 pixels up; timm's models are bound to `img_size`, those with parallel
blocks to multiples of 32 as well), gradient checkpointing (timm's have none), and what a checkpoint may look like.

Any size is taken as the published code takes it: every scale floors, and the cross-scale resizing of the parallel
blocks goes to explicit sizes. The published detection code takes the four maps of `features_only=True`, strides 4 to
32: after the parallel blocks, without class token and without a norm.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm import layers
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models import coat as original
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint
from torch import nn

from ._checkpoint import keep_classifier, trunk_of
from ._layers import DepthwiseConv2d, pad_to_least

__all__ = ["CoaT"]


class PatchEmbed(layers.PatchEmbed):
    """Convolution of adjoining patches and a norm; what does not fill a patch is left out, but for the first."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, h, w, D), h and w at least 1."""
        return self.norm(self.proj(pad_to_least(x, self.patch_size[0])).permute(0, 2, 3, 1))


class ConvPosEnc(original.ConvPosEnc):
    """Depth-wise convolution of the map, with a shortcut, past the class token."""

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """(B, 1 + H * W, C) -> the same."""
        image = _map(x, size)
        return _tokens(x[:, :1], (image + self.proj(image)).permute(0, 2, 3, 1))


class FactorAttention(original.FactorAttnConvRelPosEnc):
    """Factorised attention with a convolutional relative position encoding (section 3 of the paper)."""

    # TorchScript takes an annotation of a submodule for an interface.
    if TYPE_CHECKING:
        crpe: original.ConvRelPosEnc

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """(B, 1 + H * W, C) -> the same."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        keys = k.softmax(dim=1).unflatten(-1, (self.num_heads, -1)).permute(0, 2, 3, 1)
        context = self.scale * (keys @ v.unflatten(-1, (self.num_heads, -1)).transpose(1, 2))
        out = (q.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) @ context).transpose(1, 2).flatten(2)
        parts = _map(v, size).split(self.crpe.channel_splits, dim=1)
        local: list[torch.Tensor] = []
        for i, conv in enumerate(self.crpe.conv_list):
            local.append(conv(parts[i]))
        # The class token has no place and so no relative position.
        image = torch.addcmul(out[:, 1:], q[:, 1:], torch.cat(local, dim=1).flatten(2).transpose(1, 2))
        return self.proj_drop(self.proj(torch.cat((out[:, :1], image), dim=1)))


class SerialBlock(original.SerialBlock):
    """Position encoding, attention and MLP at one scale."""

    grad_checkpointing: bool

    if TYPE_CHECKING:
        cpe: ConvPosEnc

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """(B, 1 + H * W, C) -> the same."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint(self._forward, x, size)
        return self._forward(x, size)

    def _forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        x = self.cpe(x, size)
        x = x + self.drop_path(self.factoratt_crpe(self.norm1(x), size))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ParallelBlock(original.ParallelBlock):
    """Attention and MLP at scales 2 to 4 at once; each gets the attention of the others too, resized to its size."""

    grad_checkpointing: bool

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
        x2 = x2 + self.drop_path(self.mlp2(self.norm22(x2)))
        x3 = x3 + self.drop_path(self.mlp3(self.norm23(x3)))
        x4 = x4 + self.drop_path(self.mlp4(self.norm24(x4)))
        return x2, x3, x4


def _tokens(token: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Class tokens, (B or 1, 1, C), and map, (B, H, W, C), as tokens (B, 1 + H * W, C)."""
    return torch.cat((token.expand(image.shape[0], -1, -1), image.flatten(1, 2)), dim=1)


def _map(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Tokens (B, 1 + H * W, C) as a map (B, C, H, W), a view."""
    return x[:, 1:].unflatten(1, (size[0], size[1])).permute(0, 3, 1, 2)


def _resize(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(x, [size[0], size[1]], mode="bilinear", align_corners=False)


_OURS = {
    layers.PatchEmbed: PatchEmbed,
    original.ConvPosEnc: ConvPosEnc,
    original.FactorAttnConvRelPosEnc: FactorAttention,
    original.SerialBlock: SerialBlock,
    original.ParallelBlock: ParallelBlock,
}


class CoaT(original.CoaT):
    """CoaT, or CoaT-Lite where `parallel_depth` is 0.

    Args:
        **kwargs: of timm's `CoaT`. `img_size` binds nothing here.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        # timm's layers keep their parameters and get our way of computing.
        for module in self.modules():
            module.__class__ = _OURS.get(type(module), type(module))
            if isinstance(module, original.ConvRelPosEnc):
                for conv in module.conv_list:
                    conv.__class__ = DepthwiseConv2d
        self.set_grad_checkpointing(False)

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
            return super().group_matcher()
        scales = [(rf"^(?:patch_embed|cls_token|cpe|crpe|serial_blocks){i}\b", (i,)) for i in (1, 2, 3, 4)]
        return dict(blocks=[*scales, (r"^parallel_blocks", (5,)), (r"^(?:norm|aggregate)", (99999,))])

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
        """What the head takes: tokens of the last scale, or of the last three behind parallel blocks."""
        if len(xs) < 4:
            return xs[-1]
        if self.parallel_blocks is not None:
            return [self._norm(xs[1], 1), self._norm(xs[2], 2), self._norm(xs[3], 3)]
        return self._norm(xs[3], 3)

    def _named_maps(self, xs: list[torch.Tensor], sizes: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
        """The maps that timm's `return_interm_layers` and `out_features` ask for."""
        maps = {f"x{i + 1}_nocls": _map(x, size) for i, (x, size) in enumerate(zip(xs, sizes, strict=True))}
        return {name: x for name, x in maps.items() if name in (self.out_features or ())}

    def forward_features(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """(B, in_chans, H, W) -> tokens (B, 1 + h * w, C), a list of three behind parallel blocks."""
        xs, sizes = self._scales(x, 4)
        if not torch.jit.is_scripting() and self.return_interm_layers:
            return self._named_maps(xs, sizes)  # type: ignore[return-value]
        return self._last(xs)

    # timm's annotation leaves out the list that its parallel models return.
    def forward_intermediates(  # type: ignore[override]
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
            indices: the last n scales if an int, all if None, else the scales listed.
            norm: apply the final norms of the scales that have one.
            stop_early: stop after the last scale that is asked for; parallel blocks need all but the first.
            output_fmt: `"NCHW"`.
            intermediates_only: return the list alone.

        Raises:
            ValueError: for another `output_fmt`.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt}")
        take_indices, max_index = feature_take_indices(4, indices)
        early = stop_early and (self.parallel_blocks is None or max_index == 0)
        xs, sizes = self._scales(x, max_index + 1 if early else 4)
        maps: list[torch.Tensor] = []
        for i in range(len(xs)):
            if i in take_indices:
                maps.append(_map(self._norm(xs[i], i) if norm else xs[i], sizes[i]))
        if intermediates_only:
            return maps
        return self._last(xs), maps


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
    out = original.checkpoint_filter_fn(out, model)
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for shared in names.values():
        found = [out[name] for name in shared if name in out]
        if found:
            out = {**dict.fromkeys(shared, found[0]), **out}
    return keep_classifier(out, model, ("norm", "aggregate.", "head.")) if dense else out


def _create_coat(variant: str, pretrained: bool = False, **kwargs) -> CoaT:
    out_indices = kwargs.pop("out_indices", (0, 1, 2, 3))
    return build_model_with_cfg(
        CoaT,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=out_indices, feature_cls="getter"),
        **kwargs,
    )


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
        for name, cfgs in original.default_cfgs.items()
        for tag, cfg in cfgs.cfgs.items()
    }
)


def _register_in_place_of_timms(create: Callable[..., CoaT]) -> Callable[..., CoaT]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=f"Overwriting {create.__name__} in registry")
        return register_model(create)


@_register_in_place_of_timms
def coat_tiny(pretrained: bool = False, **kwargs) -> CoaT:
    """CoaT-Tiny, 5.5 M parameters."""
    args = dict(patch_size=4, embed_dims=(152, 152, 152, 152), serial_depths=(2, 2, 2, 2), parallel_depth=6)
    return _create_coat("coat_tiny", pretrained, **{**args, **kwargs})


@_register_in_place_of_timms
def coat_mini(pretrained: bool = False, **kwargs) -> CoaT:
    """CoaT-Mini, 10.3 M parameters."""
    args = dict(patch_size=4, embed_dims=(152, 216, 216, 216), serial_depths=(2, 2, 2, 2), parallel_depth=6)
    return _create_coat("coat_mini", pretrained, **{**args, **kwargs})


@_register_in_place_of_timms
def coat_small(pretrained: bool = False, **kwargs) -> CoaT:
    """CoaT-Small, 21.7 M parameters."""
    args = dict(patch_size=4, embed_dims=(152, 320, 320, 320), serial_depths=(2, 2, 2, 2), parallel_depth=6)
    return _create_coat("coat_small", pretrained, **{**args, **kwargs})


@_register_in_place_of_timms
def coat_lite_tiny(pretrained: bool = False, **kwargs) -> CoaT:
    """CoaT-Lite Tiny, 5.7 M parameters."""
    args = dict(patch_size=4, embed_dims=(64, 128, 256, 320), serial_depths=(2, 2, 2, 2), mlp_ratios=(8, 8, 4, 4))
    return _create_coat("coat_lite_tiny", pretrained, **{**args, **kwargs})


@_register_in_place_of_timms
def coat_lite_mini(pretrained: bool = False, **kwargs) -> CoaT:
    """CoaT-Lite Mini, 11.0 M parameters."""
    args = dict(patch_size=4, embed_dims=(64, 128, 320, 512), serial_depths=(2, 2, 2, 2), mlp_ratios=(8, 8, 4, 4))
    return _create_coat("coat_lite_mini", pretrained, **{**args, **kwargs})


@_register_in_place_of_timms
def coat_lite_small(pretrained: bool = False, **kwargs) -> CoaT:
    """CoaT-Lite Small, 19.8 M parameters."""
    args = dict(patch_size=4, embed_dims=(64, 128, 320, 512), serial_depths=(3, 4, 6, 3), mlp_ratios=(8, 8, 4, 4))
    return _create_coat("coat_lite_small", pretrained, **{**args, **kwargs})


@_register_in_place_of_timms
def coat_lite_medium(pretrained: bool = False, **kwargs) -> CoaT:
    """CoaT-Lite Medium, 44.6 M parameters."""
    args = dict(patch_size=4, embed_dims=(128, 256, 320, 512), serial_depths=(3, 6, 10, 8))
    return _create_coat("coat_lite_medium", pretrained, **{**args, **kwargs})


@_register_in_place_of_timms
def coat_lite_medium_384(pretrained: bool = False, **kwargs) -> CoaT:
    """CoaT-Lite Medium fine-tuned at 384 x 384, 44.6 M parameters."""
    args = dict(patch_size=4, embed_dims=(128, 256, 320, 512), serial_depths=(3, 6, 10, 8))
    return _create_coat("coat_lite_medium_384", pretrained, **{**args, **kwargs})
