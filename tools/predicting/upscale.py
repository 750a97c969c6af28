"""Upscale images with a restoration model: `attnzoo predict` with the name of one in the place of a config."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import list_models
from ...backbones.contract.facts import convert_checkpoint, restores
from ..common.errors import UserError
from ..common.files import atomic_path
from ..data.images import decoded, find_images, read_image
from .outputs import Outputs, png_stamp

if TYPE_CHECKING:
    import torch
    from PIL import Image

# Pixels around a tile that are restored with it, as in the published test settings.
OVERLAP = 32


def restoration_models() -> list[str]:
    """The models of the zoo that map an image to an image."""
    return [name for name in list_models() if restores(name)]


def _open(path: Path) -> Image.Image:
    """An image as it is to be seen, with 8 bits a channel: L, LA, RGB or RGBA.

    Raises:
        UserError: for more than 8 bits a channel, of which the half would be lost, or more than one frame.
    """

    def exact(image: Any) -> Image.Image:
        # A PNG with 16 bits a channel says so in its raw mode alone.
        raw = " ".join(str(part) for tile in image.tile for part in tile)
        if image.mode[0] in "IF" or ";16" in raw:
            raise UserError(f"{path}: more than 8 bits a channel ({image.mode}): convert it to 8 bits first")
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            raise UserError(f"{path}: {frames} frames: one image a file is upscaled")
        profile = image.info.get("icc_profile")
        transparent = "transparency" in image.info or image.mode in ("LA", "RGBA", "PA", "La", "RGBa")
        if image.mode in ("1", "L", "LA", "La"):
            mode = "LA" if transparent else "L"
        else:
            mode = "RGBA" if transparent else "RGB"
        seen = decoded(image).convert(mode)
        # A profile of four inks does not describe what was converted.
        seen.info = {"icc_profile": profile} if profile and image.mode != "CMYK" else {}
        return seen

    return read_image(path, exact)


def upscale_image(restore: Callable[[torch.Tensor], torch.Tensor], image: Image.Image) -> Image.Image:
    """Upscale an image of 8 bits a channel; grey stays grey, transparency is enlarged by Lanczos' filter.

    Args:
        restore: (1, 3, H, W) of values in [0, 1] -> (1, 3, scale * H, scale * W).
        image: of mode L, LA, RGB or RGBA.
    """
    import numpy as np
    import torch
    from PIL import Image

    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
    restored = restore(pixels.float() / 255)[0].clamp(0, 1).mul(255).round()
    if image.mode in ("L", "LA"):
        result = Image.fromarray(restored.mean(0).round().byte().numpy())
    else:
        result = Image.fromarray(restored.byte().permute(1, 2, 0).contiguous().numpy())
    if image.mode in ("LA", "RGBA"):
        result.putalpha(image.getchannel("A").resize(result.size, Image.Resampling.LANCZOS))
    return result


def upscale(
    model: Any,
    checkpoint: str | Path,
    images: Sequence[str | Path],
    out_dir: str | Path,
    tile: int | None = None,
    overwrite: bool = False,
    config: str | None = None,
) -> list[Path]:
    """Upscale images; write `<name of the image>_x<scale>.png` for each.

    Args:
        model: A restoration model of the zoo, e.g. from `timm.create_model`; its weights are replaced.
        checkpoint: A published file of it, or one of ours.
        images: Image files, and folders of them.
        out_dir: Where all goes.
        tile: Side of the tiles in which images are upscaled, for bounded memory; None for the whole image at once.
        overwrite: Whether files that are in the way in `out_dir` are replaced; without, only earlier outputs are.
        config: The file that the model comes from, if any, which is not written over.

    Returns:
        The pictures, in the order of the images.

    Raises:
        UserError: if an image cannot be read or upscaled, `tile` is no multiple of the model's window, the checkpoint
            does not fit, or an output would replace an input or a file that is none of ours. Of what can be known
            before, nothing has been written then.
    """
    import torch

    from ...backbones.bodies.tiling import restore_tiled
    from ..common.progress import bar
    from ..running.checkpoint import load_into

    files = find_images(images, _open)
    outputs = Outputs(out_dir, [*files, checkpoint, *filter(None, [config])], overwrite)
    names = [f"{outputs.stem(file.stem)}_x{model.upscale}.png" for file in files]
    outputs.check(names)
    window = model.window_size
    if tile is not None and (tile < 1 or tile % window):
        name = model.pretrained_cfg["architecture"]
        raise UserError(f"--tile must be a positive multiple of {window}, the window of {name}, got {tile}")
    load_into(model, checkpoint, partial(convert_checkpoint, model=model))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device).eval()

    def restore(pixels: torch.Tensor) -> torch.Tensor:
        pixels = pixels.to(device)
        if tile is None:
            return model(pixels).cpu()
        tiles = partial(bar, title="tiles", leave=False)
        return restore_tiled(model, pixels, tile, OVERLAP, tiles).cpu()

    pictures: list[Path] = []
    for file, name in bar(list(zip(files, names, strict=True)), title="upscale"):
        image = _open(file)
        try:
            with torch.inference_mode():
                result = upscale_image(restore, image)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, MemoryError) or "memory" in str(error):
                advice = "a smaller --tile" if tile else "--tile 256"
                raise UserError(
                    f"{file}: not enough memory for {image.width} x {image.height}: try {advice}"
                ) from error
            raise
        pictures.append(outputs.folder / name)
        with atomic_path(pictures[-1]) as temporary:
            result.save(temporary, icc_profile=image.info.get("icc_profile"), pnginfo=png_stamp())
    return pictures
