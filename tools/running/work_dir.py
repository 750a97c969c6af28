"""Work directories of trainings: what is in them, who is at work there, what may be replaced."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.files import atomic_path, new_folders, remove_files, remove_leftovers
from ..common.locks import LOCK, locked
from ..common.outputs import check_outputs
from ..config.inputs import data_paths, read_files

_STEP = re.compile(r"(?:epoch|iter)_(\d+)\.pth")
# Checkpoints as mmengine names them: of an epoch or iteration, best by a metric, and both as published.
_CHECKPOINT = re.compile(r"(?:best_.+_)?(?:epoch|iter)_\d+(?:-[0-9a-f]{8})?\.pth")
_LOG_FOLDER = re.compile(r"\d{8}_\d{6}")
_NOTE = "last_checkpoint"
_KEPT = re.compile(r"# Written by attnzoo train, sha256 ([0-9a-f]{64})\.\n")


def is_first_process(cfg: Any) -> bool:
    """Whether this is the first process of a launcher, or the only one; known before any group is formed."""
    return cfg.get("launcher", "none") == "none" or os.environ.get("RANK", "0") == "0"


def checkpoint_folder(cfg: Any) -> Path:
    """Where the checkpoints of a config go: its work directory, or one of that name in the hook's `out_dir`."""
    hook = (cfg.get("default_hooks") or {}).get("checkpoint") or {}
    out_dir = str(hook.get("out_dir") or "")
    work_dir = os.path.abspath(cfg.work_dir)
    if out_dir and "://" not in out_dir and out_dir != work_dir:
        return Path(out_dir, os.path.basename(work_dir))
    return Path(cfg.work_dir)


def run_folders(cfg: Any) -> list[Path]:
    """The folders that a training writes into: its work directory, and that of its checkpoints where it is another."""
    return list(dict.fromkeys((Path(cfg.work_dir), checkpoint_folder(cfg))))


def resumable(*folders: str | os.PathLike) -> Iterator[Path]:
    """The checkpoints to go on from, the newest first.

    Args:
        *folders: Of the run, as of `run_folders`: the first is the work directory, which has the note of the last one.
    """
    places, noted = [Path(folder) for folder in folders], None
    with suppress(OSError, UnicodeDecodeError):
        text = (places[0] / _NOTE).read_text(encoding="utf-8").strip()
        # By its name first: the note is outdated where the work directory was moved or copied.
        paths = [*(folder / Path(text).name for folder in reversed(places)), Path(text)]
        noted = next((path for path in paths if text and path.is_file()), None)
    if noted is not None:
        yield noted
    # The note is written in place: a kill can leave it empty.
    places = [*places, noted.parent] if noted else places
    for path in sorted((path for place in dict.fromkeys(places) for path in _steps(place)), key=_order, reverse=True):
        if path != noted:
            yield path


def last_checkpoint(*folders: str | os.PathLike) -> Path | None:
    """The newest complete checkpoint of a run, by its folders as of `resumable`; None where there is none yet."""
    return next(resumable(*folders), None)


def check_note(work_dir: str | os.PathLike) -> None:
    """Check that no checkpoint has been written, where none was found to go on from.

    Raises:
        UserError: if the note of the last one is there, as of a run whose checkpoints are on another machine.
    """
    note = Path(work_dir, _NOTE)
    if note.is_file():
        text = note.read_bytes()[:1000].decode(errors="replace").strip()
        raise UserError(
            f"{note}: is there, but not the checkpoint that it names ({text or 'none'}): --resume CKPT names the one "
            "to go on from, --overwrite starts again"
        )


