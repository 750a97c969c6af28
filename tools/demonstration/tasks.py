"""The two models of the demo and their goals."""

from __future__ import annotations

from dataclasses import dataclass

GOAL_SECONDS = 600.0
# What a line begins with by which a worker tells of a step.
STEP = "demo step: "
# Of detections, below which they are not drawn.
SCORE = 0.4
# What `--quick` replaces in both configs.
QUICK = {"train_cfg.max_epochs": 1, "train_cfg.val_interval": 1, "default_hooks.logger.interval": 1}


@dataclass(frozen=True)
class Task:
    """One model of the demo.

    Attributes:
        name: Its folder, and its name in the progress.
        config: Short name of its config.
        metric: Key of the metric with the goal, as `attnzoo test` gives it.
        title: The metric's name in the table.
        unit: What the key's value is divided by to be in 0…1.
        goal: The least value that counts as reached.
        sheet: File of the picture.
    """

    name: str
    config: str
    metric: str
    title: str
    unit: float
    goal: float
    sheet: str


TASKS = (
    Task(
        "detector", "biformer/gfl_biformer_4e_digits", "coco/bbox_mAP_50", "box AP50, ten digits", 1.0, 0.80,
        "detections.png",
    ),
    Task(
        "segmentor", "van/semfpn_van_3e_digits", "mIoU", "mIoU, {photo, digit}", 100.0, 0.85,
        "segmentation.png",
    ),
)  # fmt: skip
