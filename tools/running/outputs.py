"""Files that a command may write: none of its inputs, and nothing in the way but what it has written before."""

from __future__ import annotations

import itertools
import json
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.files import check_outputs
from ..config.classes import class_names, class_of, nested
from .work_dir import checkpoint_folder, read_files, run_files

# Stands in every picture that is written, so that it may be replaced by its successor.
STAMP = "attnzoo predict"
# File systems take names of 255 bytes; of these, endings and temporary names have their share.
_STEM_BYTES = 255 - 55
# What metrics add to their `outfile_prefix`.
_ENDINGS = (
    *(f"{kind}.json" for kind in ("bbox", "segm", "proposal", "keypoints", "panoptic", "gt")),
    "json",
    "submission_file.zip",
)
# Metrics that remove a folder with all that is in it when they are built, or when they end: the setting that names it,
# the folder below, and what they write there themselves.
_REMOVING = {
    "mmdet.CityScapesMetric": ("outfile_prefix", "results", ("*_pred.txt", "*.png", "gtInstances.json")),
    "mmseg.CityscapesMetric": ("output_dir", "", ("*.png",)),
    "mmdet.MOTChallengeMetric": ("outfile_prefix", "", ()),
}


class Outputs:
    """The folder of a command's outputs.

    Args:
        folder: Where all goes; it need not be there yet.
        inputs: Files that are never replaced, by whatever name or link.
        overwrite: Whether others that are in the way may be.

    Raises:
        UserError: if nothing can be written there.
    """

    def __init__(self, folder: str | Path, inputs: Iterable[str | Path], overwrite: bool = False) -> None:
        self.folder = Path(folder)
        self.overwrite = overwrite
        self._inputs = {identity: path for path in inputs if (identity := _identity(path)) is not None}
        self._taken: set[str] = set()
        standing = next(path for path in (self.folder, *self.folder.absolute().parents) if os.path.lexists(path))
        if not os.path.isdir(standing):
            raise UserError(f"{self.folder}: cannot be a folder: {standing} is none")
        if not os.access(standing, os.W_OK | os.X_OK):
            raise UserError(f"{self.folder}: nothing can be written into {standing}: permission denied")

    def stem(self, wanted: str) -> str:
        """`wanted` to name files by, numbered where it is taken, as images in several folders may share theirs.

        A long one is shortened, so that endings of up to 20 bytes have room.
        """
        for number in itertools.count(1):
            extra = "" if number == 1 else f"-{number}"
            stem = _shortened(wanted, _STEM_BYTES - len(extra)) + extra
            # Some file systems do not tell capitals.
            if stem.casefold() not in self._taken:
                break
        self._taken.add(stem.casefold())
        return stem

    def check(self, names: Iterable[str]) -> None:
        """Check that files may be written under these names.

        Raises:
            UserError: naming the first that is an input, a folder, or something that this command has not written.
        """
        for path in (self.folder / name for name in names):
            if not os.path.lexists(path):
                continue
            source = self._inputs.get(_identity(path))
            if source is not None:
                raise UserError(f"{path}: would be written over {source}, which this run reads: name another --out-dir")
            if os.path.isdir(path):
                raise UserError(f"{path}: a folder is in the way: name another --out-dir")
            if not self.overwrite and not _ours(path):
                raise UserError(
                    f"{path}: in the way, and not written by attnzoo predict: name another --out-dir, or replace it "
                    "with --overwrite"
                )


def _shortened(text: str, size: int) -> str:
    """The beginning of `text` that has at most `size` bytes as a file name, whole letters only."""
    while len(os.fsencode(text)) > size:
        text = text[:-1]
    return text


def _identity(path: str | Path) -> Any:
    """What two names of one file share; None where there is no file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _ours(path: Path) -> bool:
    """Whether an output of this command stands there: a picture with its stamp, or its JSON file."""
    from PIL import Image

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            return content.keys() == {"classes", "images"} and all("picture" in image for image in content["images"])
        with Image.open(path, formats=["JPEG", "PNG"]) as image:
            return STAMP in (image.info.get("Software"), image.info.get("comment", b"").decode("utf-8", "replace"))
    except Exception:  # whatever a damaged or foreign file raises, it is not one of these
        return False


def png_stamp() -> Any:
    """The stamp for `pnginfo` in Pillow's `save`."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Software", STAMP)
    return info


