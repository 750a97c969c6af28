"""Small detectors and segmentors for the tests of the export and of its wrappers."""

import copy
from collections.abc import Sequence
from pathlib import Path

import onnxruntime
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

import attnzoo.heads  # noqa: F401  registers the backbones

CLASSES = 3
# Of the images for comparisons with mm: (B, H, W), even ones, and one with sides that no stride divides.
SHAPES = [(2, 96, 96), (1, 75, 133)]
_NORM = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
_BACKBONES = {
    "van": dict(model_name="van_b0", depths=(1, 1, 1, 1), embed_dims=(8, 16, 24, 32)),
    "mscan": dict(model_name="mscan_tiny", depths=(1, 1, 1, 1), embed_dims=(8, 16, 24, 32)),
    "biformer": dict(model_name="biformer_tiny", depths=(1, 1, 1, 1), embed_dims=(32, 32, 64, 64)),
}
_NMS = dict(type="nms", iou_threshold=0.5)
_ANCHORS = dict(type="AnchorGenerator", ratios=[1.0], octave_base_scale=8, scales_per_octave=1, strides=[8, 16, 32])
_FOCAL = dict(type="FocalLoss", use_sigmoid=True)
_GIOU = dict(type="GIoULoss")
_DELTA = dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2])
_DENSE = dict(num_classes=CLASSES, in_channels=16, feat_channels=16, stacked_convs=1)
_GROUP = dict(type="GN", num_groups=4)
_POINTS = dict(type="MlvlPointGenerator", offset=0, strides=[8, 16, 32])
_HEADS = {
    "retina": dict(
        type="RetinaHead", anchor_generator=_ANCHORS | dict(ratios=[0.5, 1.0, 2.0]), bbox_coder=_DELTA, loss_cls=_FOCAL
    ),
    "fsaf": dict(
        type="FSAFHead", reg_decoded_bbox=True, anchor_generator=_ANCHORS | dict(octave_base_scale=1),
        bbox_coder=dict(type="TBLRBBoxCoder", normalizer=4.0), loss_cls=_FOCAL | dict(reduction="none"),
        loss_bbox=dict(type="IoULoss", reduction="none"),
    ),
    "atss": dict(type="ATSSHead", norm_cfg=_GROUP, anchor_generator=_ANCHORS, bbox_coder=_DELTA, loss_cls=_FOCAL,
                 loss_bbox=_GIOU, loss_centerness=dict(type="CrossEntropyLoss", use_sigmoid=True)),
    "gfl": dict(type="GFLHead", norm_cfg=_GROUP, anchor_generator=_ANCHORS, reg_max=8, loss_bbox=_GIOU,
                loss_cls=dict(type="QualityFocalLoss", use_sigmoid=True),
                loss_dfl=dict(type="DistributionFocalLoss", loss_weight=0.25)),
    "fcos": dict(type="FCOSHead", norm_cfg=_GROUP, strides=[8, 16, 32],
                 regress_ranges=((-1, 64), (64, 128), (128, 10000))),
    "rtmdet": dict(type="RTMDetSepBNHead", share_conv=False, anchor_generator=_POINTS, exp_on_reg=True,
                   bbox_coder=dict(type="DistancePointBBoxCoder"), loss_bbox=_GIOU,
                   loss_cls=dict(type="QualityFocalLoss", use_sigmoid=True)),
}  # fmt: skip
_DETECTORS = {"retina": "RetinaNet", "fsaf": "FSAF", "atss": "ATSS", "gfl": "GFL", "fcos": "FCOS", "rtmdet": "RTMDet"}


def _backbone(name: str, out_indices: tuple[int, ...]) -> dict:
    return dict(type="attnzoo.Backbone", out_indices=out_indices, **_BACKBONES[name])


def _channels(name: str, out_indices: tuple[int, ...]) -> list[int]:
    return [_BACKBONES[name]["embed_dims"][i] for i in out_indices]


def dense(head: str, backbone: str) -> Config:
    """A single-stage detector of three classes with strides 8, 16 and 32."""
    levels = (1, 2, 3)
    model = dict(
        type=_DETECTORS[head],
        data_preprocessor=dict(type="DetDataPreprocessor", pad_size_divisor=32, **_NORM),
        backbone=_backbone(backbone, levels),
        neck=dict(type="FPN", in_channels=_channels(backbone, levels), out_channels=16, num_outs=3),
        bbox_head=_HEADS[head] | _DENSE,
        test_cfg=dict(nms_pre=100, min_bbox_size=0, score_thr=0.0, nms=_NMS, max_per_img=20),
    )
    return Config(dict(default_scope="mmdet", model=model))


