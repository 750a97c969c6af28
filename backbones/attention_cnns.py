"""ResNets and MobileNetV2 with plug-in attention, as published; the bodies are timm's.

CBAM, https://arxiv.org/abs/1807.06521, and BAM, https://arxiv.org/abs/1807.06514,
https://github.com/Jongchan/attention-module (MIT); triplet attention, https://arxiv.org/abs/2010.03045,
https://github.com/landskape-ai/triplet-attention (MIT); ELA, https://arxiv.org/abs/2403.01123 (no public code).

Where the modules stand:
- ResNets: behind the last batch norm of every block and before the shortcut; BAM instead between the stages, at the
  beginning of stages 2 to 4, so that a stage's map is the one of the published `layer1` to `layer4`, before BAM.
- MobileNetV2 with triplet attention: behind the last batch norm of every block, as published. With CBAM and ELA, for
  which nothing is published: behind the depth-wise convolution, on the expanded channels, where the paper of coordinate
  attention (arXiv 2103.02907) puts the modules that it compares; CBAM with a reduction of 24, which gives its 3.89 M
  parameters, and with 8 hidden units at least.
- ELA is ELA-B everywhere: ELA-T's 32 norm groups do not divide MobileNetV2's channels.

The published ResNets pool the last map with a 7x7 window, which sees but a corner of images above 224 pixels and fails
below; timm's pool globally, equal at 224. Weights begin as timm's ResNets do: `zero_init_last` starts the last batch
norm of a block at zero and those of the spatial gates as well; the published code does the latter alone.
The detectron2 layout of the triplet repository (`res2.0.conv1.norm`) is not read.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from timm.models import generate_default_cfgs
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from .bodies.pyramid import ROUNDED_UP
from .checkpoints.conversion import converted, renamed
from .contract.arguments import check_integers, check_pool, check_rates, check_stages
from .contract.facts import Check, Facts, Variant
from .contract.registration import imagenet_cfg, register
from .modules import BAM, CBAM, ELA, TripletAttention, own_names
from .modules.attach import put_into_block

__all__ = ["AttentionMobileNet", "AttentionResNet"]


def _check_format(output_fmt: str) -> None:
    if output_fmt != "NCHW":
        raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")


def _name_sizes(feature_info: list[dict[str, Any]]) -> None:
    """Adds what our other models say of their levels: how an image of n pixels is rounded."""
    for level in feature_info:
        level["size"] = ROUNDED_UP.format(stride=level["reduction"])


def _check_timms(kwargs: dict[str, Any]) -> None:
    """Checks the arguments of timm's classes that timm itself meets with less clear errors, or not at all.

    Raises:
        ValueError: for the first that is not allowed.
    """
    for name in ("drop_rate", "drop_path_rate", "drop_block_rate"):
        check_rates(**{name: 0.0 if kwargs.get(name) is None else kwargs[name]})
    check_integers(in_chans=kwargs.get("in_chans", 3))
    _check_classifier(kwargs.get("num_classes", 1000), kwargs.get("global_pool", "avg"))
    if kwargs.get("output_stride", 32) not in (8, 16, 32):
        raise ValueError(f"output_stride={kwargs['output_stride']!r}: 8, 16 or 32 is needed")


def _check_classifier(num_classes: Any, global_pool: Any) -> None:
    """Checks what timm's classifier, a linear layer behind the pooling, takes."""
    check_integers(least=0, num_classes=num_classes)
    check_pool(global_pool)
    if num_classes > 0 and global_pool == "":
        raise ValueError(f"global_pool='', num_classes={num_classes}: a pooling is needed, or num_classes=0")


class AttentionResNet(ResNet):
    """timm's ResNet, with a module between stages where one is given.

    Args:
        *args: of timm's ResNet.
        stage_attn: called with the channels, makes the module at the beginning of stages 2, 3 and 4; those within the
            blocks are timm's `block_args=dict(attn_layer=...)`.
        **kwargs: of timm's ResNet.
    """

    def __init__(self, *args: Any, stage_attn: Callable[..., nn.Module] | None = None, **kwargs: Any):
        _check_timms(kwargs)
        for name in ("layers", "channels"):
            if kwargs.get(name) is not None:
                check_stages(**{name: kwargs[name]})
                check_integers(tuples=True, **{name: kwargs[name]})
                if len(kwargs[name]) != 4:
                    raise ValueError(f"{name}={kwargs[name]!r}: four entries are needed, one a stage")
        super().__init__(*args, **kwargs)
        _name_sizes(self.feature_info)
        if stage_attn is not None:
            dd = {key: kwargs.get(key) for key in ("device", "dtype")}
            for i in (2, 3, 4):
                blocks = getattr(self, f"layer{i}").named_children()
                stage = nn.Sequential()
                stage.add_module("attn", stage_attn(self.feature_info[i - 1]["num_chs"], **dd))
                for name, block in blocks:
                    stage.add_module(name, block)
                setattr(self, f"layer{i}", stage)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        """Patterns that order the parameters by depth; the module between two stages comes before the blocks."""
        matcher = super().group_matcher(coarse)
        if not coarse:
            matcher["blocks"] = [(matcher["blocks"], None), (r"^layer(\d+)\.attn", (-1,))]
        return matcher

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """timm's, with an error that names what it cannot take; the pooling stays where none is given."""
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        _check_classifier(num_classes, pool)
        super().reset_classifier(num_classes, pool)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """timm's, with an error that names a wrong `output_fmt`."""
        _check_format(output_fmt)
        return super().forward_intermediates(x, indices, norm, stop_early, output_fmt, intermediates_only)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """As in timm's newer versions: drops the stages behind the last of `indices`, and the classifier with them."""
        kept = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if max(kept) < 4:
            _end_at(self, max(kept))
        for name in ("layer1", "layer2", "layer3", "layer4"):
            if isinstance(getattr(self, name), nn.Identity):
                # Gradient checkpointing goes through the blocks of each stage.
                setattr(self, name, nn.Sequential())
        return kept


