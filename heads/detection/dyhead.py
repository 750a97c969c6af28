"""The dynamic head as it was published."""

import re
from collections.abc import Sequence
from itertools import pairwise

import torch
from mmcv.ops import ModulatedDeformConv2d
from mmdet.models.necks import DyHead as MMDetDyHead
from torch import Tensor

from ..arguments import check_int
from ..mm.published import PublishedModule, below, renamed
from ..mm.registry import MODELS

# GroupNorm behind every deformable convolution has this many groups.
_GROUPS = 16
_NAMES = {
    "DyConv.0.": "spatial_conv_high.",
    "DyConv.1.": "spatial_conv_mid.",
    "DyConv.2.": "spatial_conv_low.",
    "AttnConv.": "scale_attn_module.",
    "offset.": "spatial_conv_offset.",
    "relu.fc.0.": "task_attn_module.conv1.conv.",
    "relu.fc.2.": "task_attn_module.conv2.conv.",
}


@MODELS.register_module()
class DyHead(PublishedModule, MMDetDyHead):
    """mmdet's `DyHead` neck with the biases, the initialisation and the checkpoints of the published code.

    The forward pass is mmdet's, which on attnzoo's operators equals the published one: offsets and modulation come from
    the level that is being computed and serve its neighbours too, so that for the coarser neighbour the deformable
    convolution gets maps larger than its output, of which compiled operators read the first numbers in memory.

    What mmdet's neck lacks and this one has: a bias in the deformable convolutions, which the norm behind them does not
    cancel; the published initialisation (offsets that do not start at zero, PyTorch's own for them and for dynamic
    ReLU); and published checkpoints. Those of mmdet have no biases: they are loaded with zeros, which is the same
    function. Where none of this is wanted, mmdet's `type="DyHead"` serves on attnzoo's operators unchanged.

    Source: Dynamic Head (https://arxiv.org/abs/2106.08322), https://github.com/microsoft/DynamicHead (MIT).

    Args:
        in_channels: Channels of each level.
        out_channels: Channels of each level of the result, a multiple of 16.
        num_blocks: Blocks, each with attention over scales, space and tasks.
        init_cfg: None, or `dict(type="Pretrained", checkpoint=path)` with a detector of
            https://github.com/microsoft/DynamicHead or of mmdet, of which the neck is loaded.

    Raises:
        TypeError: An argument of another type.
        ValueError: `out_channels` is no multiple of 16, or a number is not positive.

    Example:
        >>> import torch
        >>> neck = DyHead(in_channels=32, out_channels=32, num_blocks=1)
        >>> levels = neck((torch.rand(1, 32, 9, 7), torch.rand(1, 32, 5, 4)))
        >>> [tuple(level.shape) for level in levels]
        [(1, 32, 9, 7), (1, 32, 5, 4)]
    """

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int = 6, init_cfg: dict | None = None) -> None:
        check_int("in_channels", in_channels, 1)
        check_int("num_blocks", num_blocks, 1)
        if check_int("out_channels", out_channels, 1) % _GROUPS:
            raise ValueError(f"out_channels={out_channels}: must be a multiple of {_GROUPS}, the groups of its norms")
        super().__init__(in_channels, out_channels, num_blocks)
        self.init_cfg = init_cfg
        for block in self.dyhead_blocks:
            for layer in (block.spatial_conv_high, block.spatial_conv_mid, block.spatial_conv_low):
                conv = layer.conv
                layer.conv = ModulatedDeformConv2d(conv.in_channels, out_channels, 3, stride=conv.stride, padding=1)
            block.spatial_conv_offset.reset_parameters()
            for conv in (block.task_attn_module.conv1.conv, block.task_attn_module.conv2.conv):
                conv.reset_parameters()

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Refine the levels of a pyramid.

        Args:
            inputs: Levels (B, in_channels, H_i, W_i), from fine to coarse; each is half the one before, rounded up.

        Returns:
            Levels (B, out_channels, H_i, W_i).

        Raises:
            ValueError: The levels do not halve.
        """
        sizes = [tuple(level.shape[2:]) for level in inputs]
        for (height, width), size in pairwise(sizes):
            half = ((height + 1) // 2, (width + 1) // 2)
            if size != half:
                raise ValueError(f"levels of sizes {sizes}: below {height, width} must come {half}, not {size}")
        return super().forward(tuple(inputs))

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The neck in a detector's checkpoint, of the published layout, of mmdet's or of ours."""
        converted = {}
        for key, value in below(state, "dyhead_tower", "dyhead_blocks").items():
            _, block, name = key.split(".", 2)
            if key.startswith("dyhead_tower."):
                name = re.sub(r"(DyConv\.\d\.)bn\.", r"\1norm.", name)
                if name.startswith("relu.fc.") and name.endswith("weight"):
                    value = value[:, :, None, None]
            converted[f"dyhead_blocks.{block}.{renamed(name, _NAMES)}"] = value
        convs = [key for key in converted if re.search(r"spatial_conv_(high|mid|low)\.conv\.", key)]
        if not any(key.endswith("bias") for key in convs):
            for key in convs:
                converted[f"{key.removesuffix('weight')}bias"] = torch.zeros_like(converted[key][:, 0, 0, 0])
        return converted
