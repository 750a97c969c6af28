"""albumentations in pipelines: what belongs together moves together, and every sample draws anew."""

import numpy as np
import pytest
import torch
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.dataset import worker_init_fn
from mmengine.registry import TRANSFORMS
from torch.utils.data import DataLoader, Dataset

import attnzoo.heads  # noqa: F401  registers the transform

SIZE = (40, 56)
BOXES = [(4, 6, 14, 20), (30, 10, 50, 22), (20, 25, 36, 38)]


def build(*steps, **options):
    return TRANSFORMS.build(dict(type="attnzoo.Albumentations", transforms=list(steps), **options))


def sample(boxes=BOXES, polygons=False):
    """An image in which each box is filled with its own grey, as its masks and the label map tell, too."""
    image = np.zeros((*SIZE, 3), np.uint8)
    labels = np.zeros(SIZE, np.uint8)
    masks = np.zeros((len(boxes), *SIZE), np.uint8)
    for index, (x1, y1, x2, y2) in enumerate(boxes):
        image[y1:y2, x1:x2] = 60 * (index + 1)
        labels[y1:y2, x1:x2] = index + 1
        masks[index, y1:y2, x1:x2] = 1
    outlines = [[np.array([x1, y1, x2, y1, x2, y2, x1, y2], float)] for x1, y1, x2, y2 in boxes]
    return dict(
        img=image,
        img_shape=SIZE,
        gt_seg_map=labels,
        gt_bboxes=HorizontalBoxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        gt_bboxes_labels=np.arange(len(boxes)) + 1,
        gt_ignore_flags=np.arange(len(boxes)) == 1,
        gt_masks=PolygonMasks(outlines, *SIZE) if polygons else BitmapMasks(masks, *SIZE),
    )


def check_together(results, slack=1e-3):
    """Every box, mask, label and flag fits the greys of the image, the box but for `slack` pixels."""
    image, labels, masks = results["img"], results["gt_seg_map"], results["gt_masks"].masks
    numbers = results["gt_bboxes_labels"]
    assert len(results["gt_bboxes"]) == len(masks) == len(numbers) == len(results["gt_ignore_flags"])
    assert image.shape[:2] == labels.shape == results["img_shape"] == masks.shape[1:]
    known = labels != 255
    assert np.array_equal(image[known, 0], 60 * labels[known])
    assert (image[~known] == 0).all()
    for box, mask, number, flag in zip(
        results["gt_bboxes"].tensor.tolist(), masks, numbers, results["gt_ignore_flags"], strict=True
    ):
        assert flag == (number == 2)
        assert np.array_equal(mask.astype(bool), labels == number)
        rows, columns = np.nonzero(mask)
        # Rotations by other than quarter turns widen a box.
        assert box[0] <= columns.min() + slack and box[2] >= columns.max() + 1 - slack
        assert box[1] <= rows.min() + slack and box[3] >= rows.max() + 1 - slack
    return results


@pytest.mark.parametrize("polygons", [False, True])
@pytest.mark.parametrize(
    "step",
    [
        dict(type="HorizontalFlip", p=1.0),
        dict(type="VerticalFlip", p=1.0),
        dict(type="D4", p=1.0),
        dict(type="RandomCrop", height=30, width=30, p=1.0),
        dict(type="OneOf", transforms=[dict(type="Transpose"), dict(type="RandomRotate90")], p=1.0),
    ],
    ids=lambda step: step["type"],
)
def test_all_move_together(step, polygons):
    np.random.seed(0)
    for _ in range(6):
        results = check_together(build(step)(sample(polygons=polygons)))
        for box, mask in zip(results["gt_bboxes"].tensor.tolist(), results["gt_masks"].masks, strict=True):
            rows, columns = np.nonzero(mask)
            assert box == pytest.approx([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], abs=1e-3)


def test_rotation_fills_with_what_is_ignored():
    np.random.seed(1)
    step = dict(type="Rotate", limit=(30, 60), interpolation=0, p=1.0)
    for _ in range(4):
        results = check_together(build(step)(sample()), slack=1)
        assert (results["gt_seg_map"] == 255).any()
        assert set(np.unique(results["gt_masks"].masks)) <= {0, 1}


def test_lost_boxes_take_all_that_is_theirs_along():
    crop = dict(type="Crop", x_min=0, y_min=0, x_max=19, y_max=24)
    results = check_together(build({**crop, "p": 1.0})(sample()))
    assert results["gt_bboxes_labels"].tolist() == [1]
    assert results["gt_bboxes"].tensor.tolist() == [[4, 6, 14, 20]]
    crop.update(x_max=10)
    assert len(build({**crop, "p": 1.0}, min_visibility=0.5)(sample())["gt_masks"]) == 1
    assert len(build({**crop, "p": 1.0}, min_visibility=0.7)(sample())["gt_masks"]) == 0


