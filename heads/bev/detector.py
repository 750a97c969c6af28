"""Detection and segmentation in bird's-eye view, from images of several cameras and frames."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..mm.published import PublishedModule
from ..mm.registry import MODELS
from .checkpoints import convert_bevformer, is_published
from .deformable import check_shape
from .depth_head import PointDepth
from .samples import FrameData, annotations, depth_maps
from .streaming import SceneMemory, rounds


@MODELS.register_module()
class BEVDetector(PublishedModule, BaseModel):
    """3-D boxes and a BEV map from images of calibrated cameras, with the frames before as history.

    In training a sample has some frames, oldest first: those before the last run without gradients and in evaluation
    mode, and their BEV maps follow each other. A frame whose predecessor is not there starts anew, each sample for
    itself. In prediction samples of one frame are a stream: the map of a scene's previous frame, which `prev` names, is
    kept from call to call, also within a batch. Where it was not the last one seen of its scene, the frame starts anew.
    On several devices each must therefore see whole scenes. Switching to training forgets all maps.

    Published BEVFormer checkpoints load by name with mmdet's `ResNet` and `FPN`: by `init_cfg`, `load_checkpoint`, the
    runner's `load_from` and `load_state_dict`.

    Source: BEVFormer (https://arxiv.org/abs/2203.17270), DFA3D (https://arxiv.org/abs/2307.12972).

    Args:
        backbone: Config of a backbone, e.g. of `attnzoo.Backbone` or `mmdet.ResNet`.
        neck: Config of a neck that gives levels of one width, e.g. of `mmdet.FPN`.
        bev_encoder: Config of a `BEVEncoder`.
        detection_head: Config of a `BEVDetectionHead`, or None.
        segmentation_head: Config of a `BEVSegmentationHead`, or None.
        depth_head: Config of a `BEVDepthHead` or, for the true depth of LiDAR points, of a `PointDepth`: with lifting
            "dfa3d", and with it alone.
        data_preprocessor: A config; `attnzoo.BEVDataPreprocessor` if None.
        init_cfg: mmengine's, or `dict(type="Pretrained", checkpoint=path)`.

    Raises:
        ValueError: No head, or depth where the lifting does not use it, or is missing where it does.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        neck: dict[str, Any],
        bev_encoder: dict[str, Any],
        detection_head: dict[str, Any] | None = None,
        segmentation_head: dict[str, Any] | None = None,
        depth_head: dict[str, Any] | None = None,
        data_preprocessor: dict[str, Any] | nn.Module | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        BaseModel.__init__(self, data_preprocessor or dict(type="attnzoo.BEVDataPreprocessor"), init_cfg)
        if detection_head is None and segmentation_head is None:
            raise ValueError("detection_head and segmentation_head are both None: one is needed")
        self.backbone = MODELS.build(backbone)
        self.neck = MODELS.build(neck)
        self.bev_encoder = MODELS.build(bev_encoder)
        self.depth_head = None if depth_head is None else MODELS.build(depth_head)
        self.detection_head = None if detection_head is None else MODELS.build(detection_head)
        self.segmentation_head = None if segmentation_head is None else MODELS.build(segmentation_head)
        lifting = self.bev_encoder.lifting
        if (self.depth_head is None) == (lifting == "dfa3d"):
            raise ValueError(f"lifting={lifting!r} {'needs a' if self.depth_head is None else 'takes no'} depth_head")
        if self.depth_head is not None and self.depth_head.bins.range != self.bev_encoder.depth_range:
            raise ValueError(
                f"depth_head has bins from {self.depth_head.bins.range[0]} to {self.depth_head.bins.range[1]} m, "
                f"bev_encoder.depth_range={self.bev_encoder.depth_range}: they must be alike"
            )
        self.memory = SceneMemory()

    def forward(
        self, inputs: Tensor, data_samples: Sequence[BaseDataElement] = (), mode: str = "tensor"
    ) -> Tensor | dict[str, Tensor] | list[BaseDataElement]:
        """Loss, prediction or BEV map, as mmengine's Runner asks for them.

        Args:
            inputs: Images (B, frames, N, 3, H, W), normalised and padded, oldest frame first.
            data_samples: Metainfo `lidar2img` (N, 4, 4), with all that was done to the images inside, and `can_bus`
                (18,), or of several frames with that axis first; of several frames `has_previous` (frames,) bool; for
                "predict" of single frames `scene_token`, `token` and `prev`, the token of the frame before, empty if
                there is none. For "loss" what the heads learn: `gt_instances_3d` with `bboxes_3d` (n, 9) and
                `labels_3d` (n,), `gt_bev_map` (classes, rows, columns), `gt_depth` (N, H, W) in metres or (frames, N,
                H, W), which `PointDepth` needs of all frames and in prediction too.
            mode: "loss" for a dict of losses; "predict" for the samples with `pred_instances_3d` (`bboxes_3d`,
                `scores_3d`, `labels_3d`) and `pred_bev_map` (classes, rows, columns), scores from 0 to 1; "tensor" for
                the last frame's BEV map (B, rows * columns, C).

        Raises:
            ValueError: Another mode, images of another shape, or samples that lack a field or have a wrong one: sample
                and field are named.
        """
        check_shape("inputs", inputs, B=None, frames=None, cameras=self.bev_encoder.num_cameras, RGB=3, H=None, W=None)
        if len(data_samples) != inputs.shape[0]:
            raise ValueError(f"data_samples has {len(data_samples)} samples, inputs {inputs.shape[0]}")
        if mode == "loss":
            return self.loss(inputs, data_samples)
        if mode == "predict":
            return self.predict(inputs, data_samples)
        if mode == "tensor":
            return self._clip(inputs, data_samples)[0]
        raise ValueError(f"mode must be 'loss', 'predict' or 'tensor', got {mode!r}")

    def loss(self, inputs: Tensor, data_samples: Sequence[BaseDataElement]) -> dict[str, Tensor]:
        """Losses of all heads; arguments as of `forward`."""
        size = self.bev_encoder.size
        losses: dict[str, Tensor] = {}
        bev, code = self._clip(inputs, data_samples)
        if code is not None and self.depth_head is not None and self.depth_head.supervised:
            points = depth_maps(data_samples, 1, "the loss of the depth head")[:, 0]
            losses |= self.depth_head.loss(code, points)
        if self.detection_head is not None:
            targets = annotations(data_samples, "gt_instances_3d", "the loss of the detection head")
            losses |= self.detection_head.loss(bev, size, targets)
        if self.segmentation_head is not None:
            maps = annotations(data_samples, "gt_bev_map", "the loss of the segmentation head")
            losses |= self.segmentation_head.loss(bev, size, maps)
        return losses

    def predict(self, inputs: Tensor, data_samples: Sequence[BaseDataElement]) -> list[BaseDataElement]:
        """The samples with predictions; arguments as of `forward`."""
        size = self.bev_encoder.size
        bev = self._stream(inputs, data_samples) if inputs.shape[1] == 1 else self._clip(inputs, data_samples)[0]
        if self.detection_head is not None:
            for sample, found in zip(data_samples, self.detection_head.predict(bev, size), strict=True):
                sample.pred_instances_3d = found
        if self.segmentation_head is not None:
            for sample, scores in zip(data_samples, self.segmentation_head.predict(bev, size), strict=True):
                sample.pred_bev_map = scores
        return list(data_samples)

    def extract_levels(self, images: Tensor) -> list[Tensor]:
        """Feature maps (B, N, C, H, W), from fine to coarse, of images (B, N, 3, H, W)."""
        levels = self.neck(self.backbone(images.flatten(0, 1)))
        return [level.unflatten(0, images.shape[:2]) for level in levels]

    def encode(
        self,
        levels: Sequence[Tensor],
        image_shape: tuple[int, int],
        lidar2img: Tensor,
        can_bus: Tensor,
        history: Tensor | None = None,
        has_history: Tensor | None = None,
        points: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """One frame's BEV map from its feature maps.

        Args:
            levels: (B, N, C, H, W) of each level.
            image_shape: Height and width of the images, padding included.
            lidar2img: (B, N, 4, 4), float32 at least.
            can_bus: (B, 18). Where there is no history no motion is read.
            history: (B, Q, C), the previous frame's BEV map, or None.
            has_history: (B,) bool, which samples have one; all if None.
            points: (B, N, H, W), depth of LiDAR points in the images, for `PointDepth` alone.

        Returns:
            (B, Q, C), and the depth code (B, N, codes, h, w) of a `BEVDepthHead`.
        """
        sizes = [(level.shape[3], level.shape[4]) for level in levels]
        code = None if self.depth_head is None or points is not None else self.depth_head(levels)
        source = points if points is not None else code
        spread = None if self.depth_head is None or source is None else self.depth_head.spread(source, sizes)
        moved = torch.ones_like(can_bus)
        moved[:, :3] = moved[:, -1:] = 0
        if history is None:
            can_bus = can_bus * moved
        elif has_history is not None:
            can_bus = torch.where(has_history[:, None], can_bus, can_bus * moved)
        shape = torch.stack([can_bus.new_full((can_bus.shape[0],), side) for side in image_shape], -1)
        return self.bev_encoder(levels, lidar2img, shape, can_bus, history, has_history, spread), code

    def _clip(self, inputs: Tensor, samples: Sequence[BaseDataElement]) -> tuple[Tensor, Tensor | None]:
        """The last frame's BEV map and depth code, with the frames before as history."""
        frames, size = inputs.shape[1], (inputs.shape[4], inputs.shape[5])
        data = self._frame_data(inputs, samples)
        points = self._points(samples, frames)
        history, flags = None, None
        if frames > 1:
            with _without_learning(self):
                past = self.extract_levels(inputs[:, :-1].flatten(0, 1))
                past = [level.unflatten(0, (-1, frames - 1)) for level in past]
                for t in range(frames):
                    flags = data.has_previous[:, t] if t else None
                    if t == frames - 1:
                        break
                    history, _ = self.encode(
                        [level[:, t] for level in past], size, data.lidar2img[:, t], data.can_bus[:, t], history, flags,
                        None if points is None else points[:, t],
                    )  # fmt: skip
        return self.encode(
            self.extract_levels(inputs[:, -1]), size, data.lidar2img[:, -1], data.can_bus[:, -1], history, flags,
            None if points is None else points[:, -1],
        )  # fmt: skip

    def _stream(self, inputs: Tensor, samples: Sequence[BaseDataElement]) -> Tensor:
        """BEV maps of single frames, each with its scene's previous frame if that was the last one."""
        data = self._frame_data(inputs, samples)
        points = self._points(samples, 1)
        scenes, tokens, before = (
            annotations(samples, name, "a stream of frames") for name in ("scene_token", "token", "prev")
        )
        levels = self.extract_levels(inputs[:, 0])
        maps: dict[int, Tensor] = {}
        for part in rounds(scenes):
            past = [self.memory.previous(scenes[i], before[i]) for i in part]
            known = next((x for x in past if x is not None), None)
            history = flags = None
            if known is not None:
                history = torch.stack([torch.zeros_like(known) if x is None else x for x in past])
                flags = torch.tensor([x is not None for x in past], device=inputs.device)
            bev, _ = self.encode(
                [level[part] for level in levels], (inputs.shape[4], inputs.shape[5]), data.lidar2img[part, 0],
                data.can_bus[part, 0], history, flags, None if points is None else points[part, 0],
            )  # fmt: skip
            for i, one in zip(part, bev, strict=True):
                self.memory.keep(scenes[i], tokens[i], one)
                maps[i] = one
        return torch.stack([maps[i] for i in range(len(samples))])

    def _frame_data(self, inputs: Tensor, samples: Sequence[BaseDataElement]) -> FrameData:
        weight = self.bev_encoder.bev_embedding.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return FrameData(samples, inputs.shape[1], inputs.shape[2], inputs.device, dtype)

    def _points(self, samples: Sequence[BaseDataElement], frames: int) -> Tensor | None:
        if not isinstance(self.depth_head, PointDepth):
            return None
        return depth_maps(samples, frames, "PointDepth")

    def train(self, mode: bool = True) -> "BEVDetector":
        """As of all modules; training forgets the maps of streams, which its weights will not have made."""
        if mode:
            self.memory.clear()
        return super().train(mode)

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A published checkpoint of BEVFormer, or one of ours."""
        return convert_bevformer(state) if is_published(state) else dict(state)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        own = {key: value for key, value in state_dict.items() if key.startswith(prefix)}
        converted = self.convert({key.removeprefix(prefix): value for key, value in own.items()})
        for key in own:
            del state_dict[key]
        state_dict.update({prefix + key: value for key, value in converted.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)


@contextmanager
def _without_learning(model: nn.Module) -> Iterator[None]:
    """All modules in evaluation mode and without gradients, and afterwards as each was."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        # Autocast of older PyTorch, as 2.9, keeps the weights that it rounded without gradients, and later gives them
        # none: https://github.com/pytorch/pytorch/issues/105211.
        torch.clear_autocast_cache()
