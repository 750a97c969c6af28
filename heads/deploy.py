"""Traceable forms of mm's detectors and segmentors: one tensor in, tensors of fixed rank out.

`predict` of the mm libraries walks over images, filters by masks and keeps Python objects, which no tracer follows. The
modules here call the same backbone, neck, head convolutions, priors and box coders, and do the rest (choice of
candidates, decoding, suppression, pooling of regions) in tensor operations whose shapes depend on the batch, height and
width alone. They reach for torchvision's operators directly, because mmcv's are autograd functions.

    wrapper = deploy(model)          # a copy of `model`, in evaluation mode
    boxes, scores, labels = wrapper(images)

Images are float32 (B, 3, H, W) with values 0 to 255, their channels as the model's data preprocessor leaves them: RGB
where it is told `bgr_to_rgb=True`. Normalisation and padding happen inside, and all results are in pixels of the image
that was given.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from mmcv.ops import RoIAlign
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.models.dense_heads import GFLHead, RPNHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmengine.model import ImgDataPreprocessor
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import EncoderDecoder
from mmseg.models.utils import Upsample
from torch import Tensor, nn


class UnsupportedModelError(ValueError):
    """The model has a part without a traceable form; the message names it and what there is."""


def _inherits(module: nn.Module, base: type, *methods: str) -> bool:
    """Whether `module` is a `base` that leaves these methods to it, so that their traceable form here speaks for it."""
    return isinstance(module, base) and all(getattr(type(module), name) is getattr(base, name) for name in methods)


def _require(condition: bool, what: str, part: object, allowed: str) -> None:
    if not condition:
        raise UnsupportedModelError(f"{what} {part} has no traceable form; allowed: {allowed}")


class AveragePool(nn.Module):
    """`AdaptiveAvgPool2d` as two matrix products, for height and width that are known at run time only.

    Exporters unroll adaptive pooling into the windows of the traced size, and that without an error.

    Args:
        output_size: Height and width of the result.
    """

    def __init__(self, output_size: tuple[int, int]) -> None:
        super().__init__()
        self.output_size = output_size

    @staticmethod
    def weights(size: int, bins: int, like: Tensor) -> Tensor:
        """Matrix (bins, size) whose row i averages positions floor(i size / bins) to ceil((i + 1) size / bins) - 1."""
        position = torch.arange(size, device=like.device)
        row = torch.arange(bins, device=like.device)[:, None]
        start = row * size // bins
        end = ((row + 1) * size + bins - 1) // bins
        inside = ((position >= start) & (position < end)).to(like.dtype)
        return inside / (end - start)

    def forward(self, x: Tensor) -> Tensor:
        """Means over windows: (B, C, H, W) to (B, C, *output_size)."""
        rows = self.weights(x.shape[2], self.output_size[0], x)
        columns = self.weights(x.shape[3], self.output_size[1], x)
        return rows @ x @ columns.t()


class IntegerUpsample(nn.Module):
    """mmseg's `Upsample` by a whole factor, whose `int(size * 2.0)` would freeze the traced size.

    Args:
        factor: How many times height and width grow.
        mode: Of `F.interpolate`.
        align_corners: Of `F.interpolate`.
    """

    def __init__(self, factor: int, mode: str, align_corners: bool | None) -> None:
        super().__init__()
        self.factor = factor
        self.mode = mode
        self.align_corners = align_corners

    def forward(self, x: Tensor) -> Tensor:
        """Interpolate (B, C, H, W) to (B, C, factor * H, factor * W)."""
        size = (x.shape[2] * self.factor, x.shape[3] * self.factor)
        return F.interpolate(x, size, mode=self.mode, align_corners=self.align_corners)


def _traceable(module: nn.Module) -> nn.Module | None:
    """The equal of a module that would freeze the traced size, or None where there is nothing to replace."""
    if isinstance(module, nn.AdaptiveAvgPool2d):
        size: Any = module.output_size
        height, width = (size, size) if isinstance(size, int) else size
        # One mean over the whole map is exported as it is.
        if height is not None and width is not None and (height, width) != (1, 1):
            return AveragePool((height, width))
    # By a fraction it would still freeze the size, and the comparison after the export refuses that.
    if isinstance(module, Upsample) and not module.size and float(module.scale_factor).is_integer():
        return IntegerUpsample(int(module.scale_factor), module.mode, module.align_corners)
    return None


def make_traceable(model: nn.Module) -> nn.Module:
    """Replace in place all modules of `model` that would freeze the traced size by equal ones.

    Returns:
        `model`, or its own equal.
    """
    for name, module in list(model.named_modules(remove_duplicate=False)):
        replacement = _traceable(module)
        if replacement is not None and name:
            model.set_submodule(name, replacement)
    return _traceable(model) or model


class Preprocess(nn.Module):
    """What the model's data preprocessor does to a batch at test time, but for the order of channels.

    Args:
        preprocessor: mmdet's `DetDataPreprocessor` or mmseg's `SegDataPreProcessor`.

    Raises:
        UnsupportedModelError: Another preprocessor, or a padding to a fixed size.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessor: ImgDataPreprocessor) -> None:
        super().__init__()
        kind = type(preprocessor)
        _require(
            kind in (DetDataPreprocessor, SegDataPreProcessor),
            "data preprocessor",
            kind.__name__,
            "DetDataPreprocessor, SegDataPreProcessor",
        )
        self.divisor = preprocessor.pad_size_divisor
        self.pad_value = float(preprocessor.pad_value)
        if kind is SegDataPreProcessor:
            # mmseg pads at test time only as `test_cfg` says, whatever it does in training.
            test_cfg = preprocessor.test_cfg or {}
            _require(
                test_cfg.get("size") is None, "data preprocessor", f"with test_cfg={test_cfg}", "test_cfg.size_divisor"
            )
            self.divisor = test_cfg.get("size_divisor") or 1
        if preprocessor._enable_normalize:
            self.register_buffer("mean", preprocessor.mean.float())
            self.register_buffer("std", preprocessor.std.float())
        else:
            self.register_buffer("mean", torch.zeros(3, 1, 1))
            self.register_buffer("std", torch.ones(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Normalise and pad right and below: (B, 3, H, W) to (B, 3, H', W'), multiples of the divisor."""
        images = (images - self.mean) / self.std
        if self.divisor > 1:
            # A product of a positive quotient: the exporter divides it by strides again, twice as fast as a remainder,
            # and ONNX rounds negative quotients towards zero.
            below, right = (
                (size + self.divisor - 1) // self.divisor * self.divisor - size for size in images.shape[-2:]
            )
            images = F.pad(images, (0, right, 0, below), value=self.pad_value)
        return images


def top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row, also where a row is shorter.

    Args:
        scores: (B, N), above -1.
        count: How many; a constant, so that all shapes after it are known.

    Returns:
        Values (B, count), falling, -1 where there are no more, and their indices (B, count), valid everywhere.
    """
    values, index = F.pad(scores, (0, count), value=-1.0).topk(count, dim=1)
    return values, index.clamp(max=scores.shape[1] - 1)


def rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of `x` (B, N, D) at `index` (B, K): (B, K, D)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def clip(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes (..., 4) as x1, y1, x2, y2, moved into the image."""
    x = boxes[..., 0::2].clamp(min=0).minimum(torch.full_like(boxes[..., 0::2], width))
    y = boxes[..., 1::2].clamp(min=0).minimum(torch.full_like(boxes[..., 1::2], height))
    return torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), dim=-1)


def decode(coder: Any, priors: Tensor, deltas: Tensor, height: int, width: int) -> Tensor:
    """Boxes (..., 4) in pixels, from priors (..., 4 or 2) and deltas (..., 4), as the coder of the head has them."""
    # The coder's own clipping does not trace.
    boxes = coder.decode(priors.reshape(-1, priors.shape[-1]), deltas.reshape(-1, 4), max_shape=None)
    boxes = boxes.reshape(deltas.shape)
    return clip(boxes, height, width) if coder.clip_border else boxes


class Suppression:
    """Non-maximum suppression within each image and group, and the best of what it leaves.

    Args:
        cfg: `nms` of an mm test configuration.
        limit: Boxes kept for each image.
        min_size: Boxes not wider and higher than this are left out, if it is not negative.

    Raises:
        UnsupportedModelError: Another type than `"nms"`, other arguments, or no limit.
    """

    def __init__(self, cfg: dict | None, limit: int, min_size: float = -1) -> None:
        cfg = dict(cfg or {})
        known = {"type", "iou_threshold", "class_agnostic", "split_thr"}
        _require(
            cfg.get("type", "nms") == "nms" and "iou_threshold" in cfg and known.issuperset(cfg),
            "test_cfg nms",
            cfg,
            "type='nms' with iou_threshold and class_agnostic",
        )
        _require(limit > 0, "test_cfg max_per_img", limit, "positive numbers")
        self.iou_threshold = cfg["iou_threshold"]
        self.class_agnostic = cfg.get("class_agnostic", False)
        self.limit = limit
        self.min_size = min_size

    def __call__(self, boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Choose boxes.

        Args:
            boxes: (B, N, 4).
            scores: (B, N), not negative where valid.
            groups: (B, N) int64, from 0: boxes of two groups do not suppress each other.
            valid: (B, N) bool, the candidates; boxes that are not finite are none.

        Returns:
            Scores (B, limit), falling, -1 where there are no more, and their indices (B, limit) into N.
        """
        if self.min_size >= 0:
            size = boxes[..., 2:] - boxes[..., :2]
            valid = valid & (size > self.min_size).all(-1)
        # What is no candidate has no say in how far the others are moved.
        valid = valid & boxes.isfinite().all(-1)
        boxes = boxes.masked_fill(~valid[..., None], 0)
        # Groups apart in x and images in y, so that no shift, and with it the loss of digits, is larger than mmcv's.
        span = boxes.max() - boxes.min().clamp(max=0) + 1
        image = torch.arange(boxes.shape[0], device=boxes.device)[:, None].expand_as(groups)
        group = torch.zeros_like(groups) if self.class_agnostic else groups
        shift = torch.stack((group, image), dim=-1) * span
        flat_boxes = (boxes + torch.cat((shift, shift), dim=-1)).reshape(-1, 4)
        flat_scores = scores.reshape(-1)
        candidates = valid.reshape(-1).nonzero().squeeze(1)
        kept = torchvision.ops.nms(flat_boxes[candidates], flat_scores[candidates], self.iou_threshold)
        kept = candidates[kept]
        remaining = torch.full_like(flat_scores, -1).index_put((kept,), flat_scores[kept])
        return top(remaining.reshape(scores.shape), self.limit)


def _finish(boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (B, N, 4), scores and labels (B, N) with the empty places (score -1) filled by zeros and label -1."""
    empty = scores < 0
    return boxes.masked_fill(empty[..., None], 0), scores.clamp(min=0), labels.masked_fill(empty, -1)


class DensePrediction:
    """Boxes of a head that predicts at every place of a feature pyramid: candidates, decoded, before suppression.

    Args:
        head: A head that leaves prediction to mmdet's `BaseDenseHead` (RetinaNet, ATSS, FCOS, RTMDet, …), `GFLHead`, or
            `RPNHead`.
        cfg: The test configuration.

    Raises:
        UnsupportedModelError: Another head, or a configuration without a number of candidates.
    """

    def __init__(self, head: Any, cfg: dict) -> None:
        inherited = ("predict", "predict_by_feat")
        self.is_gfl = _inherits(head, GFLHead, *inherited, "_predict_by_feat_single", "_bbox_post_process")
        is_rpn = _inherits(head, RPNHead, *inherited, "_predict_by_feat_single", "_bbox_post_process")
        is_base = _inherits(head, BaseDenseHead, *inherited, "_predict_by_feat_single", "_bbox_post_process")
        _require(
            self.is_gfl or is_rpn or is_base,
            "head",
            type(head).__name__,
            "GFLHead, RPNHead and heads that predict as mmdet's BaseDenseHead does (RetinaHead, ATSSHead, FCOSHead, "
            "RTMDetHead, RTMDetSepBNHead, …)",
        )
        self.head = head
        self.count = cfg.get("nms_pre", -1)
        # The region proposals of RPNHead are ranked, not filtered by score.
        self.threshold = -1.0 if is_rpn else cfg.get("score_thr", 0)
        _require(self.count > 0, "test_cfg nms_pre", self.count, "positive numbers")

    def _scores(self, logits: Tensor) -> Tensor:
        loss = self.head.loss_cls
        if getattr(loss, "custom_cls_channels", False):
            return loss.get_activation(logits)
        return logits.sigmoid() if self.head.use_sigmoid_cls else logits.softmax(-1)[..., :-1]

    def __call__(self, features: Sequence[Tensor], height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Candidates of each image.

        Args:
            features: Levels (B, C, H_i, W_i).
            height: Of the image without padding, in pixels.
            width: Of the image without padding, in pixels.

        Returns:
            Boxes (B, N, 4), scores (B, N), labels (B, N) and levels (B, N); N is `nms_pre` times the number of levels.
            The score is -1 where a level has no more candidates above the threshold.
        """
        logits, deltas, *factors = self.head(features)
        sizes = [level.shape[-2:] for level in logits]
        priors = self.head.prior_generator.grid_priors(sizes, dtype=logits[0].dtype, device=logits[0].device)
        coder = self.head.bbox_coder
        levels = []
        for i, (level_logits, level_deltas, level_priors) in enumerate(zip(logits, deltas, priors, strict=True)):
            batch = level_logits.shape[0]
            score = self._scores(level_logits.permute(0, 2, 3, 1).reshape(batch, -1, self.head.cls_out_channels))
            classes = score.shape[-1]
            score, index = top(score.reshape(batch, -1), self.count)
            place, label = index // classes, index % classes

            delta = level_deltas.permute(0, 2, 3, 1)
            if self.is_gfl:
                delta = rows(delta.reshape(batch, -1, 4 * (self.head.reg_max + 1)), place)
                delta = self.head.integral(delta).reshape(batch, -1, 4) * self.head.prior_generator.strides[i][0]
                level_priors = self.head.anchor_center(level_priors)
            else:
                delta = rows(delta.reshape(batch, -1, 4), place)
            box = decode(coder, level_priors[place], delta, height, width)

            final = score
            if factors:
                factor = factors[0][i].permute(0, 2, 3, 1).reshape(batch, -1).sigmoid()
                final = score * factor.gather(1, place)
            final = torch.where(score > self.threshold, final, torch.full_like(score, -1))
            levels.append((box, final, label, torch.full_like(label, i)))
        boxes, scores, labels, groups = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
        return boxes, scores, labels, groups


class DenseDetector(nn.Module):
    """A single-stage detector.

    Args:
        model: mmdet's `SingleStageDetector` in evaluation mode.

    Raises:
        UnsupportedModelError: The model has a part without a traceable form.
    """

    outputs: tuple[str, ...] = ("boxes", "scores", "labels")

    def __init__(self, model: SingleStageDetector) -> None:
        super().__init__()
        self.preprocess = Preprocess(model.data_preprocessor)
        self.model = model
        cfg = model.bbox_head.test_cfg
        self._predict = DensePrediction(model.bbox_head, cfg)
        self._suppress = Suppression(cfg.get("nms"), cfg.max_per_img, cfg.get("min_bbox_size", -1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect.

        Args:
            images: (B, 3, H, W), 0 to 255.

        Returns:
            Boxes (B, N, 4) as x1, y1, x2, y2 in pixels, scores (B, N), falling, and labels (B, N) int64, where N is
            `max_per_img`; places without a detection have score 0 and label -1.
        """
        height, width = images.shape[-2:]
        features = self.model.extract_feat(self.preprocess(images))
        boxes, scores, labels, _ = self._predict(features, height, width)
        scores, index = self._suppress(boxes, scores, labels, scores >= 0)
        return _finish(rows(boxes, index), scores, labels.gather(1, index))


class RegionPool:
    """Features of regions from the level of a pyramid that fits their size.

    Args:
        extractor: mmdet's `SingleRoIExtractor` of `RoIAlign` layers.

    Raises:
        UnsupportedModelError: Another extractor or layer.
    """

    def __init__(self, extractor: Any) -> None:
        _require(
            _inherits(extractor, SingleRoIExtractor, "forward", "map_roi_levels"),
            "region extractor",
            type(extractor).__name__,
            "SingleRoIExtractor",
        )
        for layer in extractor.roi_layers:
            _require(
                type(layer) is RoIAlign and layer.pool_mode == "avg",
                "region layer",
                layer,
                "RoIAlign with pool_mode='avg'",
            )
        self.extractor = extractor

    def __call__(self, features: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """Pool boxes (B, N, 4) to (B * N, C, h, w)."""
        batch, count, _ = boxes.shape
        image = torch.arange(batch, device=boxes.device)[:, None].expand(batch, count).reshape(-1, 1)
        regions = torch.cat((image.to(boxes.dtype), boxes.reshape(-1, 4)), dim=1)
        layers = self.extractor.roi_layers
        features = features[: len(layers)]
        if len(layers) == 1:
            return self._align(layers[0], features[0], regions)
        level = self.extractor.map_roi_levels(regions, len(layers))
        pooled = regions.new_zeros(regions.shape[0], self.extractor.out_channels, *layers[0].output_size)
        for i, layer in enumerate(layers):
            index = (level == i).nonzero().squeeze(1)
            pooled = pooled.index_put((index,), self._align(layer, features[i], regions[index]))
        return pooled

    @staticmethod
    def _align(layer: RoIAlign, feature: Tensor, regions: Tensor) -> Tensor:
        return torchvision.ops.roi_align(
            feature, regions, layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned
        )


class TwoStageDetectorWrapper(nn.Module):
    """Faster R-CNN and, with a mask head, Mask R-CNN.

    Args:
        model: mmdet's `TwoStageDetector` in evaluation mode.

    Raises:
        UnsupportedModelError: The model has a part without a traceable form.
    """

    def __init__(self, model: TwoStageDetector) -> None:
        super().__init__()
        self.preprocess = Preprocess(model.data_preprocessor)
        self.model = model
        rpn, roi = model.rpn_head, model.roi_head
        _require(
            _inherits(roi, StandardRoIHead, "predict", "predict_bbox", "predict_mask", "_bbox_forward", "_mask_forward")
            and not roi.with_shared_head,
            "region head",
            type(roi).__name__,
            "StandardRoIHead without shared head",
        )
        _require(
            _inherits(roi.bbox_head, BBoxHead, "predict_by_feat", "_predict_by_feat_single"),
            "box head",
            type(roi.bbox_head).__name__,
            "BBoxHead and heads that predict as it does",
        )
        self._propose = DensePrediction(rpn, rpn.test_cfg)
        self._suppress_proposals = Suppression(
            rpn.test_cfg.get("nms"), rpn.test_cfg.max_per_img, rpn.test_cfg.get("min_bbox_size", -1)
        )
        cfg = roi.test_cfg
        self._suppress = Suppression(cfg.get("nms"), cfg.max_per_img)
        self._threshold = cfg.score_thr
        self._pool = RegionPool(roi.bbox_roi_extractor)
        self.outputs: tuple[str, ...] = ("boxes", "scores", "labels")
        if roi.with_mask:
            _require(
                _inherits(roi.mask_head, FCNMaskHead, "predict_by_feat", "_predict_by_feat_single"),
                "mask head",
                type(roi.mask_head).__name__,
                "FCNMaskHead and heads that predict as it does",
            )
            self._pool_masks = RegionPool(roi.mask_roi_extractor)
            self.outputs = (*self.outputs, "masks")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Detect.

        Args:
            images: (B, 3, H, W), 0 to 255.

        Returns:
            As `DenseDetector`, and with a mask head masks (B, N, h, w), 28×28 in the published models: the probability
            that a point of the box belongs to the object. Resized to the box and cut at `mask_thr_binary` (0.5) they
            are the object's mask.
        """
        height, width = images.shape[-2:]
        roi = self.model.roi_head
        features = self.model.extract_feat(self.preprocess(images))
        proposals, scores, _, levels = self._propose(features, height, width)
        scores, index = self._suppress_proposals(proposals, scores, levels, scores >= 0)
        proposals, known = rows(proposals, index), scores >= 0

        boxes, scores, labels = self._classify(features, proposals, height, width)
        valid = (scores > self._threshold) & known[..., None]
        batch = boxes.shape[0]
        boxes = boxes.reshape(batch, -1, 4)
        scores, index = self._suppress(
            boxes, scores.reshape(batch, -1), labels.reshape(batch, -1), valid.reshape(batch, -1)
        )
        boxes, scores, labels = _finish(rows(boxes, index), scores, labels.reshape(batch, -1).gather(1, index))
        if not roi.with_mask:
            return boxes, scores, labels
        masks = roi.mask_head(self._pool_masks(features, boxes)).sigmoid()
        label = torch.zeros_like(labels) if roi.mask_head.class_agnostic else labels.clamp(min=0)
        masks = masks[torch.arange(masks.shape[0], device=masks.device), label.reshape(-1)]
        return boxes, scores, labels, masks.reshape(batch, -1, *masks.shape[-2:])

    def _classify(
        self, features: Sequence[Tensor], proposals: Tensor, height: int, width: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, R, K, 4), scores and labels (B, R, K) of proposals (B, R, 4), for each of K classes."""
        batch, count, _ = proposals.shape
        head = self.model.roi_head.bbox_head
        logits, deltas = head(self._pool(features, proposals))
        scores = head.loss_cls.get_activation(logits) if head.custom_cls_channels else logits.softmax(-1)
        scores = scores[:, : head.num_classes].reshape(batch, count, head.num_classes)
        deltas = deltas.reshape(batch, count, -1, 4)
        boxes = decode(head.bbox_coder, proposals[:, :, None].expand_as(deltas), deltas, height, width)
        labels = torch.arange(head.num_classes, device=scores.device).expand_as(scores)
        return boxes.expand(*scores.shape, 4), scores, labels


class Segmentor(nn.Module):
    """A segmentor, evaluated on whole images.

    Args:
        model: mmseg's `EncoderDecoder` in evaluation mode.

    Raises:
        UnsupportedModelError: The model has a part without a traceable form.
    """

    outputs: tuple[str, ...] = ("logits", "labels")

    def __init__(self, model: EncoderDecoder) -> None:
        super().__init__()
        _require(
            _inherits(model, EncoderDecoder, "predict", "inference", "encode_decode", "postprocess_result"),
            "segmentor",
            type(model).__name__,
            "EncoderDecoder",
        )
        _require(
            _inherits(model.decode_head, BaseDecodeHead, "predict", "predict_by_feat"),
            "head",
            type(model.decode_head).__name__,
            "heads that predict as mmseg's BaseDecodeHead does (FPNHead, UPerHead, LightHamHead, SegformerHead, …)",
        )
        mode = model.test_cfg.get("mode", "whole")
        _require(mode == "whole", "test_cfg mode", repr(mode), "'whole'")
        self.preprocess = Preprocess(model.data_preprocessor)
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Segment.

        Args:
            images: (B, 3, H, W), 0 to 255.

        Returns:
            Logits (B, K, H, W), or with one output channel its sigmoid, as mmseg has it, and labels (B, H, W) int64.
        """
        height, width = images.shape[-2:]
        x = self.preprocess(images)
        logits = self.model.decode_head(self.model.extract_feat(x))
        logits = F.interpolate(logits, x.shape[-2:], mode="bilinear", align_corners=self.model.align_corners)
        logits = logits[..., :height, :width]
        if self.model.out_channels == 1:
            probability = logits.sigmoid()
            return probability, (probability > self.model.decode_head.threshold).squeeze(1).long()
        return logits, logits.argmax(dim=1)


def deploy(model: nn.Module) -> DenseDetector | TwoStageDetectorWrapper | Segmentor:
    """The traceable form of a model.

    Args:
        model: A detector of mmdet or a segmentor of mmseg, with its data preprocessor. It is copied, not changed.

    Returns:
        A module in evaluation mode that takes images (B, 3, H, W) and returns the tensors that its `outputs` names.

    Raises:
        UnsupportedModelError: The model, or a part of it, has no traceable form; the message names it.
    """
    for kind, wrapper in (
        (TwoStageDetector, TwoStageDetectorWrapper),
        (SingleStageDetector, DenseDetector),
        (EncoderDecoder, Segmentor),
    ):
        if isinstance(model, kind):
            model = make_traceable(copy.deepcopy(model).eval()).requires_grad_(False)
            return wrapper(model).eval()
    raise UnsupportedModelError(
        f"model {type(model).__name__} has no traceable form; allowed: single-stage detectors, Faster and Mask R-CNN, "
        "and EncoderDecoder segmentors"
    )
