"""The traceable form of the detector in bird's-eye view."""

from types import MappingProxyType

import torch
from torch import Tensor

from ..bev.bev_encoder import BEVEncoder
from ..bev.coder import BOX
from ..bev.depth_head import BEVDepthHead
from ..bev.detection_head import BEVDetectionHead
from ..bev.detector import BEVDetector
from ..bev.motion import CAN_BUS
from ..bev.segmentation_head import BEVSegmentationHead
from .base import TraceableModel
from .boxes import fill_empty, rows
from .support import inherits, require


class TraceableBEVDetector(TraceableModel):
    """One frame of a `BEVDetector`, whose history comes from outside; arguments and errors as of `TraceableModel`.

    A stream is one call a frame: `next_history` of a frame is `history` of the next one of its scene.

    Attributes:
        cameras: Their number N.
        history_shape: Q and C, cells of the BEV map and channels.
    """

    serves = BEVDetector
    description = "BEV detectors"
    inputs = MappingProxyType(
        {
            "images": {0: "batch", 3: "height", 4: "width"},
            "lidar2img": {0: "batch"},
            "can_bus": {0: "batch"},
            "history": {0: "batch"},
            "has_history": {0: "batch"},
        }
    )
    carried = MappingProxyType({"history": "next_history"})

    def __init__(self, model: BEVDetector) -> None:
        super().__init__(model)
        encoder, depth, boxes, ground = (
            model.bev_encoder, model.depth_head, model.detection_head, model.segmentation_head,
        )  # fmt: skip
        require(
            inherits(model, BEVDetector, "predict", "extract_levels", "encode"),
            "detector",
            type(model).__name__,
            "BEVDetector",
        )
        require(inherits(encoder, BEVEncoder, "forward"), "BEV encoder", type(encoder).__name__, "BEVEncoder")
        require(
            depth is None or inherits(depth, BEVDepthHead, "forward", "spread"),
            "depth head",
            type(depth).__name__,
            "BEVDepthHead",
        )
        require(
            boxes is None or inherits(boxes, BEVDetectionHead, "forward", "detect", "predict"),
            "detection head",
            type(boxes).__name__,
            "BEVDetectionHead",
        )
        require(
            ground is None or inherits(ground, BEVSegmentationHead, "forward", "predict"),
            "segmentation head",
            type(ground).__name__,
            "BEVSegmentationHead",
        )
        self.cameras = encoder.num_cameras
        self.history_shape = (encoder.size[0] * encoder.size[1], encoder.embed_dims)
        self.outputs = (
            *(() if boxes is None else ("boxes", "scores", "labels")),
            *(() if ground is None else ("bev_map",)),
            "next_history",
        )

    def forward(
        self, images: Tensor, lidar2img: Tensor, can_bus: Tensor, history: Tensor, has_history: Tensor
    ) -> tuple[Tensor, ...]:
        """Detect.

        Args:
            images: (B, N, 3, H, W), 0 to 255.
            lidar2img: (B, N, 4, 4) float32, from the LiDAR frame to pixels of `images`.
            can_bus: (B, 18) float32, motion since the previous frame, as of `BEVEncoder`.
            history: (B, Q, C), `next_history` of the previous frame, that is (B, rows * columns, C).
            has_history: (B,) bool; where False, the numbers of `history` are not looked at.

        Returns:
            With a detection head boxes (B, max_num, 9), (x, y, z, w, l, h, yaw, vx, vy) in metres, radians and m/s in
            the LiDAR frame, scores (B, max_num), falling, and labels (B, max_num) int64; places without a detection
            come last and have score 0 and label -1. With a segmentation head the BEV map, scores (B, classes, rows,
            columns) from 0 to 1. Then the history of the next frame (B, Q, C).
        """
        model, size = self.model, self.model.bev_encoder.size
        images = self.preprocess(images.flatten(0, 1)).unflatten(0, (-1, self.cameras))
        shape = (images.shape[3], images.shape[4])
        levels = model.extract_levels(images)
        bev, _ = model.encode(levels, shape, lidar2img, can_bus, history, has_history)
        outputs: tuple[Tensor, ...] = ()
        if model.detection_head is not None:
            boxes, scores, labels, kept = model.detection_head.detect(bev, size)
            # What is dropped goes to the end; all else, equal scores too, keeps its order.
            count = scores.shape[1]
            place = torch.arange(count, device=scores.device) + (~kept).long() * count
            index = place.topk(count, largest=False).indices
            scores = scores.masked_fill(~kept, -1).gather(1, index)
            outputs += fill_empty(rows(boxes, index), scores, labels.gather(1, index))
        if model.segmentation_head is not None:
            outputs += (model.segmentation_head.predict(bev, size),)
        return (*outputs, bev)

    def metadata(self) -> dict[str, object]:
        """Grid and range of the BEV map, and in words what all inputs and outputs are."""
        encoder = self.model.bev_encoder
        (rows_, columns), channels = encoder.size, encoder.embed_dims
        cells = f"{rows_ * columns}, {channels}"
        said = {
            "images": f"(B, {self.cameras}, 3, H, W) float32, 0 to 255, in the order of cameras",
            "lidar2img": f"(B, {self.cameras}, 4, 4) float32, from (x, y, z, 1) in metres in the LiDAR frame to "
            "(u depth, v depth, depth, 1) in pixels of images, with all that was done to them inside",
            "can_bus": f"(B, {CAN_BUS}) float32, since the previous frame: at 0 and 1 the path along x and y of the "
            "global frame in metres, at 16 the heading in radians, at 17 the turn in degrees; else as in training",
            "history": f"(B, {cells}) float32, next_history of the previous frame of the scene",
            "has_history": "(B) bool, False where a scene begins; history is not looked at then",
            "boxes": f"(B, N, {BOX}): x, y, z of the centre, w, l, h, yaw, vx, vy in the LiDAR frame, in metres, "
            "radians, m/s",
            "scores": "(B, N) from 0 to 1, falling; 0 where there is no detection",
            "labels": "(B, N), index into classes; -1 where there is no detection",
            "bev_map": f"(B, classes, {rows_}, {columns}), scores from 0 to 1; row 0 has the smallest y, column 0 the "
            "smallest x",
            "next_history": f"(B, {cells}), history of the next frame of the scene",
        }
        return {
            "bev_size": list(encoder.size),
            "point_range": list(encoder.point_range),
            "meaning": {name: said[name] for name in (*self.inputs, *self.outputs)},
        }
