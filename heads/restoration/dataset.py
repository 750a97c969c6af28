"""Pairs of a high-resolution image and a smaller one."""

import os
import stat
from pathlib import Path
from typing import Any

from mmengine.dataset import BaseDataset
from PIL import Image

from ..arguments import check_int, check_text
from ..mm.registry import DATASETS
from .transforms import LoadImagePair, PairedRandomCrop, check_pair

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
# Of these suffixes. Others stay shut whatever a file is called: Pillow starts Ghostscript for EPS.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
# EXIF orientations that turn an image by a quarter.
_TURNED = (5, 6, 7, 8)
_ORIENTATION = 0x0112


@DATASETS.register_module()
class PairedImageDataset(BaseDataset):
    """High-resolution images of a folder, with low-resolution ones of another folder or made by MATLAB's imresize.

    The sample that goes through `pipeline` has `gt_path`, `scale` and, with a second folder, `img_path`.

    Args:
        scale: By how much the sides of a low-resolution image are smaller.
        data_prefix: `gt`, the folder of high-resolution images, searched with its subfolders; and, if low-resolution
            images are there and not to be made, `img`, their folder, with the same subfolders.
        data_root: What relative folders start from.
        filename_tmpl: Name of a low-resolution image without suffix, from that of its high-resolution one: `"{}x4"` for
            DIV2K's own.
        pipeline: Transforms, first of all `attnzoo.LoadImagePair`.
        **kwargs: mmengine's `BaseDataset` arguments.

    Raises:
        TypeError: An argument of another type.
        ValueError: `scale` is less than 1, `data_prefix` has no `gt` or other keys, or `filename_tmpl` no place for
            a name.
        FileNotFoundError: A folder is missing or without images, or images are without a low-resolution one.
    """

    def __init__(
        self,
        scale: int,
        data_prefix: dict,
        data_root: str = "",
        filename_tmpl: str = "{}",
        pipeline: list | tuple = (),
        **kwargs: Any,
    ) -> None:
        check_int("scale", scale, 1)
        if not isinstance(data_prefix, dict):
            raise TypeError(f"data_prefix={data_prefix!r}: must be a dict, got {type(data_prefix).__name__}")
        folders = {key: folder for key, folder in data_prefix.items() if folder}
        if not {"gt"} <= set(folders) <= {"gt", "img"}:
            raise ValueError(f"data_prefix must be dict(gt=folder) or dict(gt=folder, img=folder), got {data_prefix}")
        for key, folder in folders.items():
            check_text(f"data_prefix.{key}", folder)
        _check_template(filename_tmpl)
        if not isinstance(pipeline, list | tuple):
            raise TypeError(f"pipeline={pipeline!r}: must be a list of transforms, got {type(pipeline).__name__}")
        self.scale = scale
        self.filename_tmpl = filename_tmpl
        super().__init__(data_root=data_root, data_prefix=folders, pipeline=list(pipeline), **kwargs)

    def load_data_list(self) -> list[dict]:
        """One entry an image, in the order of the paths."""
        folder = Path(self.data_prefix["gt"])
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
        if not paths:
            state = f"no images in it ({', '.join(_SUFFIXES)})" if folder.is_dir() else "no such folder"
            raise FileNotFoundError(f"data_prefix.gt={str(folder)!r}: {state}")
        entries = [{"gt_path": str(path), "scale": self.scale} for path in paths]
        if "img" in self.data_prefix:
            small = Path(self.data_prefix["img"])
            missing = []
            for entry, path in zip(entries, paths, strict=True):
                name = self.filename_tmpl.format(path.stem) + path.suffix
                img_path = small / path.relative_to(folder).parent / name
                entry["img_path"] = str(img_path)
                if not img_path.is_file():
                    missing.append(str(img_path))
            if missing:
                some = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
                raise FileNotFoundError(
                    f"data_prefix.img={str(small)!r}: {len(missing)} of the {len(paths)} low-resolution images are "
                    f"missing: {some}"
                )
        return entries

    def check(self) -> None:
        """Look at every file before a long run: whether it is a whole image, and whether its size will do.

        The headers and ends of the files are read; an image is decoded where they leave a doubt.

        Raises:
            ValueError: Naming the first file that is no image, cut off, smaller than the pipeline crops, or not
                `scale` times the size of its low-resolution image.
        """
        steps = self.pipeline.transforms
        crop = max((step.img_size for step in steps if isinstance(step, PairedRandomCrop)), default=1)
        enlarged = max((step.min_size for step in steps if isinstance(step, LoadImagePair)), default=0)
        for index in range(len(self)):
            entry = self.get_data_info(index)
            width, height = _size_of(entry["gt_path"])
            least = min(width, height) // self.scale
            if "img_path" in entry:
                check_pair(entry, (height, width), _size_of(entry["img_path"])[::-1])
            elif least:
                least = max(least, enlarged)
            if least < crop:
                side = crop * self.scale
                raise ValueError(
                    f"{entry['gt_path']}: {width} x {height} pixels, too small: at least {side} x {side} are needed, "
                    f"a crop of {crop} at scale {self.scale}"
                )


def _check_template(template: Any) -> None:
    """Check that a template makes another name of each name."""
    try:
        fits = check_text("filename_tmpl", template).format("a") != template.format("b")
    except (AttributeError, IndexError, KeyError, ValueError):
        fits = False
    if not fits:
        raise ValueError(f"filename_tmpl={template!r}: must hold one {{}}, in whose place the image's name stands")


def _size_of(path: str) -> tuple[int, int]:
    """Width and height of an image as it is decoded, turned as its EXIF data say.

    Raises:
        ValueError: If it is no image or cut off.
    """
    try:
        # Opening a pipe would wait for its writer.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("not a regular file")
        with Image.open(path, formats=_FORMATS) as image:
            if not _ends(path, image.format):
                image.load()
            # A TIFF's size is that of the turned image already.
            turned = image.format != "TIFF" and image.getexif().get(_ORIENTATION) in _TURNED
            return image.size[::-1] if turned else image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not an image that can be read ({error})") from error


def _ends(path: str, kind: str | None) -> bool:
    """Whether the mark of the end of a PNG or JPEG file is where it should be."""
    mark = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}.get(kind or "")
    if mark is None:
        return False
    with open(path, "rb") as file:
        file.seek(0, 2)
        file.seek(max(file.tell() - len(mark), 0))
        return file.read() == mark