@dataclass(frozen=True)
class _Written:
    """What a metric writes by one of its settings.

    Attributes:
        setting: Its value.
        files: By name.
        folder: Into which it writes files of other names.
        names: Patterns of these.
        remover: The metric, if it removes the folder.
    """

    setting: str
    files: tuple[Path, ...] = ()
    folder: Path | None = None
    names: tuple[str, ...] = ("*",)
    remover: str | None = None


def _written(metric: Any) -> Iterator[_Written]:
    """What a metric writes, as far as the settings of mmengine, mmdet and mmseg tell."""
    from mmengine.registry import METRICS

    found = class_of(metric, METRICS)
    names = class_names(found)
    settings = {key: str(value) for key, value in metric.items() if isinstance(value, (str, Path)) and value}
    remover = next((name for name in _REMOVING if name in names), None)
    if remover and not metric.get("keep_results"):
        key, below, patterns = _REMOVING[remover]
        if key in settings:
            folder = Path(settings[key], below).expanduser()
            yield _Written(settings[key], folder=folder, names=patterns, remover=remover.rpartition(".")[2])
        return
    if "mmdet.DumpProposals" in names or "proposals_file" in settings:
        folder_name, file = settings.pop("output_dir", ""), settings.get("proposals_file", "proposals.pkl")
        yield _Written(folder_name or settings.get("proposals_file", "DumpProposals"), (Path(folder_name, file),))
    for key in ("out_file_path", "outfile_path"):
        if key in settings:
            yield _Written(settings[key], (Path(settings[key]),))
    if prefix := settings.get("outfile_prefix"):
        files = tuple(Path(f"{prefix}.{ending}") for ending in _ENDINGS)
        yield _Written(prefix, files, Path(f"{prefix}.panoptic"))
    if "output_dir" in settings:
        # Those of the libraries write label maps alone.
        known = getattr(found, "__module__", "").startswith(("mmdet.", "mmseg."))
        folder_name = settings["output_dir"]
        yield _Written(folder_name, folder=Path(folder_name), names=("*.png",) if known else ("*",))


def check_evaluator(cfg: Any, mode: str, overwrite: bool = False, inputs: Iterable[str | Path] = ()) -> None:
    """Check that what the metrics of a config write takes the place of nothing of the user's.

    What a training that is resumed has written may be replaced, which the config tells that it has kept.

    Args:
        cfg: The config, with `work_dir`.
        mode: Whose metrics, `val` or `test`.
        overwrite: Whether files that are there may be replaced. Folders with other things are not removed even then.
        inputs: Files that are read, beside those of the config.

    Raises:
        UserError: naming the first file or folder that is in the way.
    """
    from mmengine.registry import init_default_scope

    init_default_scope(cfg.get("default_scope") or "mmengine")
    read = [*inputs, *read_files(cfg)]
    work_dir = Path(cfg.work_dir)
    configs = [path for path in run_files(work_dir) if path.suffix == ".py"] if cfg.get("resume") else []
    # As text, as to read it as a config would run it.
    kept = [(work_dir / path).read_text(encoding="utf-8") for path in configs]
    for metric in nested(cfg.get(f"{mode}_evaluator")):
        for written in _written(metric):
            replace = overwrite or any(repr(written.setting) in text for text in kept)
            check_outputs(written.files, read, overwrite=replace)
            if written.folder is None:
                continue
            check_outputs([written.folder], read, folders=True)
            if written.remover:
                _check_removed(written.folder, written, [*read, work_dir, checkpoint_folder(cfg)])
            there = {path for name in written.names for path in written.folder.glob(name) if not path.is_dir()}
            check_outputs(sorted(there), read, overwrite=replace)


def _check_removed(folder: Path, written: _Written, used: list[Path | str]) -> None:
    """Check that a folder that a metric removes holds nothing but what it has written there itself."""
    inside = [path for path in used if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))]
    own = {path for name in written.names for path in folder.glob(name) if path.is_file() and not path.is_symlink()}
    others = [*inside, *(path for path in (sorted(folder.iterdir()) if folder.is_dir() else ()) if path not in own)]
    if others:
        raise UserError(
            f"{folder}: {written.remover} removes this folder, and {others[0]} with it: let it write to another one"
        )
