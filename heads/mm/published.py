"""Necks and heads that load their part of a published detector or segmentor."""

from pathlib import Path
from typing import Any

from mmengine.model import BaseModule
from torch import Tensor

from ...backbones.checkpoints import CheckpointError, check_weights
from .checkpoints import pretrained, read_state_dict


class PublishedModule(BaseModule):
    """Base of the necks and heads whose published checkpoints have another layout than ours.

    `init_cfg=dict(type="Pretrained", checkpoint=path)` loads in `init_weights`, as `load_checkpoint` does at once.

    Raises:
        ValueError: `init_cfg` is of this type and has an unknown key or no checkpoint.
    """

    @property
    def init_cfg(self) -> Any:
        """As of mmengine's modules."""
        return self._init_cfg

    @init_cfg.setter
    def init_cfg(self, value: Any) -> None:
        if isinstance(value, dict) and value.get("type") == "Pretrained":
            pretrained(value)
        self._init_cfg = value

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """This module's part of a checkpoint, in its own layout; a checkpoint of ours is returned as it is.

        Args:
            state: State dict of a whole model, or of this part alone.
        """
        raise NotImplementedError

    def load_checkpoint(self, path: str | Path, prefix: str | None = None, map_location: Any = "cpu") -> None:
        """Load this module's part of a published checkpoint, or of one of ours.

        Args:
            path: A file of `torch.save` or safetensors, or its address (http or https).
            prefix: Look at the tensors below it alone.
            map_location: As of `torch.load`.

        Raises:
            FileNotFoundError: No such file.
            RuntimeError: It is no checkpoint, or keys are missing, unexpected or of another shape (they are named), or
                a tensor is of another kind of number or not finite.
        """
        state = self.convert(read_state_dict(path, prefix, map_location))
        try:
            check_weights(state, self)
            self.load_state_dict(state)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
        except RuntimeError as error:
            kind = type(self).__name__
            raise RuntimeError(f"{path}: no checkpoint of this {kind} with these arguments: {error}") from error

    def init_weights(self) -> None:
        """Load the checkpoint that `init_cfg` names, or initialise as mmengine does."""
        cfg = self.init_cfg
        if isinstance(cfg, dict) and cfg.get("type") == "Pretrained":
            options = pretrained(cfg)
            self.load_checkpoint(options.pop("checkpoint"), **options)
            self.is_init = True
        else:
            super().init_weights()


def below(state: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    """The entries under modules of these names, wherever they stand in the model, with keys that begin there."""
    found = {}
    for key, value in state.items():
        path = key.split(".")
        place = next((i for i, part in enumerate(path) if part in names), None)
        if place is not None:
            found[".".join(path[place:])] = value
    return found


def renamed(key: str, names: dict[str, str]) -> str:
    """`key` with the first of `names` that it begins with replaced."""
    return next((new + key[len(old) :] for old, new in names.items() if key.startswith(old)), key)
