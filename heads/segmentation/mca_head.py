"""MCANet's decoder: multi-scale cross-axis attention."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from ..arguments import check_int, check_ints
from ..mm.published import PublishedModule, below, renamed
from ..mm.registry import MODELS

_NAMES = {
    "decoder_level.norm1.body.": "attention.norm.",
    "decoder_level.conv0_1.": "attention.row_strips.0.",
    "decoder_level.conv1_1.": "attention.row_strips.1.",
    "decoder_level.conv2_1.": "attention.row_strips.2.",
    "decoder_level.conv0_2.": "attention.column_strips.0.",
    "decoder_level.conv1_2.": "attention.column_strips.1.",
    "decoder_level.conv2_2.": "attention.column_strips.2.",
    "decoder_level.project_out.": "attention.project.",
    "sep_bottleneck.": "bottleneck.",
}
# A parameter of the published checkpoints that their code never uses.
_UNUSED = "decoder_level.temperature"


class CrossAxisAttention(nn.Module):
    """Attention between rows and between columns, each asked by the strip convolutions along the other axis.

    The map, normed, is convolved by strips of three lengths along its rows and, apart, along its columns; both sums go
    through one projection. Then rows attend to rows, with the queries from the columns' map and keys and values from
    the rows' map, and columns to columns the other way round. A token is a whole row (or column) of one head's
    channels. Queries and keys have unit length, so there is no scale; the unit query is added to what it reads. The
    same projection as above closes both, and the un-normed map is added.

    Source: MCANet (https://arxiv.org/abs/2312.08866), section 3.2; that the projection is shared, and that the residual
    is the normalised query, are its published code's.

    Args:
        channels: Channels of the map, a multiple of `heads`.
        heads: Groups of channels with attention of their own.
        kernels: Lengths of the strips, odd.
    """

    def __init__(self, channels: int, heads: int = 8, kernels: Sequence[int] = (7, 11, 21)) -> None:
        super().__init__()
        self.heads = heads
        self.norm = LayerNorm2d(channels, eps=1e-5)
        self.row_strips = nn.ModuleList(
            nn.Conv2d(channels, channels, (1, k), padding=(0, k // 2), groups=channels) for k in kernels
        )
        self.column_strips = nn.ModuleList(
            nn.Conv2d(channels, channels, (k, 1), padding=(k // 2, 0), groups=channels) for k in kernels
        )
        self.project = nn.Conv2d(channels, channels, 1)

    def _attend_rows(self, query: Tensor, source: Tensor) -> Tensor:
        """Rows of `query` read rows of `source`, both (B, C, H, W)."""

        def rows(x: Tensor) -> Tensor:
            return x.unflatten(1, (self.heads, -1)).transpose(2, 3).flatten(3)

        # The default eps is 0 in float16, where a row of zeros would become NaN.
        eps = max(1e-12, torch.finfo(query.dtype).tiny)
        q, k, v = F.normalize(rows(query), dim=-1, eps=eps), F.normalize(rows(source), dim=-1, eps=eps), rows(source)
        x = (q @ k.mT).softmax(-1) @ v + q
        return x.unflatten(3, (-1, query.shape[3])).transpose(2, 3).flatten(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Mix a map (B, C, H, W) along both axes; the result has its shape."""
        normed = self.norm(x)
        row = self.project(torch.stack([strip(normed) for strip in self.row_strips]).sum(0))
        column = self.project(torch.stack([strip(normed) for strip in self.column_strips]).sum(0))
        across_rows = self._attend_rows(column, row)
        across_columns = self._attend_rows(row.mT, column.mT).mT
        return self.project(across_rows) + self.project(across_columns) + x


@MODELS.register_module()
class MCAHead(PublishedModule, BaseDecodeHead):
    """MCANet's decode head: all levels but the finest are mixed by cross-axis attention, then joined with the finest.

    The published code resizes all levels to a fixed size (`image_size`, 128 in its configs: stride 4 of its 512-pixel
    crops), whatever the image. Here they are resized to the finest level unless `map_size` says otherwise, which at 512
    pixels is the same and serves images of any size.

    Source: MCANet (https://arxiv.org/abs/2312.08866).

    Args:
        heads: Heads of the attention.
        map_size: Height and width of the map on which the head works and which it returns, one number for both, or None
            for those of the finest level.
        **kwargs: Arguments of mmseg's `BaseDecodeHead`. `in_channels` and `in_index` are sequences from fine to coarse;
            published configs have four levels, `channels` equal to the first of `in_channels`, and
            `norm_cfg=dict(type="GN", num_groups=32)`. `init_cfg=dict(type="Pretrained", checkpoint=path)` loads the
            head of a published segmentor; its classifier is left out where it has another number of classes.

    Raises:
        TypeError: An argument of another type.
        ValueError: Less than two levels, the channels of the second are no multiple of `heads`, or `map_size` is not
            positive.
    """

    def __init__(
        self,
        heads: int = 8,
        map_size: int | tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> None:
        check_int("heads", heads, 1)
        super().__init__(input_transform="multiple_select", **kwargs)
        if len(self.in_channels) < 2 or self.in_channels[1] % heads:
            raise ValueError(
                f"in_channels={self.in_channels}: needs two levels or more, the second with a multiple of heads={heads}"
            )
        size: Any = map_size
        if size is not None:
            size = check_ints("map_size", (map_size, map_size) if isinstance(map_size, int) else map_size)
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise ValueError(f"map_size={map_size}: allowed are None, a positive number and a pair of them")
        self.map_size = size
        finest, middle, last = self.in_channels[0], self.in_channels[1], self.in_channels[-1]
        layer: dict[str, Any] = dict(norm_cfg=self.norm_cfg, act_cfg=self.act_cfg)
        self.squeeze = ConvModule(sum(self.in_channels[1:]), middle, 1, **layer)
        self.attention = CrossAxisAttention(middle, heads)
        self.bottleneck = nn.Sequential(
            DepthwiseSeparableConvModule(middle + finest, last, 3, padding=1, **layer),
            DepthwiseSeparableConvModule(last, last, 3, padding=1, **layer),
        )
        self.align = ConvModule(last, self.channels, 1, **layer)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Class logits.

        Args:
            inputs: Maps of the backbone, (B, C_i, H_i, W_i), of which `in_index` are taken.

        Returns:
            Logits (B, num_classes, H, W), H and W of the finest level or of `map_size`.
        """
        levels = self._transform_inputs(inputs)
        size = self.map_size or levels[0].shape[2:]
        finest, *others = (
            F.interpolate(level, size, mode="bilinear", align_corners=self.align_corners) for level in levels
        )
        mixed = self.attention(self.squeeze(torch.cat(others, dim=1)))
        return self.cls_seg(self.align(self.bottleneck(torch.cat((mixed, finest), dim=1))))

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The head in a segmentor's checkpoint, or the head's alone, of the published layout or of ours."""
        state = {key.removeprefix("decode_head."): v for key, v in below(state, "decode_head").items()} or state
        converted = {renamed(key, _NAMES): value for key, value in state.items() if key != _UNUSED}
        own = {f"conv_seg.{key}": value for key, value in self.conv_seg.state_dict().items()}
        if any(key in converted and converted[key].shape != value.shape for key, value in own.items()):
            converted.update(own)
        return converted
