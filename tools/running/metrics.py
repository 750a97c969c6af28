"""What the metrics of a config write: nothing in the way but what a run of it has written before."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.outputs import check_outputs
from ..config.classes import class_names, class_of, nested
from ..config.inputs import read_files
from .work_dir import checkpoint_folder, run_files

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
