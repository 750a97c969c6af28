"""Depth of the cameras' feature maps as distributions over bins: predicted, or from points of a LiDAR."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmdet.models.backbones.resnet import BasicBlock
from mmengine.model import BaseModule
from mmseg.models.decode_heads.aspp_head import ASPPModule
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from ..arguments import check_bool, check_int, check_ints, check_number
from ..mm.published import PublishedModule, below, renamed
from ..mm.registry import MODELS
from .deformable import check_shape
from .depth_bins import DepthBins, depth_bins

_NORM = dict(type="BN")
_ASPP = "depth_conv.3."
_NAMES = {
    f"{_ASPP}global_avg_pool.1.": f"{_ASPP}pooled.conv.",
    f"{_ASPP}global_avg_pool.2.": f"{_ASPP}pooled.bn.",
    f"{_ASPP}conv1.": f"{_ASPP}project.conv.",
    f"{_ASPP}bn1.": f"{_ASPP}project.bn.",
}


class AtrousPyramid(nn.Module):
    """Atrous spatial pyramid pooling: convolutions of several dilations and the map's mean, side by side, projected.

    Source: DeepLabv3 (https://arxiv.org/abs/1706.05587).

    Args:
        channels: Of the map and of each branch.
        dilations: Of the branches; of dilation 1 is a 1×1 convolution.
    """

    def __init__(self, channels: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.branches = ASPPModule(dilations, channels, channels, None, _NORM, dict(type="ReLU"))
        self.pooled = ConvModule(channels, channels, 1, norm_cfg=_NORM)
        self.project = ConvModule((len(dilations) + 1) * channels, channels, 1, norm_cfg=_NORM)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        mean = self.pooled(x.mean((2, 3), keepdim=True)).expand_as(x)
        return self.project(torch.cat([*self.branches(x), mean], dim=1))


class DeformableConv2d(nn.Module):
    """A 3×3 deformable convolution whose taps move by learned offsets, at first by none.

    Source: Deformable ConvNets (https://arxiv.org/abs/1703.06211).

    Args:
        channels: Of map and result, a multiple of `groups`.
        groups: Of the convolution; all share the offsets.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.conv_offset = nn.Conv2d(channels, 18, 3, padding=1)
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)  # type: ignore[arg-type]
        self.weight = nn.Parameter(torch.empty(channels, channels // groups, 3, 3))
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        # torchvision's operator has no half precision on CPUs.
        offset = self.conv_offset(x)
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            out = deform_conv2d(x.to(dtype), offset.to(dtype), self.weight.to(dtype), padding=1)
        return out.to(offset.dtype)


@MODELS.register_module()
class BEVDepthHead(PublishedModule):
    """Predicts depth from one level of the cameras' feature maps, and spreads it to all levels.

    A 3×3 convolution, three residual blocks, atrous pyramid pooling, a deformable convolution and a softmax over the
    code; camera parameters are not used. Each level gets the nearest cell's distribution. With groups the code has one
    number for several neighbouring bins, so that a distribution does not sum to 1.

    It learns from LiDAR points that are projected into the images, by binary cross-entropy over the code in cells that
    hold a point.

    Source: DFA3D (https://arxiv.org/abs/2307.12972), after BEVDepth (https://arxiv.org/abs/2206.10092).

    Args:
        in_channels: Channels of the feature maps.
        mid_channels: Channels inside, a multiple of `deform_groups`.
        bins: Arguments of `DepthBins`: `near`, `far`, `step`, `groups`; bins of half a metre from 2 to 58 if None.
        level: Which of the feature maps is read, negative from the end.
        stride: Of this level, in pixels.
        supervised: Whether there is a loss of depth; without it the depth learns from what is made of it alone.
        loss_weight: Of the loss.
        dilations: Of the atrous pyramid pooling.
        deform_groups: Groups of the deformable convolution.
        init_cfg: mmengine's, or `dict(type="Pretrained", checkpoint=path)`.

    Raises:
        TypeError: An argument of another type.
        ValueError: A number out of its range, or bins and groups that do not fit each other.
    """

    def __init__(
        self,
        in_channels: int = 256,
        mid_channels: int = 256,
        bins: dict[str, Any] | None = None,
        level: int = -1,
        stride: int = 32,
        supervised: bool = True,
        loss_weight: float = 0.5,
        dilations: Sequence[int] = (1, 6, 12, 18),
        deform_groups: int = 4,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_int("in_channels", in_channels, 1)
        check_int("deform_groups", deform_groups, 1)
        if check_int("mid_channels", mid_channels, 1) % deform_groups:
            raise ValueError(f"mid_channels={mid_channels}: must be a multiple of deform_groups={deform_groups}")
        dilations = check_ints("dilations", dilations, 1)
        self.in_channels = in_channels
        self.bins: DepthBins = depth_bins({} if bins is None else bins)
        self.level = check_int("level", level)
        self.stride = check_int("stride", stride, 1)
        self.supervised = check_bool("supervised", supervised)
        self.loss_weight = check_number("loss_weight", loss_weight, 0)
        self.reduce_conv = nn.Sequential(
            nn.Conv2d(in_channels, mid_channels, 3, padding=1), nn.BatchNorm2d(mid_channels), nn.ReLU(inplace=True)
        )
        self.num_branches = len(dilations)
        self.depth_conv = nn.Sequential(
            *(BasicBlock(mid_channels, mid_channels) for _ in range(3)),
            AtrousPyramid(mid_channels, dilations),
            DeformableConv2d(mid_channels, deform_groups),
            nn.Conv2d(mid_channels, len(self.bins.widths), 1),
        )

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """The depth code.

        Args:
            levels: Feature maps (B, N, C, H, W) of N cameras.

        Returns:
            (B, N, codes, h, w), of the size of the level that is read, each cell summing to 1.

        Raises:
            ValueError: There is no such level, or it has another shape.
        """
        if not -len(levels) <= self.level < len(levels):
            raise ValueError(f"levels has {len(levels)} maps, level={self.level}")
        x = levels[self.level]
        check_shape(f"levels[{self.level}]", x, B=None, cameras=None, C=self.in_channels, H=None, W=None)
        code = self.depth_conv(self.reduce_conv(x.flatten(0, 1))).softmax(1)
        return code.unflatten(0, (x.shape[0], x.shape[1]))

    def spread(self, code: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Of each level of `sizes` (height, width) the distributions (B, N, D, height, width) over the bins."""
        bins = self.bins.spread(code.movedim(2, -1)).movedim(-1, 2)
        flat = bins.flatten(0, 1)
        return [F.interpolate(flat, size, mode="nearest").unflatten(0, bins.shape[:2]) for size in sizes]

    def target(self, points: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """What the code should be.

        Args:
            points: (B, N, H, W), depth in metres of the LiDAR points that fall on the image's pixels, else 0.
            size: Height and width of the code's map.

        Returns:
            (B, N, codes, h, w) with a 1 for the bin of each cell's nearest point, and which cells have one within the
            bins, (B, N, h, w) bool.

        Raises:
            ValueError: The image does not fit the map.
        """
        wanted, known = self.bins.encode(nearest_points(points, size, self.stride))
        return wanted.movedim(-1, 2), known

    def loss(self, code: Tensor, points: Tensor) -> dict[str, Tensor]:
        """`loss_depth`, or nothing if not `supervised`.

        Args:
            code: From `forward`.
            points: As of `target`.

        Raises:
            ValueError: The image does not fit the map.
        """
        if not self.supervised:
            return {}
        # On probabilities, which half precision cannot tell from 1.
        code = code.to(torch.promote_types(code.dtype, torch.float32))
        wanted, known = self.target(points.to(code), (code.shape[3], code.shape[4]))
        with torch.autocast(code.device.type, enabled=False):
            # A code that overflowed would stop a GPU; other losses tell of it.
            error = F.binary_cross_entropy(code.nan_to_num(nan=0.5), wanted, reduction="none")
        total = (error * known.unsqueeze(2)).sum()
        return {"loss_depth": self.loss_weight * total / known.sum().clamp(min=1)}

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The head in a checkpoint of the published layout, or of ours."""
        found = below(state, "reduce_conv", "depth_conv")
        names = dict(_NAMES)
        for i in range(self.num_branches):
            branch = f"{_ASPP}branches.{i}."
            names |= {f"{_ASPP}aspp{i + 1}.atrous_conv.": f"{branch}conv.", f"{_ASPP}aspp{i + 1}.bn.": f"{branch}bn."}
        return {renamed(key, names): value for key, value in found.items()}


@MODELS.register_module()
class PointDepth(BaseModule):
    """Depth from LiDAR points in the place of a depth head: what lifting could reach if depth were known.

    The distribution of a cell with a point is 1 in the point's bin and in two bins on each side. Where there is no
    point it is 0 everywhere, so that nothing is sampled there.

    Source: DFA3D (https://arxiv.org/abs/2307.12972), its experiment with true depth.

    Args:
        bins: Arguments of `DepthBins`: `near`, `far`, `step`.
        strides: Of the feature maps' levels, in pixels.

    Raises:
        TypeError: An argument of another type.
        ValueError: A number out of its range.
    """

    def __init__(self, bins: dict[str, Any] | None = None, strides: Sequence[int] = (8, 16, 32, 64)) -> None:
        super().__init__()
        self.bins: DepthBins = depth_bins({} if bins is None else bins)
        self.strides = check_ints("strides", strides, 1)

    def spread(self, points: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """The distributions.

        Args:
            points: (B, N, H, W), depth in metres of the LiDAR points that fall on the image's pixels, else 0.
            sizes: Height and width of each level.

        Returns:
            Of each level (B, N, D, height, width).

        Raises:
            ValueError: Another number of levels than `strides`, or the image does not fit a level.
        """
        if len(sizes) != len(self.strides):
            raise ValueError(f"sizes has {len(sizes)} levels, strides={self.strides}")
        return [
            self.bins.around(nearest_points(points, size, stride)).movedim(-1, 2)
            for size, stride in zip(sizes, self.strides, strict=True)
        ]


def nearest_points(points: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """The smallest depth in each cell of stride × stride pixels, inf where there is no point.

    Args:
        points: (B, N, H, W), depth in metres; 0, below and NaN are no points.
        size: Height and width of the map of cells; the last ones may reach beyond the image.
        stride: Side of a cell in pixels.

    Returns:
        (B, N, height, width).

    Raises:
        ValueError: The cells do not cover the image, or some lie beyond it.
    """
    check_shape("points", points, B=None, cameras=None, H=None, W=None)
    needed = tuple(-(-side // stride) for side in points.shape[2:])
    if needed != tuple(size):
        raise ValueError(
            f"points of {points.shape[2]} x {points.shape[3]} pixels make {needed[0]} x {needed[1]} cells of stride "
            f"{stride}, the feature map has {size[0]} x {size[1]}"
        )
    depth = torch.where(points > 0, points, torch.inf)
    below, right = (cells * stride - side for cells, side in zip(needed, points.shape[2:], strict=True))
    depth = F.pad(depth, (0, right, 0, below), value=torch.inf)
    return -F.max_pool2d(-depth, stride)
