"""From the paths of a pair of images to the tensors of a sample.

In between, `img` and `gt` are arrays (H, W, 3) with BGR channels as everywhere in the mm libraries. Flips and quarter
turns of both are `dict(type="attnzoo.Albumentations", transforms=[dict(type="D4", p=1.0)])`.
"""

from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.structures import BaseDataElement

from ..arguments import check_bool, check_int
from ..mm.registry import TRANSFORMS
from .resize import imresize


@TRANSFORMS.register_module()
class LoadImagePair(BaseTransform):
    """Read the high-resolution image `gt` and read, or make, the low-resolution image `img`.

    What exceeds a multiple of the scale in `gt` is cropped at the right and the bottom.

    Args:
        quantize: Round an image that is made to 8 bits, as one that was made by MATLAB and stored as a file is. The
            published pre-training on ImageNet does not.
        min_size: Least side in pixels of `img`: a `gt` that is too small for it is enlarged (bilinear, each side on its
            own) before `img` is made, as in the published pre-training. Not for low-resolution images that are read.
    """

    def __init__(self, quantize: bool = True, min_size: int = 1) -> None:
        check_bool("quantize", quantize)
        check_int("min_size", min_size, 1)
        self.quantize = quantize
        self.min_size = min_size

    def transform(self, results: dict) -> dict:
        """Add `gt` and `img`, of values 0 to 255: uint8, or float32 where they are not quantized.

        Raises:
            ValueError: If a file is no image, or the sizes do not fit.
        """
        scale = results["scale"]
        gt = _read(results["gt_path"])
        height, width = gt.shape[0] // scale, gt.shape[1] // scale
        if "img_path" in results:
            img = _read(results["img_path"])
            check_pair(results, gt.shape[:2], img.shape[:2])
            gt = gt[: height * scale, : width * scale]
        else:
            gt = gt[: height * scale, : width * scale].astype(np.float32)
            if min(height, width) < self.min_size:
                size = (max(width, self.min_size) * scale, max(height, self.min_size) * scale)
                gt = cv2.resize(gt, size, interpolation=cv2.INTER_LINEAR)
            img = imresize(gt, scale)
            if self.quantize:
                # Halves go up, as MATLAB rounds.
                gt, img = (np.floor(image.clip(0, 255) + 0.5).astype(np.uint8) for image in (gt, img))
            else:
                img = img.astype(np.float32)
        results.update(gt=gt, img=img, img_shape=img.shape[:2])
        return results


@TRANSFORMS.register_module()
class PairedRandomCrop(BaseTransform):
    """Crop the same random square from `img` and, `scale` times as large, from `gt`.

    Args:
        img_size: Side in pixels of `img`.
    """

    def __init__(self, img_size: int) -> None:
        check_int("img_size", img_size, 1)
        self.img_size = img_size

    def transform(self, results: dict) -> dict:
        """Crop both images.

        Raises:
            ValueError: If they are smaller.
        """
        size, scale = self.img_size, results["scale"]
        height, width = results["img"].shape[:2]
        if min(height, width) < size:
            raise ValueError(
                f"{results['gt_path']}: {width} x {height} pixels at low resolution, smaller than the crop of {size}"
            )
        top, left = np.random.randint(height - size + 1), np.random.randint(width - size + 1)
        results["img"] = results["img"][top : top + size, left : left + size]
        top, left, size = top * scale, left * scale, size * scale
        results["gt"] = results["gt"][top : top + size, left : left + size]
        results["img_shape"] = results["img"].shape[:2]
        return results


@TRANSFORMS.register_module()
class PackImagePair(BaseTransform):
    """Bring a pair into the form that `attnzoo.Restorer` takes.

    The result has `inputs`, a tensor (3, h, w) of values 0 to 255, RGB, and `data_samples`, a `BaseDataElement` with
    `gt`, a tensor (3, H, W), `gt_path` and `scale`.
    """

    def transform(self, results: dict) -> dict:
        """The packed sample."""
        sample = BaseDataElement(metainfo={key: results[key] for key in ("gt_path", "scale")}, gt=_rgb(results["gt"]))
        return {"inputs": _rgb(results["img"]), "data_samples": sample}


def check_pair(entry: dict[str, Any], gt_size: tuple[int, ...], img_size: tuple[int, ...]) -> None:
    """Check that a low-resolution image is what is left of its high-resolution one at `entry["scale"]`.

    Args:
        entry: With `gt_path`, `img_path` and `scale`.
        gt_size: (H, W) of the high-resolution image; what exceeds a multiple of the scale does not count.
        img_size: (H, W) of the low-resolution image.

    Raises:
        ValueError: Naming both files and their sizes.
    """
    scale = entry["scale"]
    wanted = (gt_size[0] // scale, gt_size[1] // scale)
    if img_size != wanted:
        raise ValueError(
            f"{entry['img_path']}: {img_size[1]} x {img_size[0]} pixels; at scale {scale} the {gt_size[1]} x "
            f"{gt_size[0]} of {entry['gt_path']} need {wanted[1]} x {wanted[0]}"
        )


def _read(path: str) -> np.ndarray:
    image = mmcv.imread(path)
    if image is None:
        raise ValueError(f"{path}: not an image that can be read")
    return image


def _rgb(image: np.ndarray) -> torch.Tensor:
    """(H, W, 3), BGR -> (3, H, W), RGB."""
    return torch.from_numpy(np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1)))
