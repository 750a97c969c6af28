"""Published weights and inputs of the bird's-eye-view golden files."""

import golden_files
import torch
from torch import Tensor

from attnzoo.heads.bev.checkpoints import convert_bevformer
from attnzoo.heads.bev.projection import CameraPoints, pillar_points, project


def weights(golden: dict, published: str, ours: str) -> dict[str, Tensor]:
    """Weights of a part whose published names begin with `published`, by names that ours have behind `ours`."""
    state = convert_bevformer({published + key: value for key, value in golden_files.checkpoint(golden).items()})
    return {key.removeprefix(ours): value for key, value in state.items() if key.startswith(ours)}


def inputs(golden: dict) -> list[Tensor]:
    return [golden_files.noise(**one) for one in golden["input"]]


def cameras(golden: dict) -> Tensor:
    return torch.tensor(golden["lidar2img"], dtype=torch.float64)[None]


def points(golden: dict, dtype: torch.dtype = torch.float64) -> CameraPoints:
    """The pillars' points in the images of one sample."""
    kwargs = golden["kwargs"]
    grid = kwargs["bev_h"], kwargs["bev_w"], kwargs["num_points_in_pillar"], kwargs["pc_range"]
    return project(pillar_points(*grid, dtype=dtype), cameras(golden).to(dtype), torch.tensor([kwargs["img_shape"]]))


def value_error(value: Tensor, want: dict) -> float:
    """Absolute error of a single number: the file says 1 for its deviation."""
    return abs(float(value) - want["values"][0])


def box_codes(count: int, seed: int) -> Tensor:
    """Codes (count, 10) by the rule in the notes of the golden files."""
    drawn = golden_files.noise((count, 10), seed)
    scale = torch.tensor([40, 40, 0.5, 0.5, 4, 0.3, 1, 1, 1, 1], dtype=torch.float64)
    shift = torch.tensor([0, 0, 0.7, 0.7, -1, 0.4, 0, 0, 0, 0], dtype=torch.float64)
    return drawn * scale + shift
