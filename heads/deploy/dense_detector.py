"""The traceable form of mmdet's single-stage detectors."""

from mmdet.models.detectors import SingleStageDetector
from torch import Tensor

from .base import TraceableModel
from .boxes import fill_empty, rows
from .dense_prediction import DensePrediction
from .suppression import Suppression


class TraceableDenseDetector(TraceableModel):
    """A single-stage detector; arguments and errors as of `TraceableModel`."""

    serves = SingleStageDetector
    description = "single-stage detectors"
    outputs: tuple[str, ...] = ("boxes", "scores", "labels")

    def __init__(self, model: SingleStageDetector) -> None:
        super().__init__(model)
        cfg = model.bbox_head.test_cfg
        self._predict = DensePrediction(model.bbox_head, cfg)
        self._suppress = Suppression(cfg.get("nms"), cfg.max_per_img, cfg.get("min_bbox_size", -1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect.

        Args:
            images: (B, 3, H, W), 0 to 255.

        Returns:
            Boxes (B, N, 4) as x1, y1, x2, y2 in pixels, scores (B, N), falling, and labels (B, N) int64, where N is
            `max_per_img`; places without a detection have score 0 and label -1.
        """
        height, width = images.shape[-2:]
        features = self.model.extract_feat(self.preprocess(images))
        boxes, scores, labels, _ = self._predict(features, height, width)
        scores, index = self._suppress(boxes, scores, labels, scores >= 0)
        return fill_empty(rows(boxes, index), scores, labels.gather(1, index))
