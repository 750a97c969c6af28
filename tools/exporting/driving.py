"""What an exported model of several cameras must tell, as its config has it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import UserError
from ..common.messages import shown
from ..config.fields import pipeline_steps, value_at
from ..data.datasets import datasets_of
from ..data.images import read_image

if TYPE_CHECKING:
    from mmengine.config import Config


def tested_mode(cfg: Config) -> str:
    """The mode whose data an exported model is for."""
    return "test" if cfg.get("test_dataloader") else "val"


def _steps(cfg: Config, mode: str, name: str) -> list[Mapping[str, Any]]:
    """The steps of one kind in a mode's pipeline."""
    return [step for step in pipeline_steps(cfg, mode) or () if str(step.get("type")).endswith(name)]


def _dataset(cfg: Config, mode: str) -> Mapping[str, Any]:
    """The mode's data set, or the first below a wrapper."""
    field = f"{mode}_dataloader.dataset"
    dataset = value_at(cfg, field)
    return {} if dataset is None else next((one for _, one in datasets_of(dataset, f"{cfg.filename}: {field}")), {})


def _names(cfg: Config, field: str, names: Any) -> list[str]:
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{cfg.filename}: {field}: a list of names is needed, got {shown(names)}")
    return list(names)


def _camera_names(cfg: Config, mode: str) -> list[str]:
    """The channels of the cameras in their order, none where the config has no data set of several cameras.

    Raises:
        UserError: naming the field, if they are no list of names.
    """
    from ...heads.bev.nuscenes.classes import CAMERAS

    if not _steps(cfg, mode, "LoadMultiViewImages"):
        return []
    return _names(cfg, f"{mode}_dataloader.dataset.cameras", _dataset(cfg, mode).get("cameras", CAMERAS))


def camera_size(cfg: Config, mode: str) -> tuple[int, int] | None:
    """Height and width of the pictures behind a mode's pipeline, None where it does not load those of several cameras.

    Raises:
        UserError: There is no picture, so that the size is not known, or a field of the config is wrong.
    """
    cameras = _camera_names(cfg, mode)
    if not cameras:
        return None
    folder = Path(_dataset(cfg, mode).get("data_root") or "", "samples", cameras[0])
    names = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    if not names:
        raise UserError(f"{folder}: has no picture to take the size from; give it by --size H W")
    width, height = read_image(names[0]).size
    for step in _steps(cfg, mode, "ResizeMultiViewImages"):
        scale = step.get("scale")
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale <= 16:
            raise UserError(
                f"{cfg.filename}: {mode}_dataloader.dataset.pipeline: scale of {step['type']}: a number above 0 and up "
                f"to 16 is needed, got {shown(scale)}"
            )
        height, width = int(height * scale), int(width * scale)
    return height, width


def names_of(cfg: Config, wrapper: Any) -> dict[str, list[str]]:
    """Names for the metadata of the file: `cameras`, and `map_classes` where there is a BEV map, as far as told.

    Raises:
        UserError: Data and model differ in their number, or a field of the config is wrong.
    """
    mode = tested_mode(cfg)
    cameras = _camera_names(cfg, mode)
    if wrapper.cameras is None or not cameras:
        return {}
    found, told = {"cameras": cameras}, {"cameras": (wrapper.cameras, "model.bev_encoder.num_cameras")}
    if "bev_map" in wrapper.outputs:
        drawn = [(each, step.get("classes")) for each in (mode, "train") for step in _steps(cfg, each, "DrawBEVMap")]
        if drawn:
            each, names = drawn[0]
            found["map_classes"] = _names(cfg, f"{each}_dataloader.dataset.pipeline: classes of DrawBEVMap", names)
            told["map_classes"] = (
                wrapper.model.segmentation_head.num_classes,
                "model.segmentation_head.num_classes",
            )
    for name, (number, field) in told.items():
        if len(found[name]) != number:
            raise UserError(f"{cfg.filename}: {len(found[name])} {name} ({found[name]}), but {field}={number}")
    return found
