"""Small models in bird's-eye view, and samples for them."""

from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData

from attnzoo.heads.bev.detector import BEVDetector

CAMERAS, ROWS, COLUMNS, CLASSES, DIMS = 2, 4, 5, 3, 16
IMAGE = (32, 64)
RANGE = (-20.0, -16.0, -5.0, 20.0, 16.0, 3.0)
BINS = dict(near=1.0, far=25.0, step=1.0)


def config(lifting: str = "2d", **options: Any) -> dict[str, Any]:
    """A BEVDetector of all parts, on a ResNet-18 of mmdet with levels of stride 16 and 32."""
    cfg: dict[str, Any] = dict(
        backbone=dict(type="mmdet.ResNet", depth=18, base_channels=8, out_indices=(2, 3)),
        neck=dict(type="mmdet.FPN", in_channels=[32, 64], out_channels=DIMS, num_outs=2),
        bev_encoder=dict(
            type="attnzoo.BEVEncoder", embed_dims=DIMS, rows=ROWS, columns=COLUMNS, point_range=RANGE, num_layers=2,
            num_cameras=CAMERAS, num_levels=2, num_heads=2, num_points=4, num_pillar_points=2, num_temporal_points=2,
            feedforward_channels=16, dropout=0.0, lifting=lifting, depth_range=(BINS["near"], BINS["far"]),
        ),
        detection_head=dict(
            type="attnzoo.BEVDetectionHead", num_classes=CLASSES, embed_dims=DIMS, num_query=6, num_layers=2,
            num_heads=2, num_points=2, feedforward_channels=16, dropout=0.0, point_range=RANGE,
        ),
        segmentation_head=dict(
            type="attnzoo.BEVSegmentationHead", num_classes=2, in_channels=DIMS, channels=8, num_convs=1
        ),
    )  # fmt: skip
    if lifting == "dfa3d":
        cfg["depth_head"] = dict(
            type="attnzoo.BEVDepthHead", in_channels=DIMS, mid_channels=8, bins=BINS | dict(groups=(1, 2)), level=0,
            stride=16, dilations=(1, 2),
        )  # fmt: skip
    return cfg | options


def model(lifting: str = "2d", **options: Any) -> BEVDetector:
    return BEVDetector(**config(lifting, **options))


def lidar2img(seed: int = 0, cameras: int = CAMERAS) -> np.ndarray:
    """Cameras of random directions on the ground, of images of 32 x 64, (cameras, 4, 4)."""
    yaw = np.random.default_rng(seed).uniform(0, 7, cameras)
    matrix = np.zeros((cameras, 4, 4))
    matrix[:, 0, :2] = np.stack((np.cos(yaw), np.sin(yaw)), -1)
    matrix[:, 1, 2] = -1
    matrix[:, 2, :2] = np.stack((-np.sin(yaw), np.cos(yaw)), -1)
    matrix[:, 3, 3] = 1
    inside = np.array([[40.0, 0, 32, 0], [0, 40, 16, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    return inside @ matrix


def sample(seed: int = 0, frames: int = 1, **metainfo: Any) -> BaseDataElement:
    """A sample with all that heads learn."""
    generator = torch.Generator().manual_seed(seed)
    can_bus = np.random.default_rng(seed).normal(size=(frames, 18))
    found = BaseDataElement(
        metainfo=dict(
            lidar2img=np.stack([lidar2img(seed)] * frames), can_bus=can_bus, scene_token=f"scene {seed}", token="0",
            prev="",
        )
        | metainfo
    )  # fmt: skip
    boxes = torch.randn(2, 9, generator=generator)
    boxes[:, 3:6] = boxes[:, 3:6].exp()
    found.gt_instances_3d = InstanceData(bboxes_3d=boxes, labels_3d=torch.tensor([0, 2]))
    found.gt_bev_map = torch.rand(2, ROWS, COLUMNS, generator=generator) < 0.3
    shape = (frames, CAMERAS, *IMAGE)
    known = torch.rand(shape, generator=generator) < 0.05
    found.gt_depth = torch.where(known, 26 * torch.rand(shape, generator=generator), 0)
    return found


def images(batch: int, frames: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, frames, CAMERAS, 3, *IMAGE, generator=torch.Generator().manual_seed(seed))
