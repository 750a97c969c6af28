"""The traceable wrappers give what `predict` of the mm libraries gives."""

import pytest
import torch
from deploy_models import dense, images, lively, segmentor, two_stage
from mmdet.structures import DetDataSample
from mmseg.structures import SegDataSample
from torch import nn
from torch.nn import functional as F

from attnzoo.heads.deploy import AveragePool, Suppression, UnsupportedModelError, clip, deploy, make_traceable, top

SHAPES = [(2, 96, 96), (1, 75, 133)]
DETECTORS = {
    "retina-van": lambda: dense("retina", "van"),
    "fsaf-van": lambda: dense("fsaf", "van"),
    "atss-van": lambda: dense("atss", "van"),
    "gfl-biformer": lambda: dense("gfl", "biformer"),
    "fcos-van": lambda: dense("fcos", "van"),
    "rtmdet-van": lambda: dense("rtmdet", "van"),
    "faster_rcnn-biformer": lambda: two_stage("biformer", masks=False),
    "mask_rcnn-van": lambda: two_stage("van", masks=True),
}
SEGMENTORS = {
    "fpn-van": lambda: segmentor("fpn", "van"),
    "fpn-biformer": lambda: segmentor("fpn", "biformer"),
    "uper-van": lambda: segmentor("uper", "van"),
    "ham-mscan": lambda: segmentor("ham", "mscan"),
    "ham-mscan-padded": lambda: segmentor("ham", "mscan", test_cfg=dict(size_divisor=32)),
}


def predict(model, batch, sample_class):
    samples = []
    for image in batch:
        size = tuple(image.shape[1:])
        sample = sample_class(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)))
        samples.append(sample)
    # mm's pipeline hands over BGR bytes.
    with torch.no_grad():
        return model.test_step(dict(inputs=[image.flip(0).byte() for image in batch], data_samples=samples))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", DETECTORS)
def test_detector_equals_predict(name, shape):
    model = lively(DETECTORS[name]())
    wrapper = deploy(model)
    batch = images(*shape)
    with torch.no_grad():
        boxes, scores, labels, *masks = wrapper(batch)
    assert boxes.shape == (shape[0], 20, 4)
    for i, sample in enumerate(predict(model, batch, DetDataSample)):
        expected = sample.pred_instances
        count = len(expected)
        assert count > 5
        torch.testing.assert_close(scores[i, :count], expected.scores, rtol=0, atol=1e-6)
        torch.testing.assert_close(boxes[i, :count], expected.bboxes, rtol=0, atol=1e-4)
        assert torch.equal(labels[i, :count], expected.labels)
        assert (labels[i, count:] == -1).all() and (scores[i, count:] == 0).all()
        for mask in masks:
            # mm pastes the masks, so compare where the thresholded probabilities of large boxes land.
            agreement = [
                (paste(mask[i, j], boxes[i, j], shape[1:]) == expected.masks[j]).float().mean() for j in range(count)
            ]
            assert min(agreement) > 0.999


def paste(mask, box, size):
    """The mask of an image (H, W) from probabilities over a box, by sampling at the centres of pixels."""
    x1, y1, x2, y2 = box
    x = (torch.arange(size[1]) + 0.5 - x1) / (x2 - x1) * 2 - 1
    y = (torch.arange(size[0]) + 0.5 - y1) / (y2 - y1) * 2 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
    return F.grid_sample(mask[None, None], grid, align_corners=False)[0, 0] >= 0.5


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", SEGMENTORS)
def test_segmentor_equals_predict(name, shape):
    model = lively(SEGMENTORS[name]())
    batch = images(*shape)
    with torch.no_grad():
        logits, labels = deploy(model)(batch)
    assert len(labels.unique()) > 1
    for i, sample in enumerate(predict(model, batch, SegDataSample)):
        torch.testing.assert_close(logits[i], sample.seg_logits.data, rtol=0, atol=1e-5)
        assert torch.equal(labels[i], sample.pred_sem_seg.data[0])


def test_one_output_channel_is_thresholded():
    cfg = segmentor("fpn", "van", classes=2)
    cfg.model.decode_head.update(
        out_channels=1, threshold=0.4, loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=True)
    )
    model = lively(cfg)
    batch = images(1, 64, 96)
    with torch.no_grad():
        probability, labels = deploy(model)(batch)
    expected = predict(model, batch, SegDataSample)[0]
    torch.testing.assert_close(probability[0], expected.seg_logits.data, rtol=0, atol=1e-6)
    assert torch.equal(labels[0], expected.pred_sem_seg.data[0].long())
    assert labels.unique().tolist() == [0, 1]


def test_score_threshold_and_class_agnostic_suppression_hold():
    cfg = dense("retina", "van")
    cfg.model.test_cfg.update(score_thr=0.9, nms=dict(type="nms", iou_threshold=0.3, class_agnostic=True))
    model = lively(cfg)
    batch = images(2, 96, 96)
    with torch.no_grad():
        _, scores, labels = deploy(model)(batch)
    for i, sample in enumerate(predict(model, batch, DetDataSample)):
        count = len(sample.pred_instances)
        assert 0 < count < 20
        torch.testing.assert_close(scores[i, :count], sample.pred_instances.scores, rtol=0, atol=1e-6)
        assert (labels[i, count:] == -1).all()


