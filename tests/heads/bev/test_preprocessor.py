"""Batches of camera images."""

import pytest
import torch
from mmengine.structures import BaseDataElement

import attnzoo.heads  # noqa: F401  installs mmcv's operators
from attnzoo.heads.bev.preprocessor import BEVDataPreprocessor, grid_mask

NONE = dict(mean=(0, 0, 0), std=(1, 1, 1))


def test_normalised_and_padded():
    images = torch.arange(2 * 2 * 3 * 5 * 7, dtype=torch.uint8).view(2, 2, 3, 5, 7)
    sample = BaseDataElement(gt_depth=torch.ones(2, 5, 7))
    module = BEVDataPreprocessor((1, 2, 3), (2, 4, 8), bgr_to_rgb=True, pad_size_divisor=4)
    data = module(dict(inputs=[images], data_samples=[sample]))
    assert data["inputs"].shape == (1, 2, 2, 3, 8, 8) and data["inputs"].dtype == torch.float32
    want = (images.flip(2).float() - torch.tensor([1, 2, 3])[:, None, None]) / torch.tensor([2, 4, 8])[:, None, None]
    torch.testing.assert_close(data["inputs"][0, ..., :5, :7], want)
    assert not data["inputs"][..., 5:, :].any() and not data["inputs"][..., 7:].any()
    (found,) = data["data_samples"]
    assert found.img_shape == (8, 8) and found.gt_depth.shape == (2, 8, 8) and found.gt_depth.sum() == 70
    assert sample.gt_depth.shape == (2, 5, 7)


def test_single_frames_of_other_sizes():
    data = BEVDataPreprocessor(**NONE, pad_size_divisor=1)(
        dict(inputs=[torch.ones(2, 3, 4, 6), torch.ones(2, 3, 5, 3)])
    )
    assert data["inputs"].shape == (2, 1, 2, 3, 5, 6)


def test_holes_of_the_last_frame():
    """At the same places of all cameras and of the depth; not in evaluation, nor in frames of history."""
    module = BEVDataPreprocessor(**NONE, grid_mask=dict(prob=1.0))
    given = dict(inputs=[torch.ones(2, 3, 3, 64, 96)] * 2)
    given["data_samples"] = [
        BaseDataElement(gt_depth=torch.ones(2, 3, 64, 96)),
        BaseDataElement(gt_depth=torch.ones(3, 64, 96)),
    ]
    data = module(given, training=True)
    kept = data["inputs"][:, -1, 0, 0]
    assert data["inputs"][:, 0].all() and 0.5 < kept.mean() < 0.95
    assert not torch.equal(kept[0], kept[1])
    assert torch.equal(data["inputs"][:, -1], kept[:, None, None].expand(-1, 3, 3, -1, -1))
    first, second = (sample.gt_depth for sample in data["data_samples"])
    assert first[0].all() and torch.equal(first[1], kept[0].expand(3, -1, -1))
    assert torch.equal(second, kept[1].expand(3, -1, -1))
    assert given["data_samples"][1].gt_depth.all()
    assert module(given)["inputs"].all()


def test_grid_of_holes(monkeypatch):
    draws = iter([torch.tensor(4), torch.tensor([1, 3])])
    monkeypatch.setattr(torch, "randint", lambda *_: next(draws))
    assert (~grid_mask(6, 9, 0.5)).int().tolist() == [
        [0, 0, 0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 1, 1, 0, 0, 1, 1], [1, 0, 0, 1, 1, 0, 0, 1, 1],
        [0, 0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 1, 1, 0, 0, 1, 1],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(mean=(1, 2)), r"mean=\(1, 2\): must be three numbers"),
        (dict(std=(1, 0, 1)), r"std\[1\]=0: must be above 0"),
        (dict(pad_size_divisor=0), "pad_size_divisor=0: must be 1 or more"),
        (dict(grid_mask=dict(rate=1)), "grid_mask: has no 'rate'; allowed are ratio, prob"),
        (dict(grid_mask=dict(prob=2)), "grid_mask.prob=2: must be from 0 to 1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        BEVDataPreprocessor(**arguments)


def test_bad_input():
    for other in (torch.ones(3, 4, 6), torch.ones(1, 2, 1, 4, 6), torch.ones(1, 3, 3, 4, 6)):
        with pytest.raises(
            ValueError, match=r"inputs\[1\] must be \(frames, cameras, 3, H, W\), frames and cameras as in"
        ):
            BEVDataPreprocessor()(dict(inputs=[torch.ones(1, 2, 3, 4, 6), other]))
