"""Probing: how much a frozen backbone knows, by what a small classifier learns from its features.

Needs torch and timm alone. In evaluation mode and without gradients the backbone gives patch features; a head pools
them, by attention or by their mean, and classifies.

    backbone = FrozenBackbone(timm.create_model("van_b0"))
    head = ProbeHead(backbone.channels, num_classes=10)
    logits = head(backbone(images))
"""

from .features import Batches, FeatureBatches, FrozenBackbone
from .fitting import accuracy, fit
from .heads import EfficientProbing, ProbeHead, largest_divisor
from .saving import load_head, save_head

__all__ = [
    "Batches",
    "EfficientProbing",
    "FeatureBatches",
    "FrozenBackbone",
    "ProbeHead",
    "accuracy",
    "fit",
    "largest_divisor",
    "load_head",
    "save_head",
]
