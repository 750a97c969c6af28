"""SegNeXt's decode head, the same at every evaluation."""

from typing import Any

import torch
import torch.nn.functional as F
from mmseg.models.decode_heads import LightHamHead as MMSegLightHamHead
from mmseg.models.decode_heads.ham_head import NMF2D
from torch import Tensor

from ..arguments import check_bool, check_int, check_keys, check_number
from ..mm.registry import MODELS

_HAM_ARGUMENTS = ("MD_S", "MD_R", "train_steps", "eval_steps", "inv_t", "rand_init")


class DeterministicNMF2D(NMF2D):
    """Non-negative matrix factorisation whose first bases are random in training and constant in evaluation.

    Args:
        channels: Channels of the feature map.
        **kwargs: mmseg's `NMF2D` arguments: `MD_S`, `MD_R`, `train_steps`, `eval_steps`, `inv_t`, `rand_init`. With
            `rand_init=False` the constant bases serve training too.
    """

    bases: Tensor

    def __init__(self, channels: int, **kwargs: Any) -> None:
        super().__init__(kwargs)
        self.bases_shape = (self.S, channels // self.S, self.R)
        # Not in the state dict, so that published SegNeXt checkpoints load strictly.
        self.register_buffer("bases", self._constant(), persistent=False)

    def _constant(self, device: torch.device | None = None) -> Tensor:
        """The bases of evaluation; without a device on that of the context, where modules are built."""
        bases = torch.rand(self.bases_shape, generator=torch.Generator().manual_seed(0), device="cpu")
        return F.normalize(bases, dim=1).to(torch.get_default_device() if device is None else device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], *args: Any) -> None:
        super()._load_from_state_dict(state_dict, *args)
        # A module that was built on the meta device has none, or memory that nobody has written.
        device = self.bases.device
        if self.bases.is_meta:
            device = next((value.device for value in state_dict.values()), torch.device("cpu"))
        self.bases = self._constant(device).to(self.bases.dtype)

    def _build_bases(self, B: int, S: int, D: int, R: int, device: torch.device | None = None) -> Tensor:
        if self.training:
            return super()._build_bases(B, S, D, R, device).to(self.bases.dtype)
        return self.bases.repeat(B, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Low-rank approximation of a non-negative map (B, C, H, W), of the same shape."""
        # mmseg takes a view of the map, which fails in channels_last.
        return super().forward(x.contiguous())


@MODELS.register_module()
class LightHamHead(MMSegLightHamHead):
    """mmseg's `LightHamHead`, made deterministic in evaluation.

    mmseg, as the published code, starts the matrix factorisation from random bases at each forward, so that the same
    image gets another prediction each time. Here that is so in training only. In evaluation the bases are one draw from
    a generator of its own with seed 0, the same for every image and every run, and the global random state is left
    alone; scores therefore lie within the spread of the published head's, and the head can be exported. Parameters and
    buffers in the state dict are mmseg's, so published SegNeXt checkpoints load strictly.

    Source: SegNeXt (https://arxiv.org/abs/2209.08575), HamNet (https://arxiv.org/abs/2109.04553).

    Args:
        ham_channels: Channels of the factorised map.
        ham_kwargs: Arguments of mmseg's `NMF2D`, e.g. `dict(MD_R=16)`.
        **kwargs: Arguments of mmseg's `BaseDecodeHead`.

    Raises:
        TypeError: An argument of another type.
        ValueError: `ham_kwargs` has an unknown key, or a number is out of its range.
    """

    def __init__(self, ham_channels: int = 512, ham_kwargs: dict | None = None, **kwargs: Any) -> None:
        check_int("ham_channels", ham_channels, 1)
        ham_kwargs = check_keys("ham_kwargs", {} if ham_kwargs is None else ham_kwargs, _HAM_ARGUMENTS)
        for key, value in ham_kwargs.items():
            if key == "rand_init":
                check_bool("ham_kwargs.rand_init", value)
            elif key == "inv_t":
                check_number("ham_kwargs.inv_t", value, 0)
            else:
                check_int(f"ham_kwargs.{key}", value, 1)
        if ham_channels % ham_kwargs.get("MD_S", 1):
            raise ValueError(f"ham_kwargs.MD_S={ham_kwargs['MD_S']}: must divide ham_channels={ham_channels}")
        super().__init__(ham_channels=ham_channels, ham_kwargs=ham_kwargs, **kwargs)
        self.hamburger.ham = DeterministicNMF2D(ham_channels, **ham_kwargs)
