"""The one adapter between timm models and the mm libraries."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.model import BaseModule
from timm.layers import LayerNorm2d
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...backbones import attach
from ...backbones.checkpoints import CheckpointError, check_weights
from ...backbones.checkpoints.conversion import STAGE_NORMS, unwrapped
from ...backbones.contract.facts import convert_checkpoint, stage_norm_prefix
from ..arguments import check_bool, check_int, check_ints, check_number
from .checkpoints import pretrained, read_state_dict
from .registry import MODELS
from .timm_models import create_model, drop_head, is_classifier, levels_of, recompute

# Strides of the levels that detectors and segmentors expect.
_PYRAMID = (4, 8, 16, 32)


@MODELS.register_module()
class Backbone(BaseModule):
    """Any timm model, attnzoo's or timm's own, as a backbone of mmdet and mmseg.

    The model is the one that `timm.create_model(model_name, features_only=True, feature_cls="getter")` wraps: cut after
    the last level asked for, without classifier and final norm, and read by `forward_intermediates`. It is held without
    timm's wrapper, so that parameter names are `model.` and timm's own, and the model's `group_matcher` and checkpoint
    filter apply unchanged.

    Args:
        model_name: Name of a timm model, with or without a pretrained tag.
        out_indices: Levels to return, in increasing order; negative ones count from the end. They are positions in the
            model's `feature_info`. None, the default, is what heads for pyramids want: the last level of each stride
            4, 8, 16 and 32 that the model has (0 to 3 for most; timm's ResNets have a level of stride 2 at 0, so that
            C2 to C5 are `(1, 2, 3, 4)`). Of a plain model, all of whose levels have one stride (ViT, DeiT), None is
            the last map, behind all blocks. There a level is a block: `(0, 1, 2, 3)` would cut a ViT to its first four.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages: their parameters get no
            gradient and their modules stay in evaluation mode. Stages are the levels of stride 4 and more up to the
            last one returned (of a plain model its blocks); the stem is all that comes before them, by the depth that
            the model's `group_matcher(coarse=True)` gives to each parameter. The stage norms below are never frozen.
        norm_eval: Keep batch norm in evaluation mode while training; its affine parameters still learn.
        stage_norms: `"layernorm2d"` puts a LayerNorm over channels (eps 1e-6) behind each returned level, as the
            published dense recipes of BiFormer do; the map that goes on to the next stage is not touched. Other recipes
            say more: `dict(type="layernorm2d", eps=1e-5, levels=(1, 2, 3))` is LITv2's for detection; `levels` are
            all that are returned if left out.
        attention: Plug-in attention behind stages, e.g. `dict(type="ela", stages=(2, 3, 4))`: `type` is a name of
            `attnzoo.backbones.modules`, `stages` are levels, counted as `out_indices` are (all stages if left out), the
            rest goes to `attnzoo.attach`. Its parameters are never frozen, and keep their initial values when a
            checkpoint without any is loaded.
        drop_path_rate: Stochastic depth; the model's own default if None.
        with_cp: Recompute activations in the backward pass to save memory.
        init_cfg: None, or `dict(type="Pretrained", checkpoint=path)`, where wanted with `prefix` and `map_location`, to
            load weights in `init_weights`; see `load_checkpoint`.
        **model_kwargs: Passed to `timm.create_model`, e.g. `depths`, `in_chans`, or what frees the image size of timm's
            models that are bound to one: `strict_img_size=False` for Swin, `dynamic_img_size=True` for plain ViTs, with
            `dynamic_img_pad=True` beside it for sides that are no multiples of the patch. Not `features_only` and
            `checkpoint_path`, in whose place stand this class and `init_cfg`.

    Attributes:
        out_indices: Levels returned, none negative.
        channels: Channels of each returned level.
        strides: Stride in pixels of each returned level.
        attention_keys: Names of the plug-in attention's tensors in the state dict of `model`.

    Raises:
        ValueError: An unknown `model_name`, a model without levels that the default of `out_indices` could choose, or a
            value of `out_indices`, `frozen_stages`, `stage_norms`, `attention`, `drop_path_rate`, `with_cp`, `init_cfg`
            or `model_kwargs` that this model does not allow.
        TypeError: An argument of another type, or one of `model_kwargs` that the model does not take.

    Example:
        >>> import torch
        >>> backbone = Backbone("pvt_v2_b0", out_indices=(1, 2, 3))
        >>> backbone.channels, backbone.strides
        ((64, 160, 256), (8, 16, 32))
        >>> [tuple(level.shape) for level in backbone(torch.rand(1, 3, 64, 96))]
        [(1, 64, 8, 12), (1, 160, 4, 6), (1, 256, 2, 3)]
    """

    def __init__(
        self,
        model_name: str,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        stage_norms: str | dict | None = None,
        attention: dict | None = None,
        drop_path_rate: float | None = None,
        with_cp: bool = False,
        init_cfg: dict | None = None,
        **model_kwargs: Any,
    ) -> None:
        super().__init__(init_cfg)
        if init_cfg is not None:
            pretrained(init_cfg)
        check_int("frozen_stages", frozen_stages)
        check_bool("norm_eval", norm_eval)
        check_bool("with_cp", with_cp)
        if drop_path_rate is not None:
            check_number("drop_path_rate", drop_path_rate, 0, 1)
        for key in ("features_only", "checkpoint_path"):
            if key in model_kwargs:
                raise ValueError(
                    f"{key}={model_kwargs[key]!r}: not taken; maps come from out_indices, weights from init_cfg"
                )
        if not isinstance(model_kwargs.get("pretrained", False), bool):
            raise ValueError(
                f"pretrained={model_kwargs['pretrained']!r}: allowed are False and True (timm's own weights); a base "
                "config of mmseg hands this on from its model: set model=dict(pretrained=None) and use init_cfg"
            )
        self.model_name = model_name
        self.model_kwargs = dict(model_kwargs, drop_path_rate=drop_path_rate)
        self.norm_eval = norm_eval

        self.model = create_model(model_name, **self.model_kwargs)
        levels = levels_of(model_name, self.model)
        if out_indices is None:
            self.out_indices = _default_out_indices(model_name, [level["reduction"] for level in levels])
        else:
            self.out_indices = _checked_out_indices(model_name, out_indices, len(levels))
        try:
            self.model.prune_intermediate_layers(list(self.out_indices), prune_norm=True)
        except AssertionError as error:
            raise ValueError(f"model_name={model_name!r}: cannot be cut to its levels: {error}") from error
        drop_head(self.model)
        self.channels: tuple[int, ...] = tuple(levels[i]["num_chs"] for i in self.out_indices)
        self.strides: tuple[int, ...] = tuple(levels[i]["reduction"] for i in self.out_indices)
        eps, normed = _checked_stage_norms(stage_norms, self.out_indices)
        self.extra_norms = nn.ModuleDict({str(i): LayerNorm2d(levels[i]["num_chs"], eps=eps) for i in normed})
        self.attention_keys = self._attach(attention)
        if with_cp:
            recompute(model_name, self.model)

        stages = [level["module"] for level in levels[: self.out_indices[-1] + 1] if level["reduction"] >= 4]
        self._frozen_modules = self._freeze(frozen_stages, stages)
        self.train()

    def _attach(self, attention: dict | None) -> set[str]:
        """Put plug-in attention into the model; returns the names in its state dict."""
        if attention is None:
            return set()
        if not isinstance(attention, dict):
            raise TypeError(f"attention={attention!r}: must be None or a dict, got {type(attention).__name__}")
        options = dict(attention)
        if not isinstance(options.get("type"), str) or "where" in options:
            raise ValueError(f"attention={attention}: needs a type, and takes its places from stages")
        kind, stages = options.pop("type"), options.pop("stages", "stages")
        if stages != "stages":
            stages = check_ints("attention.stages", stages)
            if len(set(stages)) != len(stages):
                raise ValueError(f"attention.stages={stages}: names a level twice")
        check_bool("attention.identity", options.get("identity", True))
        before = self.model.state_dict().keys()
        try:
            attach(self.model, kind, where=stages, **options)
        except TypeError as error:
            raise TypeError(f"attention={attention}: {error}") from error
        except ValueError as error:
            raise ValueError(f"attention={attention}: {error}") from error
        return self.model.state_dict().keys() - before

    def _freeze(self, frozen_stages: int, stages: list[str]) -> list[str]:
        """Take the gradient from stem and stages; returns the names of the modules that are frozen as a whole."""
        if not -1 <= frozen_stages <= len(stages):
            raise ValueError(
                f"frozen_stages={frozen_stages}: allowed are -1 (nothing), 0 (the stem) to {len(stages)} (all stages "
                f"of {self.model_name!r} up to level {self.out_indices[-1]})"
            )
        if frozen_stages == -1:
            return []
        depths = group_parameters(self.model, self.model.group_matcher(coarse=True), reverse=True)
        stage = stages[max(frozen_stages, 1) - 1]
        # Part of a stage may count as stem (its patch embedding): the stage itself is where it is deepest.
        inside = [depth for name, depth in depths.items() if name.startswith(f"{stage}.")]
        if not inside:
            raise ValueError(f"frozen_stages={frozen_stages}: {self.model_name!r} has no parameters in {stage!r}")
        limit = max(inside)
        if frozen_stages == 0:
            limit -= 1
        frozen = {name for name, depth in depths.items() if depth <= limit} - self.attention_keys
        for name in frozen:
            self.model.get_parameter(name).requires_grad_(False)
        parameters = {name: [n for n in depths if n.startswith(f"{name}.")] for name, _ in self.model.named_modules()}
        return [name for name, inside in parameters.items() if inside and frozen.issuperset(inside)]

    def train(self, mode: bool = True) -> "Backbone":
        """Set the mode of all modules but the frozen ones and, with `norm_eval`, batch norm."""
        super().train(mode)
        for name in self._frozen_modules:
            self.model.get_submodule(name).eval()
        if self.norm_eval:
            for module in self.model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps.

        Args:
            x: Images (B, 3, H, W).

        Returns:
            One map (B, C, H / stride, W / stride) for each of `out_indices`.
        """
        maps = self.model.forward_intermediates(
            x, indices=list(self.out_indices), output_fmt="NCHW", intermediates_only=True
        )
        return tuple(
            self.extra_norms[str(i)](level) if str(i) in self.extra_norms else level
            for i, level in zip(self.out_indices, maps, strict=True)
        )

    def init_weights(self) -> None:
        """Load the checkpoint that `init_cfg` names; timm models initialise themselves when they are made."""
        if self.init_cfg:
            options = pretrained(self.init_cfg)
            self.load_checkpoint(options.pop("checkpoint"), **options)
        self.is_init = True

    def load_checkpoint(self, path: str | Path, prefix: str | None = None, map_location: Any = "cpu") -> None:
        """Load weights of a classifier, detector or segmentor.

        The checkpoint may have the original repository's layout, timm's, or be one that was trained with this adapter.
        The model's own `checkpoint_filter_fn` translates it. Left out are the classifier and what this backbone has cut
        off (the final norm, stages after the last level). Stage norms (`extra_norms.i`) are loaded where the checkpoint
        has them and keep their initial values where it has none.

        Args:
            path: A file of `torch.save` or safetensors, or its address (http or https).
            prefix: Take the tensors below it alone; without, `backbone.` where there are such.
            map_location: As of `torch.load`.

        Raises:
            FileNotFoundError: No such file.
            RuntimeError: It is no checkpoint, or keys are missing, unexpected or of another shape (they are named), or
                a tensor is of another kind of number or not finite.
        """
        try:
            state, _, _ = unwrapped(read_state_dict(path, prefix, map_location))
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error
        state = dict(state)
        whole = create_model(self.model_name, **{**self.model_kwargs, "pretrained": False})
        norms = {}
        for name in {STAGE_NORMS, stage_norm_prefix(whole)}:
            for key in [key for key in state if re.fullmatch(rf"{re.escape(name)}\d+\.(weight|bias)", key)]:
                norms[f"extra_norms.{key.removeprefix(name)}"] = state.pop(key)

        attention = {key: state.pop(key) for key in self.attention_keys & state.keys()}
        if not attention:
            attention = {key: value for key, value in self.model.state_dict().items() if key in self.attention_keys}

        state = convert_checkpoint(state, whole)
        kept = self.model.state_dict().keys()
        cut_off = whole.state_dict().keys() - kept
        state = {key: value for key, value in state.items() if key not in cut_off and not is_classifier(whole, key)}
        state = {f"model.{key}": value for key, value in {**state, **attention}.items()}

        if norms and not self.extra_norms:
            raise RuntimeError(f"{path}: has stage norms ({', '.join(norms)}); set stage_norms='layernorm2d'")
        if norms:
            cut_off_norms = {key for key in norms if int(key.split(".")[1]) not in self.out_indices}
            state.update({key: value for key, value in norms.items() if key not in cut_off_norms})
        else:
            state.update({f"extra_norms.{key}": value for key, value in self.extra_norms.state_dict().items()})
        try:
            check_weights(state, self)
            self.load_state_dict(state)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
        except RuntimeError as error:
            raise RuntimeError(f"{path}: no checkpoint of {self.model_name!r} with these arguments: {error}") from error


