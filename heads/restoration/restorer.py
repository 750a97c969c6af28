"""Training and testing of timm models that map an image to a larger one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ...backbones import list_models
from ...backbones.bodies.tiling import restore_tiled
from ...backbones.checkpoints import check_weights
from ...backbones.contract.facts import convert_checkpoint, gives_images, restores
from ...backbones.contract.provenance import abbreviated
from ..arguments import check_bool, check_int
from ..mm.checkpoints import pretrained, read_state_dict
from ..mm.registry import MODELS
from ..mm.timm_models import create_model


@MODELS.register_module()
class RestorationPreprocessor(BaseDataPreprocessor):
    """Images of values 0 to 255 to float images of values 0 to 1: a batch in training, a list of any sizes in testing.

    Args:
        non_blocking: Copy to the device without waiting.
    """

    def forward(self, data: dict, training: bool = False) -> dict:
        """Convert the images of `data["inputs"]`, a list of (3, h, w)."""
        data = self.cast_data(data)  # type: ignore[assignment]
        inputs = [image.float() / 255 for image in data["inputs"]]
        return {**data, "inputs": torch.stack(inputs) if training else inputs}


@MODELS.register_module()
class Restorer(BaseModel):
    """A restoration model of the zoo, trained by the mean absolute error (L1 loss) of its image.

    The model is held as `model`, so a checkpoint's keys are timm's own behind `model.`, and the checkpoint filter of
    the family reads it: a checkpoint of a training run is also one of the timm model.

    Args:
        model_name: Name of a timm model that restores, e.g. `hat_small_x4`.
        with_cp: Recompute activations in the backward pass to save memory.
        tile: In testing, restore in tiles of this side in pixels, so that memory does not grow with the image; the
            whole image at once if None.
        overlap: Pixels around a tile that are restored with it.
        init_cfg: None, or `dict(type="Pretrained", checkpoint=path)` to start from the weights of a file, with
            `model_name=name` if they are those of another model, and `prefix` and `map_location` where wanted; see
            `load_checkpoint`.
        data_preprocessor: A config; `attnzoo.RestorationPreprocessor` if None.
        **model_kwargs: Passed to `timm.create_model`, e.g. `drop_path_rate` or `depths`.

    Attributes:
        scale: By how much it enlarges the sides of an image.

    Raises:
        ValueError: An unknown model or one that does not restore, or a value of `tile`, `overlap` or `init_cfg` that is
            not allowed.
        TypeError: An argument of another type, or one of `model_kwargs` that the model does not take.
    """

    def __init__(
        self,
        model_name: str,
        with_cp: bool = False,
        tile: int | None = None,
        overlap: int = 32,
        init_cfg: dict | None = None,
        data_preprocessor: dict | nn.Module | None = None,
        **model_kwargs: Any,
    ) -> None:
        super().__init__(data_preprocessor or dict(type="attnzoo.RestorationPreprocessor"), init_cfg)
        if init_cfg is not None:
            pretrained(init_cfg, "model_name")
        self.model_name = model_name
        self.model_kwargs = model_kwargs
        self.model = _create_restorer(model_name, **model_kwargs)
        self.scale: int = self.model.upscale
        window = self.model.window_size
        if tile is not None and (check_int("tile", tile) < 1 or tile % window):
            raise ValueError(f"tile must be a positive multiple of {window}, the window of {model_name}, got {tile}")
        if check_int("overlap", overlap) < 0 or overlap % window:
            raise ValueError(f"overlap must be 0 or a multiple of {window}, the window of {model_name}, got {overlap}")
        self.tile = tile
        self.overlap = overlap
        if check_bool("with_cp", with_cp):
            self.model.set_grad_checkpointing(True)

    def forward(
        self, inputs: Tensor | list[Tensor], data_samples: Sequence[BaseDataElement] = (), mode: str = "tensor"
    ) -> Tensor | dict[str, Tensor] | list[BaseDataElement]:
        """Loss, prediction or image, as mmengine's Runner asks for them.

        Args:
            inputs: Images of values 0 to 1, RGB: (B, 3, h, w), for "predict" also a list of (3, h, w) of any sizes.
            data_samples: With `gt`, (3, H, W) of values 0 to 255, for "loss".
            mode: "loss" for a dict with `loss_l1`; "predict" for the samples with `pred` (3, H, W), uint8, rounded as
                a picture that is stored; "tensor" for the model's output (B, 3, H, W), not clipped.

        Raises:
            ValueError: Any other mode.
        """
        if mode == "tensor":
            return self.model(inputs)
        if mode == "loss":
            wanted = torch.stack([sample.gt for sample in data_samples]).float() / 255
            return {"loss_l1": F.l1_loss(self.model(inputs), wanted)}
        if mode == "predict":
            for image, sample in zip(inputs, data_samples, strict=True):
                sample.pred = self.restore(image[None])[0].clamp(0, 1).mul(255).round().to(torch.uint8)
            return list(data_samples)
        raise ValueError(f"mode must be 'loss', 'predict' or 'tensor', got {mode!r}")

    def restore(self, image: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, 3, H, W), in tiles if `tile` says so."""
        if self.tile is None:
            return self.model(image)
        return restore_tiled(self.model, image, self.tile, self.overlap)

    def init_weights(self) -> None:
        """Load the checkpoint that `init_cfg` names; timm models initialise themselves when they are made."""
        if self.init_cfg:
            options = pretrained(self.init_cfg, "model_name")
            self.load_checkpoint(options.pop("checkpoint"), **options)
        self._is_init = True

    def load_checkpoint(
        self,
        path: str | Path,
        model_name: str | None = None,
        prefix: str | None = None,
        map_location: Any = "cpu",
    ) -> None:
        """Load weights, of this model or of one that enlarges by another factor.

        From another factor the body and what is alike in the reconstruction is taken: its first and last convolution,
        and those before a pixel shuffle that have the same shape, in their order. The others keep their initial values;
        so the published ×4 models start from ×2.

        Args:
            path: A published file or a checkpoint of ours, or its address (http or https): of both the averaged
                weights, where there are such.
            model_name: Whose weights they are; this model's if None.
            prefix: Take the tensors below it alone.
            map_location: As of `torch.load`.

        Raises:
            FileNotFoundError: No such file.
            RuntimeError: It is no checkpoint of that model, or that model has another body, or a tensor is of another
                kind of number or not finite.
        """
        state = read_state_dict(path, prefix, map_location)
        model_name = model_name or self.model_name
        other = model_name != self.model_name
        source = _create_restorer(model_name, **self.model_kwargs) if other else self.model
        try:
            state = convert_checkpoint(state, source)
            check_weights(state, source)
            source.load_state_dict(state)
            if other:
                self._take_over(source)
        except (RuntimeError, ValueError) as error:
            raise RuntimeError(f"{path}: no checkpoint of {model_name!r}: {error}") from error

    def _take_over(self, source: Any) -> None:
        heads = [
            [(name, module) for name, module in model.get_classifier().named_modules() if isinstance(module, nn.Conv2d)]
            for model in (source, self.model)
        ]
        pairs = [*zip(heads[0][:-1], heads[1][:-1], strict=False), (heads[0][-1], heads[1][-1])]
        state = {key: value for key, value in source.state_dict().items() if not key.startswith("head.")}
        own = self.model.state_dict()
        state.update({key: value for key, value in own.items() if key.startswith("head.")})
        for (_, there), (name, here) in pairs:
            if there.weight.shape == here.weight.shape:
                state.update({f"head.{name}.{key}": value for key, value in there.state_dict().items()})
        self.model.load_state_dict(state)


def _create_restorer(model_name: str, **kwargs: Any) -> Any:
    """A timm model that maps an image to an image.

    Any, because timm's models keep their contract without a common class.
    """
    model = create_model(model_name, **kwargs)
    if not gives_images(model):
        known = abbreviated(name for name in list_models() if restores(name))
        raise ValueError(f"model_name={model_name!r}: gives no image; restoration models are {', '.join(known)}")
    return model
