"""What is compared: the detector, its stages, the modules."""

from __future__ import annotations

CONFIG = "attention/gfl_resnet_2e_digits"
METRIC = "coco/bbox_mAP_50"
NONE = "none"
STAGES = (2, 3, 4)


def names() -> list[str]:
    """All modules, without the second name of one."""
    from ...backbones.modules import NAMES

    return [name for name in NAMES if name != "ela_base"]