def _default_out_indices(model_name: str, strides: list[int]) -> tuple[int, ...]:
    """The last level of each of the strides of a pyramid, or the last level of a plain model."""
    if len(set(strides)) == 1:
        return (len(strides) - 1,)
    last = {stride: i for i, stride in enumerate(strides)}
    chosen = tuple(sorted(last[stride] for stride in _PYRAMID if stride in last))
    if not chosen:
        raise ValueError(
            f"model_name={model_name!r}: its levels have strides {tuple(strides)}, none of {_PYRAMID}; "
            f"choose levels from 0 to {len(strides) - 1} by out_indices"
        )
    return chosen


def _checked_out_indices(model_name: str, out_indices: Any, num_levels: int) -> tuple[int, ...]:
    """`out_indices` counted from the start, if they are levels of the model in increasing order."""
    indices = tuple(i + num_levels if i < 0 else i for i in check_ints("out_indices", out_indices))
    if not indices or any(not 0 <= i < num_levels for i in indices) or list(indices) != sorted(set(indices)):
        raise ValueError(
            f"out_indices={tuple(out_indices)}: {model_name!r} has {num_levels} levels, "
            f"so increasing indices from 0 to {num_levels - 1} are allowed"
        )
    return indices


def _checked_stage_norms(stage_norms: Any, out_indices: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
    """Eps of the stage norms and the levels that have one."""
    if stage_norms is None:
        return 0.0, ()
    if not isinstance(stage_norms, str | dict):
        raise TypeError(
            f"stage_norms={stage_norms!r}: must be None, a string or a dict, got {type(stage_norms).__name__}"
        )
    options: dict[str, Any] = {"type": stage_norms} if isinstance(stage_norms, str) else dict(stage_norms)
    kind = options.pop("type", None)
    eps = check_number("stage_norms.eps", options.pop("eps", 1e-6), 0, above=True)
    levels = check_ints("stage_norms.levels", options.pop("levels", out_indices))
    if kind != "layernorm2d" or options or len(set(levels)) != len(levels) or not set(levels) <= set(out_indices):
        raise ValueError(
            f"stage_norms={stage_norms!r}: allowed are None, 'layernorm2d' and dict(type='layernorm2d', eps=..., "
            f"levels=...) with levels among {out_indices}, each once"
        )
    return eps, levels
