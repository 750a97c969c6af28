"""ViTDet's simple feature pyramid: all levels from the one map of a plain backbone."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from ...backbones.contract.arguments import is_integer
from ..arguments import check_int, check_ints
from ..mm.published import PublishedModule, below
from ..mm.registry import MODELS

# Levels with layers of their own; coarser ones are subsampled from the last.
_STRIDES = (4, 8, 16, 32)


def _rescale(stride: int, channels: int) -> tuple[list[nn.Module], int]:
    """Layers that bring a map of stride 16 and `channels` to `stride`, and the channels that they return."""
    if stride == 4:
        layers = [
            nn.ConvTranspose2d(channels, channels // 2, 2, stride=2),
            LayerNorm2d(channels // 2, eps=1e-6),
            nn.GELU(),
            nn.ConvTranspose2d(channels // 2, channels // 4, 2, stride=2),
        ]
        return layers, channels // 4
    if stride == 8:
        return [nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)], channels // 2
    # Rounded up, as strided convolutions do it: heads count on levels that halve so.
    return ([nn.MaxPool2d(2, stride=2, ceil_mode=True)] if stride == 32 else []), channels


def _conv_norm(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    return nn.Sequential(conv, LayerNorm2d(out_channels, eps=1e-6))


@MODELS.register_module()
class SimpleFeaturePyramid(PublishedModule):
    """Levels of several strides from a single map of stride 16, such as a plain Vision Transformer's.

    Each level starts from that map: transposed convolutions bring it to strides 4 and 8, max pooling to 32; a 1×1 and a
    3×3 convolution follow, each with a LayerNorm over channels. There are no links between levels. Strides beyond 32
    take every second place of the level before. Sides that are odd become half, rounded up, where the published code,
    which sees only even ones, rounds down.

    Source: ViTDet (https://arxiv.org/abs/2203.16527), section 3 and appendix A.2; detectron2's `SimpleFeaturePyramid`.

    Args:
        in_channels: Channels C of the map, a multiple of 4.
        out_channels: Channels of each level.
        strides: Of the levels, each twice the one before, the first one of 4, 8, 16 and 32: `(4, 8, 16, 32, 64)` for
            mmdet's two-stage detectors, `(8, 16, 32, 64, 128)` for its single-stage ones, `(4, 8, 16, 32)` for mmseg.
        init_cfg: mmengine's, or `dict(type="Pretrained", checkpoint=path)` with a ViTDet of detectron2 or of mmdet's
            `projects/ViTDet`, of which the neck is loaded. (detectron2's own `.pkl` files are pickles of NumPy arrays,
            which are not read here: write them anew with `torch.save`, as a dict of tensors.)

    Raises:
        TypeError: An argument of another type.
        ValueError: `in_channels` is no multiple of 4, or `strides` are others than those above.

    Example:
        >>> import torch
        >>> neck = SimpleFeaturePyramid(in_channels=192, out_channels=64)
        >>> [tuple(level.shape) for level in neck((torch.rand(1, 192, 5, 8),))]
        [(1, 64, 20, 32), (1, 64, 10, 16), (1, 64, 5, 8), (1, 64, 3, 4), (1, 64, 2, 2)]
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        strides: Sequence[int] = (4, 8, 16, 32, 64),
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_int("out_channels", out_channels, 1)
        strides = check_ints("strides", strides)
        if not is_integer(in_channels) or in_channels < 4 or in_channels % 4:
            raise ValueError(f"in_channels={in_channels!r}: allowed is one number, a multiple of 4")
        if not strides or strides[0] not in _STRIDES or any(b != 2 * a for a, b in pairwise(strides)):
            raise ValueError(f"strides={strides}: each must be twice the one before, the first one of {_STRIDES}")
        self.in_channels = in_channels
        self.strides = strides
        self.levels = nn.ModuleDict()
        for stride in self.strides:
            if stride in _STRIDES:
                rescale, channels = _rescale(stride, in_channels)
                convs = (_conv_norm(channels, out_channels, 1), _conv_norm(out_channels, out_channels, 3))
                self.levels[str(stride)] = nn.Sequential(*rescale, *convs)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Make the pyramid.

        Args:
            inputs: One map (B, in_channels, H, W).

        Returns:
            A map (B, out_channels, H * 16 / stride, W * 16 / stride), rounded up, for each of `strides`.

        Raises:
            ValueError: More than one map, or another number of channels.
        """
        if len(inputs) != 1 or inputs[0].shape[1] != self.in_channels:
            shapes = [tuple(x.shape) for x in inputs]
            raise ValueError(f"expected one map of {self.in_channels} channels (one out_index), got {shapes}")
        levels = [level(inputs[0]) for level in self.levels.values()]
        while len(levels) < len(self.strides):
            levels.append(F.max_pool2d(levels[-1], 1, stride=2))
        return tuple(levels)

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The neck in a checkpoint of detectron2's layout, of mmdet's project's, or of ours, without unused levels."""
        names: dict[str, str] = {}
        for i, stride in enumerate(_STRIDES):
            # The 1×1 convolution comes behind the layers that rescale.
            first = len(_rescale(stride, 4)[0])
            theirs = f"simfp_{round(math.log2(stride))}"
            for place, mmdet in ((first, f"lateral_convs.{i}"), (first + 1, f"fpn_convs.{i}")):
                ours = f"levels.{stride}.{place}"
                names |= {f"{theirs}.{place}.norm": f"{ours}.1", f"{theirs}.{place}": f"{ours}.0"}
                names |= {f"{mmdet}.conv": f"{ours}.0", f"{mmdet}.norm_layer": f"{ours}.1"}
            for place in range(first):
                names |= {f"{old}.{place}": f"levels.{stride}.{place}" for old in (theirs, f"fpn{i + 1}")}
        converted = {}
        roots = {name.split(".")[0] for name in names}
        for key, value in below(state, "levels", *roots).items():
            module, _, leaf = key.rpartition(".")
            converted[f"{names.get(module, module)}.{leaf}"] = value
        unused = tuple(f"levels.{stride}." for stride in _STRIDES if str(stride) not in self.levels)
        return {key: value for key, value in converted.items() if not key.startswith(unused)}