def _steps(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*.pth") if _STEP.fullmatch(path.name) and path.is_file()]


def _order(path: Path) -> tuple[int, float]:
    step = step_of(path)
    return -1 if step is None else step, path.stat().st_mtime


def step_of(path: Path) -> int | None:
    """The epoch or iteration in the name of a checkpoint, None where it has none."""
    match = _STEP.fullmatch(path.name)
    return int(match[1]) if match else None


def own_checkpoint(folder: Path, name: str) -> Path | None:
    """The checkpoint of that name in a folder; None for a link, a folder, and whatever a run would name otherwise."""
    path = folder / name
    return path if _CHECKPOINT.fullmatch(name) and path.is_file() and not path.is_symlink() else None


def run_files(folder: Path) -> list[Path]:
    """What runs write into a work directory, relative to it: checkpoints, note, logs, configs as they were kept."""
    if not folder.is_dir():
        return []
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and _LOG_FOLDER.fullmatch(path.name):
            logs = [*path.glob(f"{path.name}*.log"), path / f"{path.name}.json", *(path / "vis_data").rglob("*")]
            found += [log for log in logs if log.is_file()]
        elif path.is_file() and (_CHECKPOINT.fullmatch(path.name) or path.name == _NOTE or _is_kept(path)):
            found.append(path)
    return [path.relative_to(folder) for path in found]


def trainings(folder: Path) -> list[str]:
    """What is left of older trainings in a folder, by name; the logs of evaluations do not count."""
    files = run_files(folder)
    return [str(path) for path in files if path.suffix == ".pth" or path.name == _NOTE] + [
        str(path) for path in files if path.suffix == ".log" and b"(train)" in (folder / path).read_bytes()
    ]


def check(cfg: Any, overwrite: bool) -> None:
    """Check that a training may write where its config says; nothing is written or removed.

    Args:
        cfg: The config, with `work_dir`, `resume` and `load_from` as mmengine has them.
        overwrite: Whether an older training in the work directory may be removed.

    Raises:
        UserError: if the data are there, if an older training is and neither to go on with it nor to remove it was
            asked for, or if what would be removed is read.
    """
    resume, start = bool(cfg.get("resume")), cfg.get("load_from")
    if resume and start is None and overwrite:
        raise UserError("--resume goes on with what --overwrite removes: give one of them")
    hook = (cfg.get("default_hooks") or {}).get("checkpoint") or {}
    if hook.get("filename_tmpl") not in (None, "epoch_{}.pth", "iter_{}.pth"):
        raise UserError(
            f"{cfg.filename}: default_hooks.checkpoint.filename_tmpl: checkpoints are known by their names, "
            "epoch_{}.pth or iter_{}.pth: leave it out"
        )
    for folder in run_folders(cfg):
        check_outputs([folder], data_paths(cfg), folders=True)
        if (folder / _NOTE).is_symlink():
            raise UserError(f"{folder / _NOTE}: is a link, which a training would write through: move it away")
        older = trainings(folder)
        if not older or (resume and start is None):
            continue
        if overwrite:
            kept = {path for path in run_files(folder) if path.suffix == ".py"}
            check_outputs([folder / path for path in run_files(folder) if path not in kept], read_files(cfg))
        elif not resume:
            raise UserError(
                f"{folder}: holds an older training ({older[0]}): --resume goes on with it, --overwrite removes it, "
                "--work-dir names another folder"
            )
        elif later := _later(folder, Path(start)):
            raise UserError(
                f"{folder}: holds an older training, and {later} would be lost by going on from {start}: --resume "
                "alone goes on from its last checkpoint, --overwrite removes it, --work-dir names another folder"
            )


def _later(folder: Path, start: Path) -> str | None:
    """A checkpoint in a folder that is newer than the one to go on from, or any if that is another folder's."""
    inside = start.is_file() and start.resolve().parent == folder.resolve()
    step = step_of(start)
    for path in sorted(_steps(folder), key=_order, reverse=True):
        if not inside or step is None or _order(path)[0] > step:
            return path.name
    return None


@contextmanager
def opened(cfg: Any, overwrite: bool) -> Iterator[Callable[[], None]]:
    """Hold the work directory of a training for it alone, as the first process of a launcher does for all.

    What killed runs have left there is removed. Folders that are still empty in the end go again.

    Yields:
        What is to be called when the training has begun, and before it saves anything: it removes an older one with
        `overwrite`, which stays where the new one cannot be built or fails in its first iteration, and keeps the
        config.

    Raises:
        UserError: as `check`, or if another training is at work there.
    """
    if not is_first_process(cfg):
        yield lambda: None
        return
    folders = run_folders(cfg)
    with new_folders(*folders), ExitStack() as locks:
        for folder in folders:
            locks.enter_context(locked(folder / LOCK, str(folder)))
        # Again, as it may have changed before the lock was there.
        check(cfg, overwrite)
        older = {}
        for folder in folders:
            remove_leftovers(folder)
            inputs = [path.resolve() for path in read_files(cfg)]
            files = run_files(folder) if overwrite else []
            older[folder] = [path for path in files if (folder / path).resolve() not in inputs]

        def begin() -> None:
            for folder, names in older.items():
                remove_files(folder, names)
            keep_config(cfg)

        yield begin


def keep_config(cfg: Any) -> bool:
    """Write the config of a training into its work directory, where no file of the user's has its name.

    Returns:
        Whether it was written.
    """
    own = Path(cfg.filename)
    path = Path(cfg.work_dir, f"{own.stem}.py")
    if path.exists() and (not _is_kept(path) or (own.exists() and own.samefile(path))):
        return False
    text = cfg.pretty_text
    with atomic_path(path) as temporary:
        stamp = f"# Written by attnzoo train, sha256 {hashlib.sha256(text.encode()).hexdigest()}.\n"
        temporary.write_text(stamp + text, encoding="utf-8")
    return True


def _is_kept(path: Path) -> bool:
    """Whether a file is a config as `keep_config` has written it, not changed since."""
    if path.suffix != ".py":
        return False
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    stamp = _KEPT.match(text)
    return stamp is not None and hashlib.sha256(text[stamp.end() :].encode()).hexdigest() == stamp[1]