@pytest.mark.parametrize("boxes", [[], BOXES[:1]], ids=["none", "one"])
def test_few_boxes(boxes):
    results = build(dict(type="RandomCrop", height=24, width=24, p=1.0))(sample(boxes))
    assert results["gt_masks"].masks.shape[1:] == (24, 24)
    assert results["gt_bboxes"].tensor.shape[1] == 4


def test_mmseg_and_pairs():
    np.random.seed(0)
    flip = build(dict(type="HorizontalFlip", p=1.0))
    whole = sample()
    results = flip(dict(img=whole["img"], gt_seg_map=whole["gt_seg_map"]))
    assert np.array_equal(results["gt_seg_map"], whole["gt_seg_map"][:, ::-1])
    turn = build(dict(type="D4", p=1.0))
    large = np.random.randint(0, 256, (24, 32, 3), np.uint8)
    seen = set()
    for _ in range(60):
        results = turn(dict(img=large[::2, ::2], gt=large))
        assert np.array_equal(results["img"].shape, [side // 2 for side in results["gt"].shape[:2]] + [3])
        corners = [results["gt"][y, x].tolist() for y in (0, -1) for x in (0, -1)]
        seen.add(str(corners))
        image, gt = results["img"], results["gt"]
        assert any(np.array_equal(image, gt[y::2, x::2]) for y in (0, 1) for x in (0, 1))
    assert len(seen) == 8


def test_channels_reach_albumentations_as_rgb():
    blue = np.zeros((8, 8, 3), np.uint8)
    blue[..., 0] = 200
    grey = build(dict(type="ToGray", p=1.0))(dict(img=blue))["img"]
    assert grey[0, 0].tolist() == pytest.approx([0.114 * 200] * 3, abs=1)


class Shifts(Dataset):
    """Samples whose only number is what the transform drew."""

    def __init__(self):
        self.transform = build(
            dict(type="RandomBrightnessContrast", brightness_limit=(0, 0.5), contrast_limit=(0, 0), p=1.0)
        )

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return float(self.transform(dict(img=np.full((2, 2, 3), 100, np.float32) / 400))["img"][0, 0, 0])


def stream(workers, seed, epochs=2, rank=0, monkeypatch=None, persistent=False):
    """What is drawn in some epochs, with workers seeded as mmengine seeds them: alike at each epoch."""
    monkeypatch.setenv("RANK", str(rank))
    torch.manual_seed(seed)
    np.random.seed(seed)
    loader = DataLoader(
        Shifts(),
        num_workers=workers,
        worker_init_fn=lambda index: worker_init_fn(index, workers, rank, seed),
        persistent_workers=persistent,
    )
    return [[float(value) for value in loader] for _ in range(epochs)]


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_streams_are_fresh_and_reproducible(monkeypatch, workers, persistent):
    options = dict(monkeypatch=monkeypatch, persistent=persistent)
    first, second = stream(workers, 0, **options)
    assert len(set(first + second)) == 16, "no worker and no epoch repeats another"
    assert stream(workers, 0, **options) == [first, second]
    for other in (stream(workers, 1, **options), stream(workers, 0, rank=1, **options)):
        assert not {*other[0], *other[1]} & {*first, *second}


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        (dict(type="HorizontalFlap"), ValueError, "type='HorizontalFlap' is no transform of albumentations"),
        (dict(type="Compose", transforms=[dict(p=1)]), ValueError, "type=None is no transform"),
        (dict(type="BboxParams"), ValueError, "type='BboxParams' is no transform"),
        (dict(type="Rotate", fill_mask=255), ValueError, "Rotate has fill_mask"),
        (dict(type="Rotate", limits=30), ValueError, "Rotate has no limits; allowed are limit, .*p$"),
        (
            dict(type="OneOf", transforms=[dict(type="Blur", size=3)]),
            ValueError,
            "Blur has no size; allowed are blur_lim",
        ),
        (dict(type="HorizontalFlip", p=3), ValueError, "HorizontalFlip: .*less than or equal to 1"),
        (dict(type="GaussNoise", std_range="wide"), ValueError, "GaussNoise: .*std_range"),
        (
            dict(type="OneOf", transforms=dict(type="Blur")),
            TypeError,
            "transforms=.* must be a list of dicts, got dict",
        ),
        ("HorizontalFlip", TypeError, "'HorizontalFlip' must be a dict with a type, got str"),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)
def test_bad_transforms(step, error, message):
    with pytest.raises(error, match=message):
        build(step)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(min_visibility=2), ValueError, r"min_visibility=2: must be from 0 to 1"),
        (dict(min_visibility="0.1"), TypeError, r"min_visibility='0\.1': must be a number, got str"),
        (dict(min_area=-1), ValueError, r"min_area=-1: must be 0 or more"),
        (dict(visibility=0.1), TypeError, r"unexpected keyword argument 'visibility'"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        build(dict(type="HorizontalFlip"), **options)


def test_bad_samples():
    flip = build(dict(type="HorizontalFlip", p=1.0))
    with pytest.raises(TypeError, match="gt_seg_map must be uint8, got int64"):
        flip({**sample(), "gt_seg_map": np.zeros(SIZE, np.int64)})
