"""PSNR and SSIM of the luma, as published super-resolution results are measured."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from skimage.metrics import structural_similarity

from ..arguments import check_int
from ..mm.registry import METRICS

# Side of SSIM's windows.
_WINDOW = 11


def luma(image: np.ndarray) -> np.ndarray:
    """Y of MATLAB's `rgb2ycbcr` (ITU-R BT.601, studio range), unrounded.

    Args:
        image: (H, W, 3), RGB, of values 0 to 255.

    Returns:
        (H, W), float64, of values 16 to 235.

    Raises:
        ValueError: for another shape.
    """
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an image must have the shape (H, W, 3), got {image.shape}")
    return image.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255 + 16


def psnr(left: np.ndarray, right: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two images of values 0 to 255, in dB; infinite if they are equal, as published.

    Args:
        left: (H, W) or (H, W, C).
        right: Of the same shape.

    Raises:
        TypeError: If an image is no array of numbers.
        ValueError: If the images have two shapes, no pixel, or values that are not finite.
    """
    _check_images(left, right, 1, (2, 3))
    error = np.mean((left.astype(np.float64) - right.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def ssim(left: np.ndarray, right: np.ndarray) -> float:
    """Structural similarity of two images of values 0 to 255.

    As in the paper's MATLAB code (Wang et al., 2004): windows of 11 x 11 weighted by a Gaussian of sigma 1.5,
    K = (0.01, 0.03), no window beyond the border.

    Args:
        left: (H, W), each at least 11.
        right: Of the same shape.

    Raises:
        TypeError: If an image is no array of numbers.
        ValueError: If the images have two shapes, are smaller than a window, or have values that are not finite.
    """
    _check_images(left, right, _WINDOW, (2,))
    return float(
        structural_similarity(
            left, right, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
    )


def _check_images(left: np.ndarray, right: np.ndarray, least: int, dimensions: tuple[int, ...]) -> None:
    for image in (left, right):
        if not isinstance(image, np.ndarray) or image.dtype.kind not in "uif":
            kind = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
            raise TypeError(f"an image must be an array of real numbers, got {kind}")
    if left.shape != right.shape:
        raise ValueError(f"the images have shapes {left.shape} and {right.shape}")
    if left.ndim not in dimensions:
        raise ValueError(f"an image must have {' or '.join(map(str, dimensions))} dimensions, got {left.shape}")
    height, width = left.shape[:2]
    if min(height, width) < least:
        raise ValueError(f"{width} x {height} pixels to compare, at least {least} x {least} are needed")
    for image in (left, right):
        if not np.isfinite(image).all():
            raise ValueError("an image has values that are not finite")


class _LumaMetric(BaseMetric):
    """The mean over the images of a score of their luma, the border left out."""

    score: Callable[[np.ndarray, np.ndarray], float]

    def __init__(self, crop_border: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if crop_border is not None:
            check_int("crop_border", crop_border, 0)
        self.crop_border = crop_border

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Score samples with `pred` and `gt`, tensors (3, H, W), RGB, of values 0 to 255, and `scale`.

        Raises:
            ValueError: If a prediction has another size than the image it is compared with, they are not RGB, or too
                little is left of an image without its border, naming the image.
        """
        name = type(self).__name__
        for sample in data_samples:
            shapes = {key: tuple(sample[key].shape) for key in ("pred", "gt")}
            if shapes["pred"] != shapes["gt"]:
                raise ValueError(f"{sample['gt_path']}: the prediction is {shapes['pred']}, the image {shapes['gt']}")
            if len(shapes["gt"]) != 3 or shapes["gt"][0] != 3:
                raise ValueError(f"{sample['gt_path']}: {name} is of RGB images (3, H, W), got {shapes['gt']}")
            _, height, width = shapes["gt"]
            border = sample["scale"] if self.crop_border is None else self.crop_border
            # Not up to height - border, which may be negative and then counts from the end.
            rows, columns = slice(border, max(height - border, 0)), slice(border, max(width - border, 0))
            # In float64, since numpy has no bfloat16.
            pred, gt = (
                luma(sample[key][:, rows, columns].detach().permute(1, 2, 0).double().cpu().numpy())
                for key in ("pred", "gt")
            )
            try:
                self.results.append(self.score(pred, gt))
            except ValueError as error:
                raise ValueError(
                    f"{sample['gt_path']}: {name} of {width} x {height} pixels, {border} left out at each side: {error}"
                ) from error

    def compute_metrics(self, results: list) -> dict[str, float]:
        """The mean score under the name of the class; infinite where an image equals its prediction.

        Raises:
            ValueError: If there are no images.
        """
        name = type(self).__name__
        if not results:
            raise ValueError(f"{name}: there is no image to score")
        return {name: float(np.mean(results))}


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