class AttentionMobileNet(EfficientNet):
    """MobileNetV2 with a module in every block.

    Args:
        attn_layer: called with the channels, makes a module.
        attn_place: `"end"` behind the last batch norm, `"middle"` behind the depth-wise convolution.
        depths: blocks of each of the seven stages.
        **kwargs: of timm's EfficientNet.

    Raises:
        ValueError: for another `attn_place` or other than seven depths.
    """

    def __init__(
        self,
        attn_layer: Callable[..., nn.Module],
        attn_place: str = "end",
        depths: tuple[int, ...] = (1, 2, 3, 4, 3, 3, 1),
        **kwargs: Any,
    ):
        check_stages(depths=depths)
        check_integers(tuples=True, depths=depths)
        if len(depths) != 7:
            raise ValueError(f"depths={depths!r}: seven entries are needed, one a stage")
        if attn_place not in ("end", "middle"):
            raise ValueError(f"attn_place={attn_place!r}: 'end' or 'middle' is needed")
        _check_timms(kwargs)
        first, *rest = depths
        stages = zip(rest, (2, 2, 2, 1, 2, 1), (24, 32, 64, 96, 160, 320), strict=True)
        arch = [[f"ds_r{first}_k3_s1_c16"], *([f"ir_r{n}_k3_s{stride}_e6_c{dim}"] for n, stride, dim in stages)]
        kwargs = {"act_layer": nn.ReLU6, **kwargs}
        super().__init__(block_args=decode_arch_def(arch), **kwargs)
        _name_sizes(self.feature_info)
        dd = {key: kwargs.get(key) for key in ("device", "dtype")}
        for stage in self.blocks:
            for block in cast(nn.Sequential, stage):
                put_into_block(block, partial(attn_layer, **dd), attn_place)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """timm's, with an error that names what it cannot take; the pooling stays where none is given."""
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        _check_classifier(num_classes, pool)
        super().reset_classifier(num_classes, pool)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        extra_blocks: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """timm's, with an error that names a wrong `output_fmt`."""
        _check_format(output_fmt)
        return super().forward_intermediates(x, indices, norm, stop_early, output_fmt, intermediates_only, extra_blocks)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
        extra_blocks: bool = False,
    ) -> list[int]:
        """As in timm's newer versions: what ends at another place than the head has no head."""
        kept = super().prune_intermediate_layers(indices, prune_norm, prune_head, extra_blocks)
        if not extra_blocks and (prune_norm or prune_head or max(kept) < len(self.stage_ends) - 1):
            self.conv_head, self.bn2 = nn.Identity(), nn.Identity()
            _end_at(self, max(kept))
        return kept


def _end_at(model: ResNet | EfficientNet, level: int) -> None:
    """Names the channels of a shortened model's last level as its own, as newer timm does."""
    model.num_features = model.head_hidden_size = model.feature_info[level]["num_chs"]
    model.reset_classifier(0, "")


_RESNET = [(r"\.(cbam|triplet_attention)\.", ".se."), (r"^bam1\.", "layer2.attn.")]
_RESNET += [(r"^bam2\.", "layer3.attn."), (r"^bam3\.", "layer4.attn.")]


