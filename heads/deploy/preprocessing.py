"""Normalisation and padding, as part of the traceable form."""

import torch
import torch.nn.functional as F
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmengine.model import BaseDataPreprocessor
from mmseg.models.data_preprocessor import SegDataPreProcessor
from torch import Tensor, nn

from ..bev.preprocessor import BEVDataPreprocessor
from .support import require


class Preprocess(nn.Module):
    """What the model's data preprocessor does to a batch at test time, but for the order of channels.

    Args:
        preprocessor: mmdet's `DetDataPreprocessor`, mmseg's `SegDataPreProcessor` or our `BEVDataPreprocessor`.

    Raises:
        UnsupportedModelError: Another preprocessor, or a padding to a fixed size.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessor: BaseDataPreprocessor) -> None:
        super().__init__()
        kind: type = type(preprocessor)
        allowed = (DetDataPreprocessor, SegDataPreProcessor, BEVDataPreprocessor)
        require(
            isinstance(preprocessor, allowed) and kind in allowed,
            "data preprocessor",
            kind.__name__,
            ", ".join(each.__name__ for each in allowed),
        )
        self.divisor = preprocessor.pad_size_divisor
        if isinstance(preprocessor, BEVDataPreprocessor):
            self.pad_value = 0.0
            self.register_buffer("mean", preprocessor.mean.float())
            self.register_buffer("std", preprocessor.std.float())
            return
        self.pad_value = float(preprocessor.pad_value)
        if kind is SegDataPreProcessor:
            # mmseg pads at test time only as `test_cfg` says, whatever it does in training.
            test_cfg = preprocessor.test_cfg or {}
            require(
                test_cfg.get("size") is None, "data preprocessor", f"with test_cfg={test_cfg}", "test_cfg.size_divisor"
            )
            self.divisor = test_cfg.get("size_divisor") or 1
        if preprocessor._enable_normalize:
            self.register_buffer("mean", preprocessor.mean.float())
            self.register_buffer("std", preprocessor.std.float())
        else:
            self.register_buffer("mean", torch.zeros(3, 1, 1))
            self.register_buffer("std", torch.ones(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Normalise and pad right and below: (B, 3, H, W) to (B, 3, H', W'), multiples of the divisor."""
        images = (images - self.mean) / self.std
        if self.divisor > 1:
            # A product of a positive quotient: the exporter divides it by strides again, twice as fast as a remainder,
            # and ONNX rounds negative quotients towards zero.
            below, right = (
                (size + self.divisor - 1) // self.divisor * self.divisor - size for size in images.shape[-2:]
            )
            images = F.pad(images, (0, right, 0, below), value=self.pad_value)
        return images
