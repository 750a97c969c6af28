"""Folders in which a data set is built: complete or not there, and nothing of a user's in them is lost."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.files import naming, read_json, remove_files, remove_leftovers, write_json
from ..common.locks import locked


@dataclass(frozen=True)
class Kind:
    """A kind of data set.

    Attributes:
        title: What it is called in messages.
        stamp: Name of the file that says with which parameters a folder was built, and the checksums of its files.
        parts: Of what is in a stamp, without checksums, a function that says whether a file may be a part of the data
            set, by its name below the folder; None if no such stamp was written here.
    """

    title: str
    stamp: str
    parts: Callable[[dict[str, Any]], Callable[[str], bool] | None]


def folder_path(root: str | os.PathLike[str]) -> Path:
    """The absolute path of a folder; of a link to one, the folder's own."""
    return Path(root).resolve() if Path(root).is_symlink() else Path(root).absolute()


def build_folder(kind: Kind, root: Path, parameters: dict[str, Any], write: Callable[[Path], None]) -> None:
    """Build a data set below `root`, or return at once if a complete one with these parameters is there.

    The files are written to a folder beside `root` that takes its place when it is complete. A folder that was built
    here, with other parameters or with files missing since, is replaced; one in which a file has been changed or added
    is not.

    Args:
        kind: Of the data set.
        root: Folder to build, as `folder_path` gives it.
        parameters: On which alone the files depend; JSON's types.
        write: Writes the files into an empty folder.

    Raises:
        UserError: If `root` is something else than a folder built here, naming what is in it, or if another process
            is building it.
    """
    lock = root.with_name(f".{root.name}.lock")
    complete = _is_complete(kind, root, parameters)
    # A lock that lies there is a living process's, or a killed one's that has left more.
    if complete and not lock.exists():
        return
    if not complete:
        _check_replaceable(kind, root)
    with suppress(UserError) if complete else nullcontext(), locked(lock, str(root)) as alone, naming(root):
        for left in root.parent.glob(f".{root.name}.*.partial") if alone else ():
            _remove(kind, left)
        if not _is_complete(kind, root, parameters):
            _build(kind, root, parameters, write)


def _build(kind: Kind, root: Path, parameters: dict[str, Any], write: Callable[[Path], None]) -> None:
    partial, old = (root.with_name(f".{root.name}.{secrets.token_hex(6)}.partial") for _ in range(2))
    partial.mkdir()
    try:
        # From the start, so that what a killed process leaves can be told from what is another's.
        write_json(partial / kind.stamp, parameters)
        write(partial)
        write_json(partial / kind.stamp, {**parameters, "sha256": _digests(kind, partial)})
        _check_replaceable(kind, root)
        if root.exists():
            os.replace(root, old)
        try:
            os.replace(partial, root)
        except BaseException:
            if old.exists():
                os.replace(old, root)
            raise
    finally:
        for folder in (partial, old):
            if folder.exists():
                _remove(kind, folder)


def _is_complete(kind: Kind, root: Path, parameters: dict[str, Any]) -> bool:
    stamp = read_json(root / kind.stamp)
    if not isinstance(stamp, dict) or stamp.keys() - parameters.keys() != {"sha256"}:
        return False
    return {**stamp, **parameters} == stamp and stamp["sha256"] == _digests(kind, root)


def _digests(kind: Kind, root: Path) -> dict[str, str]:
    """The checksum of each file below `root` but the stamp, by its name."""
    return {
        name: hashlib.sha256((root / name).read_bytes()).hexdigest() if (root / name).is_file() else "none"
        for name in _names(kind, root)
    }


def _names(kind: Kind, root: Path) -> list[str]:
    """All that is below `root` and no folder, but the stamp."""
    paths = sorted(path for path in root.rglob("*") if path.is_symlink() or not path.is_dir())
    return [path.relative_to(root).as_posix() for path in paths if path != root / kind.stamp]


def _parts(kind: Kind, stamp: Any) -> Callable[[str], bool] | None:
    """Which files a folder with this stamp may hold, None if no stamp of ours says so."""
    if not isinstance(stamp, dict):
        return None
    return kind.parts({key: value for key, value in stamp.items() if key != "sha256"})


def _remove(kind: Kind, folder: Path) -> None:
    """Remove what was written into a folder with our stamp, and the folder if that was all, or if it is empty."""
    # The stamp last: a process killed in between leaves what the next one can remove.
    remove_leftovers(folder)
    is_part = _parts(kind, read_json(folder / kind.stamp))
    if is_part:
        remove_files(folder, [name for name in _names(kind, folder) if is_part(name)])
        for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
            with suppress(OSError):
                path.rmdir()
    remove_files(folder, [kind.stamp] if is_part else ())


def _check_replaceable(kind: Kind, root: Path) -> None:
    """Raise if something would be lost that was not written here, or has been changed since."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return
    keep = "name another folder, or move it away"
    stamp = read_json(root / kind.stamp)
    is_part = _parts(kind, stamp)
    if is_part is None or not isinstance(stamp.get("sha256"), dict):
        raise UserError(f"{root} holds something else than {kind.title} (no stamp {kind.stamp} says so): {keep}")
    for name, digest in _digests(kind, root).items():
        if not is_part(name) or stamp["sha256"].get(name) != digest:
            what = "has been changed since it was written as a part of" if is_part(name) else "is not of"
            raise UserError(f"{root / name} {what} {kind.title}, and would be lost: {keep}")