def two_stage(backbone: str, masks: bool, levels: tuple[int, ...] = (0, 1, 2, 3)) -> Config:
    """Faster or Mask R-CNN of three classes, on these levels of the backbone and one more for proposals."""
    strides = [4 * 2**level for level in levels]
    pool = dict(type="SingleRoIExtractor", out_channels=16, featmap_strides=strides, finest_scale=16)
    align = dict(type="RoIAlign", sampling_ratio=0)
    roi = dict(
        type="StandardRoIHead",
        bbox_roi_extractor=pool | dict(roi_layer=align | dict(output_size=7)),
        bbox_head=dict(
            type="Shared2FCBBoxHead", in_channels=16, fc_out_channels=32, num_classes=CLASSES, bbox_coder=_DELTA
        ),
    )
    if masks:
        roi |= dict(
            mask_roi_extractor=pool | dict(roi_layer=align | dict(output_size=14)),
            mask_head=dict(
                type="FCNMaskHead", num_convs=1, in_channels=16, conv_out_channels=16, num_classes=CLASSES,
                loss_mask=dict(type="CrossEntropyLoss", use_mask=True),
            ),
        )  # fmt: skip
    model = dict(
        type="MaskRCNN" if masks else "FasterRCNN",
        data_preprocessor=dict(type="DetDataPreprocessor", pad_size_divisor=32, **_NORM),
        backbone=_backbone(backbone, levels),
        neck=dict(type="FPN", in_channels=_channels(backbone, levels), out_channels=16, num_outs=len(levels) + 1),
        rpn_head=dict(
            type="RPNHead", in_channels=16, feat_channels=16, bbox_coder=_DELTA,
            anchor_generator=dict(
                type="AnchorGenerator", scales=[4], ratios=[0.5, 1.0, 2.0], strides=[*strides, 2 * strides[-1]]
            ),
        ),
        roi_head=roi,
        train_cfg=None,
        test_cfg=dict(
            rpn=dict(nms_pre=100, max_per_img=50, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
            rcnn=dict(score_thr=0.05, nms=_NMS, max_per_img=20, mask_thr_binary=0.5),
        ),
    )  # fmt: skip
    return Config(dict(default_scope="mmdet", model=model))


_LOSS = dict(type="CrossEntropyLoss")
_SEG_HEADS = {
    "fpn": dict(type="FPNHead", feature_strides=[4, 8, 16, 32]),
    "uper": dict(type="UPerHead", pool_scales=(1, 2, 3, 6)),
    "ham": dict(type="attnzoo.LightHamHead", ham_channels=16, ham_kwargs=dict(MD_R=4)),
}


def segmentor(head: str, backbone: str, classes: int = CLASSES, **preprocessor) -> Config:
    """A segmentor on strides 4 to 32, LightHam's on 8 to 32."""
    levels = (1, 2, 3) if head == "ham" else (0, 1, 2, 3)
    decode = _SEG_HEADS[head] | dict(
        in_channels=_channels(backbone, levels), in_index=list(range(len(levels))), channels=16, num_classes=classes,
        norm_cfg=dict(type="BN"), align_corners=False, loss_decode=_LOSS,
    )  # fmt: skip
    model = dict(
        type="EncoderDecoder",
        data_preprocessor=dict(type="SegDataPreProcessor", **_NORM, **preprocessor),
        backbone=_backbone(backbone, levels),
        decode_head=decode,
        test_cfg=dict(mode="whole"),
    )
    return Config(dict(default_scope="mmseg", model=model))


def lively(cfg: Config, seed: int = 0) -> nn.Module:
    """The model of a config with weights whose predictions differ from place to place, as those of a trained one do."""
    init_default_scope(cfg.default_scope)
    torch.manual_seed(seed)
    model = MODELS.build(copy.deepcopy(cfg.model))
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and "backbone" not in name:
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def images(batch: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Whole-numbered blots on a ramp (B, 3, H, W), 0 to 255, the like of a photograph in its statistics."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, height // 8 + 2, width // 8 + 2, generator=generator)
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return (smooth * 255 + torch.rand(smooth.shape, generator=generator) * 20).clamp(0, 255).round()


def predict(model: nn.Module, batch: Tensor, sample_class: type) -> list:
    """What `predict` of mm gives for images (B, 3, H, W) of whole numbers, a sample each."""
    samples = []
    for image in batch:
        size = tuple(image.shape[1:])
        sample = sample_class(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)))
        samples.append(sample)
    # mm's pipeline hands over BGR bytes.
    with torch.no_grad():
        return model.test_step(dict(inputs=[image.flip(0).byte() for image in batch], data_samples=samples))


def compare_detections(
    model: nn.Module, outputs: tuple[Tensor, ...], batch: Tensor, limit: int = 20
) -> list[DetDataSample]:
    """Assert that boxes, scores and labels are those of `predict`, whose samples are returned."""
    boxes, scores, labels = outputs[:3]
    assert boxes.shape == (len(batch), limit, 4)
    samples = predict(model, batch, DetDataSample)
    for i, sample in enumerate(samples):
        expected = sample.pred_instances
        count = len(expected)
        assert count > 5
        torch.testing.assert_close(scores[i, :count], expected.scores, rtol=0, atol=1e-6)
        torch.testing.assert_close(boxes[i, :count], expected.bboxes, rtol=0, atol=1e-4)
        assert torch.equal(labels[i, :count], expected.labels)
        assert (labels[i, count:] == -1).all() and (scores[i, count:] == 0).all()
    return samples


class Levels(nn.Module):
    """A head of four maps, which it takes one by one: ONNX has no lists of inputs, and PyTorch 2.9 no `*levels`."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def forward(self, first: Tensor, second: Tensor, third: Tensor, fourth: Tensor) -> Tensor:
        return self.head([first, second, third, fourth])


def export_free(model: nn.Module, maps: Sequence[Tensor], folder: Path) -> onnxruntime.InferenceSession:
    """ONNX Runtime on a model that was exported with maps (B, C, H, W), their batches, heights and widths free."""
    free = torch.export.Dim.DYNAMIC
    shapes = tuple({0: free, 2: free, 3: free} for _ in maps)
    torch.onnx.export(
        model,
        tuple(maps),
        str(folder / "model.onnx"),
        dynamo=True,
        verbose=False,
        opset_version=20,
        dynamic_shapes=shapes,
    )
    return onnxruntime.InferenceSession(folder / "model.onnx")


def run(session: onnxruntime.InferenceSession, *maps: Tensor) -> list[Tensor]:
    """The outputs for these inputs, in their order."""
    names = [node.name for node in session.get_inputs()]
    feed = {name: x.numpy() for name, x in zip(names, maps, strict=True)}
    return [torch.from_numpy(output) for output in session.run(None, feed)]