def _mobilenet_name(key: str, model: AttentionMobileNet) -> str:
    """Our name of a published parameter of MobileNetV2."""
    blocks = [f"blocks.{i}.{j}." for i, stage in enumerate(model.blocks) for j, _ in enumerate(cast(Any, stage))]
    for pattern, new in (
        (r"^features\.0\.0\.", "conv_stem."),
        (r"^features\.0\.1\.", "bn1."),
        (rf"^features\.{len(blocks) + 1}\.0\.", "conv_head."),
        (rf"^features\.{len(blocks) + 1}\.1\.", "bn2."),
        (r"^classifier\.1\.", "classifier."),
    ):
        key = re.sub(pattern, new, key)
    found = re.match(r"features\.(\d+)\.conv\.(\d+)\.(.*)", key)
    if found is None:
        return key
    number, layer, rest = int(found[1]), int(found[2]), found[3]
    names = ["conv_dw.", "conv_pw.", "bn2.", "bn2.act."]
    norms = ["bn1."]
    if number > 1:
        names = ["conv_pw.", "conv_dw.", "conv_pwl.", "bn3.", "bn3.act."]
        norms = ["bn1.", "bn2."]
    name = names[layer]
    if layer < len(norms):
        part, _, rest = rest.partition(".")
        name = norms[layer] if part == "1" else name
    return blocks[number - 1] + name + rest


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Renames a published checkpoint (classifier or backbone of a detector) to our keys; returns ours untouched."""

    def translate(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if isinstance(model, AttentionMobileNet):
            return own_names({_mobilenet_name(key, model): value for key, value in state_dict.items()}, model)
        return own_names({renamed(key, _RESNET): value for key, value in state_dict.items()}, model)

    own = model.state_dict().keys()
    classifier = ("fc.", "classifier.", "conv_head.", "bn2.")
    return converted(state_dict, model, lambda state: state.keys() <= own, translate, classifier)


_PAPERS = {
    "cbam": {
        "license": "mit",
        "origin_url": "https://github.com/Jongchan/attention-module",
        "paper_name": "CBAM: Convolutional Block Attention Module",
        "paper_ids": "arXiv:1807.06521",
    },
    "bam": {
        "license": "mit",
        "origin_url": "https://github.com/Jongchan/attention-module",
        "paper_name": "BAM: Bottleneck Attention Module",
        "paper_ids": "arXiv:1807.06514",
    },
    "triplet": {
        "license": "mit",
        "origin_url": "https://github.com/landskape-ai/triplet-attention",
        "paper_name": "Rotate to Attend: Convolutional Triplet Attention Module",
        "paper_ids": "arXiv:2010.03045",
    },
    "ela": {
        "license": "apache-2.0",
        "origin_url": "https://arxiv.org/abs/2403.01123",
        "paper_name": "ELA: Efficient Local Attention for Deep Convolutional Neural Networks",
        "paper_ids": "arXiv:2403.01123",
    },
}


def _cfg(module: str, top1: float | None = None, **kwargs: Any) -> dict[str, Any]:
    common = dict(url="", interpolation="bilinear", first_conv="conv1", classifier="fc", **_PAPERS[module])
    return imagenet_cfg(top1, **{**common, **kwargs})


_MOBILE: dict[str, Any] = {"first_conv": "conv_stem", "classifier": "classifier"}

default_cfgs = generate_default_cfgs(
    {
        "resnet18_cbam.in1k": _cfg("cbam"),
        "resnet34_cbam.in1k": _cfg("cbam"),
        "resnet50_cbam.in1k": _cfg("cbam", 77.622),
        "resnet101_cbam.in1k": _cfg("cbam"),
        "resnet18_triplet.in1k": _cfg("triplet", 71.09),
        "resnet34_triplet.in1k": _cfg("triplet"),
        "resnet50_triplet.in1k": _cfg("triplet", 77.48),
        "resnet101_triplet.in1k": _cfg("triplet"),
        "resnet18_ela.untrained": _cfg("ela"),
        "resnet50_ela.untrained": _cfg("ela"),
        "resnet101_ela.untrained": _cfg("ela"),
        "resnet50_bam.in1k": _cfg("bam", 76.86),
        "mobilenetv2_100_cbam.untrained": _cfg("cbam", **_MOBILE),
        "mobilenetv2_100_triplet.in1k": _cfg("triplet", 71.99, **_MOBILE),
        "mobilenetv2_100_ela.untrained": _cfg("ela", **_MOBILE),
    }
)

_RESNET_FACTS = Facts(AttentionResNet, checkpoint_filter_fn, levels=5, feature_cfg={})
_MOBILE_FACTS = Facts(AttentionMobileNet, checkpoint_filter_fn, levels=5)
_MODULES = "tests/backbones/modules/test_modules.py"
_CBAM = Check("the published module (golden file cbam_module)", f"{_MODULES}::test_equals_published_implementation")
_TRIPLET = Check(
    "the published module (golden file triplet_module)", f"{_MODULES}::test_equals_published_implementation"
)
_ELA = Check(
    "the paper's definition of the module (golden file ela_module)", f"{_MODULES}::test_equals_published_implementation"
)
_BAM = Check("the paper's definition of the module", f"{_MODULES}::test_bam_is_the_papers")

register(
    __name__,
    _RESNET_FACTS,
    {
        "resnet18_cbam": Variant(
            "ResNet-18 with CBAM, 11.8 M parameters.",
            dict(block=BasicBlock, layers=(2, 2, 2, 2), block_args=dict(attn_layer=CBAM)),
            golden=("resnet18_cbam",),
        ),
        "resnet34_cbam": Variant(
            "ResNet-34 with CBAM, 22.0 M parameters.",
            dict(block=BasicBlock, layers=(3, 4, 6, 3), block_args=dict(attn_layer=CBAM)),
        ),
        "resnet50_cbam": Variant(
            "ResNet-50 with CBAM, 28.1 M parameters.",
            dict(block=Bottleneck, layers=(3, 4, 6, 3), block_args=dict(attn_layer=CBAM)),
            beyond="timm's bottleneck block",
        ),
        "resnet101_cbam": Variant(
            "ResNet-101 with CBAM, 49.3 M parameters.",
            dict(block=Bottleneck, layers=(3, 4, 23, 3), block_args=dict(attn_layer=CBAM)),
            beyond="timm's bottleneck block",
        ),
    },
    checks=(_CBAM,),
)

register(
    __name__,
    _RESNET_FACTS,
    {
        "resnet18_triplet": Variant(
            "ResNet-18 with triplet attention, 11.7 M parameters; published weights of kernel 3 need `attn_layer`.",
            dict(block=BasicBlock, layers=(2, 2, 2, 2), block_args=dict(attn_layer=TripletAttention)),
            golden=("resnet18_triplet",),
        ),
        "resnet34_triplet": Variant(
            "ResNet-34 with triplet attention, 21.8 M parameters.",
            dict(block=BasicBlock, layers=(3, 4, 6, 3), block_args=dict(attn_layer=TripletAttention)),
        ),
        "resnet50_triplet": Variant(
            "ResNet-50 with triplet attention, 25.6 M parameters; published weights of kernel 3 need `attn_layer`.",
            dict(block=Bottleneck, layers=(3, 4, 6, 3), block_args=dict(attn_layer=TripletAttention)),
            beyond="timm's bottleneck block",
        ),
        "resnet101_triplet": Variant(
            "ResNet-101 with triplet attention, 44.6 M parameters.",
            dict(block=Bottleneck, layers=(3, 4, 23, 3), block_args=dict(attn_layer=TripletAttention)),
            beyond="timm's bottleneck block",
        ),
    },
    checks=(_TRIPLET,),
)

register(
    __name__,
    _RESNET_FACTS,
    {
        "resnet18_ela": Variant(
            "ResNet-18 with ELA-B, 11.7 M parameters.",
            dict(block=BasicBlock, layers=(2, 2, 2, 2), block_args=dict(attn_layer=ELA)),
        ),
        "resnet50_ela": Variant(
            "ResNet-50 with ELA-B, 25.7 M parameters.",
            dict(block=Bottleneck, layers=(3, 4, 6, 3), block_args=dict(attn_layer=ELA)),
        ),
        "resnet101_ela": Variant(
            "ResNet-101 with ELA-B, 44.8 M parameters.",
            dict(block=Bottleneck, layers=(3, 4, 23, 3), block_args=dict(attn_layer=ELA)),
        ),
    },
    checks=(_ELA,),
    no_golden="no public code",
)

register(
    __name__,
    _RESNET_FACTS,
    {
        "resnet50_bam": Variant(
            "ResNet-50 with BAM between its stages, 25.9 M parameters.",
            dict(block=Bottleneck, layers=(3, 4, 6, 3), stage_attn=BAM),
        ),
    },
    checks=(_BAM,),
    no_golden="none was made of the published code",
)

register(
    __name__,
    _MOBILE_FACTS,
    {
        "mobilenetv2_100_cbam": Variant(
            "MobileNetV2 with CBAM, 3.9 M parameters.",
            dict(attn_layer=partial(CBAM, reduction=24, min_hidden=8), attn_place="middle"),
        ),
    },
    checks=(_CBAM,),
    no_golden="nothing is published of this model",
)

register(
    __name__,
    _MOBILE_FACTS,
    {
        "mobilenetv2_100_triplet": Variant(
            "MobileNetV2 with triplet attention, 3.5 M parameters; published weights of kernel 3 need `attn_layer`.",
            dict(attn_layer=TripletAttention, attn_place="end"),
        ),
    },
    checks=(_TRIPLET,),
    no_golden="none was made of the published code",
)

register(
    __name__,
    _MOBILE_FACTS,
    {
        "mobilenetv2_100_ela": Variant(
            "MobileNetV2 with ELA-B, 3.6 M parameters.", dict(attn_layer=ELA, attn_place="middle")
        ),
    },
    checks=(_ELA,),
    no_golden="no public code",
)
