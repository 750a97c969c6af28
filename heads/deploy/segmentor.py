"""The traceable form of mmseg's segmentors."""

import torch.nn.functional as F
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor

from .base import TraceableModel
from .support import inherits, require


class TraceableSegmentor(TraceableModel):
    """A segmentor, evaluated on whole images; arguments and errors as of `TraceableModel`."""

    serves = EncoderDecoder
    description = "EncoderDecoder segmentors"
    outputs: tuple[str, ...] = ("logits", "labels")

    def __init__(self, model: EncoderDecoder) -> None:
        super().__init__(model)
        require(
            inherits(model, EncoderDecoder, "predict", "inference", "encode_decode", "postprocess_result"),
            "segmentor",
            type(model).__name__,
            "EncoderDecoder",
        )
        require(
            inherits(model.decode_head, BaseDecodeHead, "predict", "predict_by_feat"),
            "head",
            type(model.decode_head).__name__,
            "heads that predict as mmseg's BaseDecodeHead does (FPNHead, UPerHead, LightHamHead, SegformerHead, …)",
        )
        mode = model.test_cfg.get("mode", "whole")
        require(mode == "whole", "test_cfg mode", repr(mode), "'whole'")

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Segment.

        Args:
            images: (B, 3, H, W), 0 to 255.

        Returns:
            Logits (B, K, H, W), or with one output channel its sigmoid, as mmseg has it, and labels (B, H, W) int64.
        """
        height, width = images.shape[-2:]
        x = self.preprocess(images)
        logits = self.model.decode_head(self.model.extract_feat(x))
        logits = F.interpolate(logits, x.shape[-2:], mode="bilinear", align_corners=self.model.align_corners)
        logits = logits[..., :height, :width]
        if self.model.out_channels == 1:
            probability = logits.sigmoid()
            return probability, (probability > self.model.decode_head.threshold).squeeze(1).long()
        return logits, logits.argmax(dim=1)
