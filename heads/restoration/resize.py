"""MATLAB's bicubic downscale, by which low-resolution images of published data sets were made."""

import numpy as np
import torch
import torch.nn.functional as F

from ..arguments import check_int


def imresize(image: np.ndarray, factor: int) -> np.ndarray:
    """Shrinks an image as MATLAB's `imresize(image, 1 / factor, "bicubic")` does.

    Keys' cubic convolution with a = -0.5, widened by `factor` against aliasing; the image is mirrored at its borders,
    the outermost pixel repeated. PyTorch's antialiased bicubic interpolation has the same weights, but cuts them off at
    the border where MATLAB mirrors: it is given the mirrored image.

    Args:
        image: (H, W, C), uint8 or float, sides multiples of `factor`.
        factor: by how much both sides shrink.

    Returns:
        (H / factor, W / factor, C), float64, in the values of `image` and not clipped: bicubic overshoots.

    Raises:
        TypeError: if `factor` is no whole number.
        ValueError: if `factor` is less than 1, or a side no multiple of it.
    """
    height, width = image.shape[:2]
    if check_int("factor", factor) < 1 or height % factor or width % factor:
        raise ValueError(f"factor must be positive and divide both sides of the image {height} x {width}, got {factor}")
    # The kernel reaches over 2 * factor pixels; by whole multiples of `factor` the samples stay where they are.
    margin = 2 * factor
    padded = np.pad(image.astype(np.float64), ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    pixels = torch.from_numpy(padded).permute(2, 0, 1)[None]
    size = (height // factor + 4, width // factor + 4)
    small = F.interpolate(pixels, size, mode="bicubic", antialias=True)
    return small[0, :, 2:-2, 2:-2].permute(1, 2, 0).numpy()
