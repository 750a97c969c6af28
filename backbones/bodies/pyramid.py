"""What every pyramid backbone shares: timm's contract over a stem, a row of stages and a classifier."""

from typing import cast

import torch
from timm.layers import ClassifierHead
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint_seq
from torch import nn

from ..contract.arguments import check_integers, check_pool

# Height or width of a level's map, of an image of n pixels.
ROUNDED_UP = "ceil(n / {stride})"
ROUNDED_DOWN = "max(n // {stride}, 1)"


class PyramidStage(nn.Module):
    """Downsampling, blocks, norm; (B, C, H, W) to (B, D, H', W').

    Args:
        downsample: (B, C, H, W) -> (B, D, H', W').
        blocks: each (B, D, H', W') -> the same.
        norm: the stage's own norm, a part of the trunk.
    """

    def __init__(self, downsample: nn.Module, blocks: list[nn.Module], norm: nn.Module):
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, D, H', W')."""
        x = self.downsample(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.blocks, x)
        else:
            x = self.blocks(x)
        return self.norm(x)


class PyramidHead(ClassifierHead):
    """timm's classifier head, which without pooling classifies every pixel, as the heads of timm's ConvNeXt do."""

    def forward(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """(B, C, H, W) -> (B, num_classes), or (B, num_classes, H, W) without pooling."""
        x = self.drop(self.global_pool(x))
        if pre_logits:
            return x
        if len(self.global_pool.pool_type) > 0:
            return self.fc(x)
        return self.fc(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PyramidBackbone(nn.Module):
    """timm's model contract for a family made of a stem, stages, a final norm and timm's classifier head.

    Args:
        stem: (B, in_chans, H, W) -> (B, C, H/4, W/4).
        stages: the first at the stem's stride, each further one halving it.
        norm: on the last stage's output, of the classifier alone; features come before it.
        dims: channels of each stage.
        num_classes: 0 for no classifier.
        in_chans: channels of the image.
        global_pool: any pooling of timm's `SelectAdaptivePool2d`; `""` for none: the classifier gives a map then.
        drop_rate: dropout before the classifier.
        size: height or width of a stage's map, of an image of n pixels, as the `size` of its level in `feature_info`:
            `{stride}` stands for the stage's stride, `{step}` for that over the stem's.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: list[PyramidStage],
        norm: nn.Module,
        dims: tuple[int, ...],
        num_classes: int,
        in_chans: int,
        global_pool: str,
        drop_rate: float,
        size: str = ROUNDED_UP,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = dims[-1]
        self.feature_info = [
            dict(
                num_chs=dim,
                reduction=4 * 2**i,
                module=f"stages.{i}",
                size=size.format(stride=4 * 2**i, step=2**i),
            )
            for i, dim in enumerate(dims)
        ]
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.norm = norm
        self.head = PyramidHead(dims[-1], num_classes, global_pool, drop_rate, device=device, dtype=dtype)
        self.head_hidden_size = self.num_features * self.head.global_pool.feat_mult()

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters to exempt from weight decay, beside those of one dimension."""
        return set()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        """Patterns that order the parameters by depth, for layer-wise learning-rate decay."""
        blocks = [
            (r"^stages\.(\d+)\.downsample", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^stages\.(\d+)\.norm", (99999,)),
            (r"^norm", (99999,)),
        ]
        return dict(stem=r"^stem", blocks=r"^stages\.(\d+)" if coarse else blocks)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block in the backward pass instead of keeping its activations."""
        for stage in self.stages:
            cast(PyramidStage, stage).grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The linear classifier."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier; `num_classes=0` removes it, `global_pool=""` the pooling."""
        check_integers(least=0, num_classes=num_classes)
        if global_pool is not None:
            check_pool(global_pool)
        self.num_classes = num_classes
        # Pruning may have changed it.
        self.head.in_features = self.num_features
        self.head.reset(num_classes, global_pool)
        self.head_hidden_size = self.num_features * self.head.global_pool.feat_mult()

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """The last feature map together with those of chosen stages.

        Args:
            x: (B, in_chans, H, W).
            indices: the last n stages if an int, all if None, else the stages listed.
            norm: apply the final norm to the last stage's map.
            stop_early: stop after the last stage that is asked for.
            output_fmt: `"NCHW"`.
            intermediates_only: return the list alone.

        Raises:
            ValueError: for another `output_fmt`.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        last = len(self.stages) - 1
        intermediates = []
        x = self.stem(x)
        for i, stage in enumerate(self.stages[: max_index + 1] if stop_early else self.stages):
            x = stage(x)
            if i in take_indices:
                intermediates.append(self.norm(x) if norm and i == last else x)
        if intermediates_only:
            return intermediates
        if not stop_early or max_index == last:
            x = self.norm(x)
        return x, intermediates

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drops the stages behind the last of `indices`, and the classifier; returns the indices as a list."""
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        shortened = max_index < len(self.stages) - 1
        self.stages = self.stages[: max_index + 1]
        if shortened:
            self.num_features = self.feature_info[max_index]["num_chs"]
        if prune_norm or shortened:
            self.norm = nn.Identity()
        if prune_head or shortened:
            self.reset_classifier(0, "")
        return take_indices

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) -> (B, C, H/32, W/32)."""
        return self.norm(self.stages(self.stem(x)))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """(B, C, h, w) -> (B, num_classes), or the pooled (B, C) before the classifier; maps without pooling."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) -> (B, num_classes)."""
        return self.forward_head(self.forward_features(x))
