"""Segmentation of a BEV map: which cells of the ground belong to each class."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmdet.models.losses import DiceLoss
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..arguments import check_int, check_number
from ..mm.registry import MODELS
from .deformable import check_shape


@MODELS.register_module()
class BEVSegmentationHead(BaseModule):
    """A few convolutions on the BEV map, with one logit for each class and cell.

    Classes may overlap, as a vehicle does the ground it stands on: each is a question of its own. The loss is binary
    cross-entropy, in which cells of the class may count more, and the dice loss, one minus the overlap of each class
    over the batch.

    Source of the dice loss: V-Net (https://arxiv.org/abs/1606.04797), without squares in the divisor.

    Args:
        num_classes: Classes.
        in_channels: Channels C of the BEV map.
        channels: Of the convolutions.
        num_convs: 3×3 convolutions before the last one.
        positive_weight: By how much cells of a class count more in the cross-entropy.
        bce_weight: Of the cross-entropy.
        dice_weight: Of the dice loss.
        norm_cfg: Of the convolutions.
        init_cfg: mmengine's.

    Raises:
        TypeError: An argument of another type.
        ValueError: A number out of its range.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 256,
        channels: int = 128,
        num_convs: int = 3,
        positive_weight: float = 2.0,
        bce_weight: float = 1.0,
        dice_weight: float = 1.0,
        norm_cfg: dict[str, Any] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        for name, value in (("num_classes", num_classes), ("in_channels", in_channels), ("channels", channels)):
            check_int(name, value, 1)
        check_int("num_convs", num_convs, 0)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.positive_weight = check_number("positive_weight", positive_weight, 0, above=True)
        self.bce_weight = check_number("bce_weight", bce_weight, 0)
        check_number("dice_weight", dice_weight, 0)
        # An eps of 1 makes a class that is neither there nor predicted right.
        self.dice_loss = DiceLoss(naive_dice=True, loss_weight=dice_weight, eps=1.0)
        widths = [in_channels, *[channels] * num_convs]
        norm_cfg = dict(type="BN") if norm_cfg is None else norm_cfg
        self.convs = nn.Sequential(
            *(ConvModule(before, channels, 3, padding=1, norm_cfg=norm_cfg) for before in widths[:-1])
        )
        self.classify = nn.Conv2d(widths[-1], num_classes, 1)

    def forward(self, bev: Tensor, size: tuple[int, int]) -> Tensor:
        """Class logits.

        Args:
            bev: (B, rows * columns, C).
            size: Rows and columns.

        Returns:
            (B, num_classes, rows, columns).

        Raises:
            ValueError: A map of another shape.
        """
        check_shape("bev", bev, B=None, Q=size[0] * size[1], C=self.in_channels)
        return self.classify(self.convs(bev.transpose(1, 2).unflatten(2, size)))

    def loss(self, bev: Tensor, size: tuple[int, int], targets: Sequence[Tensor]) -> dict[str, Tensor]:
        """Losses, to be added up.

        Args:
            bev: (B, rows * columns, C).
            size: Rows and columns.
            targets: Of each sample (num_classes, rows, columns), 1 or True in cells of the class, else 0.

        Returns:
            `loss_bev_bce` and `loss_bev_dice`.

        Raises:
            ValueError: A map or targets of another shape.
        """
        logits = self.forward(bev, size)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if len(targets) != logits.shape[0]:
            raise ValueError(f"targets of {len(targets)} samples, maps of {logits.shape[0]}")
        for i, target in enumerate(targets):
            check_shape(f"targets[{i}]", target, classes=self.num_classes, rows=size[0], columns=size[1])
        wanted = torch.stack([target.to(logits) for target in targets])
        weight = logits.new_tensor(self.positive_weight)
        bce = F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=weight)
        # Of each class over the batch.
        dice = self.dice_loss(logits.transpose(0, 1), wanted.transpose(0, 1))
        return {"loss_bev_bce": self.bce_weight * bce, "loss_bev_dice": dice}

    def predict(self, bev: Tensor, size: tuple[int, int]) -> Tensor:
        """Scores from 0 to 1, (B, num_classes, rows, columns), float32 at least."""
        logits = self.forward(bev, size)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()
