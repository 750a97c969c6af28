"""PSNR and SSIM of the luma, as published super-resolution results are measured."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from skimage.metrics import structural_similarity

from ..registry import METRICS


def luma(image: np.ndarray) -> np.ndarray:
    """Y of MATLAB's `rgb2ycbcr` (ITU-R BT.601, studio range), unrounded.

    Args:
        image: (H, W, 3), RGB, of values 0 to 255.

    Returns:
        (H, W), float64, of values 16 to 235.
    """
    return image.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255 + 16


def psnr(left: np.ndarray, right: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two images of values 0 to 255, in dB; infinite if they are equal."""
    error = np.mean((left.astype(np.float64) - right.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def ssim(left: np.ndarray, right: np.ndarray) -> float:
    """Structural similarity of two images (H, W) of values 0 to 255, H and W at least 11.

    As in the paper's MATLAB code (Wang et al., 2004): windows of 11 x 11 weighted by a Gaussian of sigma 1.5,
    K = (0.01, 0.03), no window beyond the border.
    """
    return float(
        structural_similarity(
            left, right, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
    )


class _LumaMetric(BaseMetric):
    """The mean over the images of a score of their luma, the border left out."""

    score: Callable[[np.ndarray, np.ndarray], float]

    def __init__(self, crop_border: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if crop_border is not None and crop_border < 0:
            raise ValueError(f"crop_border must not be negative, got {crop_border}")
        self.crop_border = crop_border

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Score samples with `pred` and `gt`, tensors (3, H, W), uint8, RGB, and `scale`.

        Raises:
            ValueError: If a prediction has another size than the image it is compared with.
        """
        for sample in data_samples:
            border = sample["scale"] if self.crop_border is None else self.crop_border
            planes = []
            for key in ("pred", "gt"):
                _, height, width = sample[key].shape
                image = sample[key][:, border : height - border, border : width - border]
                planes.append(luma(image.permute(1, 2, 0).cpu().numpy()))
            if planes[0].shape != planes[1].shape:
                raise ValueError(
                    f"{sample['gt_path']}: the prediction is {tuple(sample['pred'].shape)}, the image "
                    f"{tuple(sample['gt'].shape)}"
                )
            self.results.append(self.score(*planes))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """The mean score under the name of the class."""
        return {type(self).__name__: float(np.mean(results))}


@METRICS.register_module()
class PSNR(_LumaMetric):
    """Mean PSNR of the luma, in dB; see `psnr`.

    Args:
        crop_border: Pixels to leave out at each side; None for the scale of the images, as published.
        **kwargs: mmengine's `BaseMetric` arguments.
    """

    score = staticmethod(psnr)


@METRICS.register_module()
class SSIM(_LumaMetric):
    """Mean SSIM of the luma; see `ssim`.

    Args:
        crop_border: Pixels to leave out at each side; None for the scale of the images, as published.
        **kwargs: mmengine's `BaseMetric` arguments.
    """

    score = staticmethod(ssim)