def test_nothing_found():
    cfg = two_stage("van", masks=True)
    cfg.model.test_cfg.rcnn.score_thr = 2.0
    boxes, scores, labels, masks = deploy(lively(cfg))(images(1, 64, 64))
    assert (labels == -1).all() and (scores == 0).all() and (boxes == 0).all()
    assert masks.shape == (1, 20, 28, 28) and masks.isfinite().all()


@pytest.mark.parametrize("bins", [(2, 3), (6, 6), (7, 1)], ids=str)
@pytest.mark.parametrize("size", [(6, 9), (7, 5), (13, 31), (2, 3)], ids=str)
def test_average_pool_is_adaptive_pooling(size, bins):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(AveragePool(bins)(x), F.adaptive_avg_pool2d(x, bins), rtol=1e-12, atol=1e-12)


def test_make_traceable_replaces_nested_pools_and_leaves_global_ones():
    model = nn.Sequential(nn.Sequential(nn.AdaptiveAvgPool2d((3, 2))), nn.AdaptiveAvgPool2d(1))
    x = torch.randn(1, 4, 9, 11)
    expected = model(x)
    torch.testing.assert_close(make_traceable(model)(x), expected)
    assert type(model[0][0]) is AveragePool and type(model[1]) is nn.AdaptiveAvgPool2d


def test_make_traceable_replaces_a_pool_under_each_of_its_names_and_by_itself():
    pool = nn.AdaptiveAvgPool2d(2)
    model = make_traceable(nn.ModuleDict({"a": pool, "b": pool}))
    assert type(model["a"]) is type(model["b"]) is AveragePool
    assert type(make_traceable(pool)) is AveragePool


def test_deploy_leaves_the_model_as_it_is():
    model = lively(segmentor("uper", "van")).train()
    deploy(model)
    assert model.training and all(parameter.requires_grad for parameter in model.decode_head.parameters())
    assert not any(isinstance(module, AveragePool) for module in model.modules())


def test_top_of_a_short_row_fills_with_minus_one():
    values, index = top(torch.tensor([[0.1, 0.9, 0.5]]), 5)
    torch.testing.assert_close(values, torch.tensor([[0.9, 0.5, 0.1, -1, -1]]))
    assert index[0, :3].tolist() == [1, 2, 0] and index.max() < 3


def test_clip_keeps_the_order_of_corners():
    boxes = torch.tensor([[-3.0, 4.0, 50.0, 90.0], [1.0, -2.0, 7.0, 8.0]])
    assert clip(boxes, 60, 40).tolist() == [[0, 4, 40, 60], [1, 0, 7, 8]]


def test_suppression_keeps_images_and_groups_apart():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10]]]).expand(2, -1, -1)
    scores = torch.tensor([[0.9, 0.8, 0.7], [0.5, 0.6, 0.4]])
    groups = torch.tensor([[0, 0, 1], [0, 0, 1]])
    suppress = Suppression(dict(type="nms", iou_threshold=0.5), limit=3)
    values, index = suppress(boxes, scores, groups, torch.ones(2, 3, dtype=torch.bool))
    torch.testing.assert_close(values, torch.tensor([[0.9, 0.7, -1], [0.6, 0.4, -1]]))
    assert index[:, :2].tolist() == [[0, 2], [1, 2]]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize("candidate", [False, True])
def test_a_box_without_bounds_is_none_and_harms_no_other_image(value, candidate):
    boxes = torch.tensor([[[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10]]]).repeat(2, 1, 1)
    boxes[0, 2, 2] = value
    scores, groups = torch.tensor([[0.9, 0.8, 0.7]] * 2), torch.zeros(2, 3, dtype=torch.int64)
    valid = torch.ones(2, 3, dtype=torch.bool)
    valid[0, 2] = candidate and value != 1e30
    suppress = Suppression(dict(type="nms", iou_threshold=0.5), limit=3)
    values, _ = suppress(boxes, scores, groups, valid)
    torch.testing.assert_close(values, torch.tensor([[0.9, -1, -1], [0.9, -1, -1]]))


def _soft_nms():
    cfg = dense("gfl", "van")
    cfg.model.test_cfg.nms = dict(type="soft_nms", iou_threshold=0.5)
    return cfg


def _slide():
    cfg = segmentor("fpn", "van")
    cfg.model.test_cfg = dict(mode="slide", crop_size=(32, 32), stride=(16, 16))
    return cfg


def _other_head():
    cfg = dense("gfl", "van")
    cfg.model.bbox_head = dict(type="YOLOXHead", num_classes=3, in_channels=16, feat_channels=16, stacked_convs=1)
    return cfg


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_soft_nms, "soft_nms.*allowed: type='nms'"),
        (_slide, "'slide'.*allowed: 'whole'"),
        (_other_head, "YOLOXHead.*allowed: GFLHead"),
        (lambda: segmentor("fpn", "van", test_cfg=dict(size=(64, 64))), "allowed: test_cfg.size_divisor"),
    ],
    ids=["soft_nms", "slide", "head", "fixed_pad"],
)
def test_what_has_no_traceable_form_is_named(make, message):
    with pytest.raises(UnsupportedModelError, match=message):
        deploy(lively(make()))


def test_a_model_that_is_no_detector_is_named():
    with pytest.raises(UnsupportedModelError, match="Linear has no traceable form"):
        deploy(nn.Linear(1, 1))
