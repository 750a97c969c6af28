"""The segmentation head."""

import golden_files
import pytest
import torch
import torch.nn.functional as F

import attnzoo.heads  # noqa: F401  installs mmcv's operators
from attnzoo.heads.bev.segmentation_head import BEVSegmentationHead

SIZE = (4, 5)


def head(**options) -> BEVSegmentationHead:
    return BEVSegmentationHead(**dict(num_classes=2, in_channels=8, channels=6) | options)


def test_cells_keep_their_places():
    """Without convolutions a cell's logits come from its own features."""
    module, bev = head(num_convs=0), golden_files.noise((2, 20, 8), 0).float()
    logits = module(bev, SIZE)
    assert logits.shape == (2, 2, 4, 5)
    want = F.linear(bev[:, 7], module.classify.weight[:, :, 0, 0], module.classify.bias)
    torch.testing.assert_close(logits[:, :, 1, 2], want)


def test_losses_by_hand():
    module = head(num_convs=0, positive_weight=3.0, bce_weight=0.5, dice_weight=2.0)
    bev = golden_files.noise((2, 20, 8), 0).float()
    targets = [golden_files.noise((2, *SIZE), seed) > 0.5 for seed in (1, 2)]
    found = module(bev, SIZE).sigmoid()
    wanted = torch.stack(targets).float()
    bce = -(3 * wanted * found.log() + (1 - wanted) * (1 - found).log()).mean()
    dice = [
        1 - (2 * (found[:, k] * wanted[:, k]).sum() + 1) / (found[:, k].sum() + wanted[:, k].sum() + 1)
        for k in range(2)
    ]
    losses = module.loss(bev, SIZE, targets)
    torch.testing.assert_close(losses["loss_bev_bce"], 0.5 * bce)
    torch.testing.assert_close(losses["loss_bev_dice"], 2 * sum(dice) / 2)
    torch.testing.assert_close(module.predict(bev, SIZE), found)


def test_it_learns():
    module, bev = head().train(), golden_files.noise((1, 20, 8), 0).float()
    target = golden_files.noise((2, *SIZE), 1) > 0
    optimizer = torch.optim.Adam(module.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        sum(module.loss(bev, SIZE, [target]).values()).backward()
        optimizer.step()
    assert ((module.predict(bev, SIZE)[0] > 0.5) == target).float().mean() > 0.95


def test_an_empty_map():
    losses = head().loss(golden_files.noise((1, 20, 8), 0).float(), SIZE, [torch.zeros(2, *SIZE)])
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_classes=0), "num_classes=0: must be 1 or more"),
        (dict(num_convs=-1), "num_convs=-1: must be 0 or more"),
        (dict(positive_weight=0), "positive_weight=0: must be above 0"),
        (dict(dice_weight="1"), "dice_weight='1': must be a number"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        head(**arguments)


def test_bad_input():
    bev = torch.zeros(1, 20, 8)
    with pytest.raises(ValueError, match=r"bev must be \(B, Q=20, C=8\), got shape \(1, 20, 7\)"):
        head()(bev[..., :7], SIZE)
    with pytest.raises(
        ValueError, match=r"targets\[0\] must be \(classes=2, rows=4, columns=5\), got shape \(2, 5, 4\)"
    ):
        head().loss(bev, SIZE, [torch.zeros(2, 5, 4)])
    with pytest.raises(ValueError, match="targets of 0 samples, maps of 1"):
        head().loss(bev, SIZE, [])
