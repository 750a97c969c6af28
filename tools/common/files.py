"""Files that are either complete or not there, and that take the place of nothing of the user's.

Commands write through `atomic_path` and remove through `remove_files`. What may be replaced or removed is known by
name and by a stamp that attnzoo has set there, never by a guess.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import UserError
from .locks import LOCK, lock_open_file
from .outputs import check_outputs

STAMP = ".attnzoo.json"

_TEMPORARY = re.compile(r"\.attnzoo-[0-9a-f]{12}\.tmp(\..*)?")
# What a full or failing disk says, mostly without the name of the file.
_NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def is_disk_error(error: BaseException) -> bool:
    """Whether an error is that of a disk that is full or fails, a limit on the size of files among them."""
    return isinstance(error, OSError) and error.errno in _NOT_WRITTEN


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Give the errors of a full or failing disk the name of what was to be written, where they have none."""
    try:
        yield
    except OSError as error:
        if error.filename is None and is_disk_error(error):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextmanager
def atomic_path(path: str | os.PathLike, inputs: Iterable[str | os.PathLike] = ()) -> Iterator[Path]:
    """Write a file under a temporary name and move it into place.

    The folder of `path` is made; what killed processes have left there goes. The temporary file stands in the same
    folder, so that the move is atomic, and keeps the suffix, since many writers choose the format by it. It is on the
    disk before the move, so that no loss of power leaves half of it under the final name.

    Args:
        path: The final name.
        inputs: Files that must not be replaced, as of `check_outputs`.

    Yields:
        The temporary name, to be written by the caller. It is removed when the block raises.

    Raises:
        UserError: if `path` is one of `inputs`, or a device.
        OSError: with the name of the file, also where the disk is full, or if the block has written nothing.
    """
    path = Path(path)
    check_outputs([path], inputs)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.parent.absolute() not in _swept:
        _swept.add(path.parent.absolute())
        remove_leftovers(path.parent)
    temporary = path.with_name(f".attnzoo-{secrets.token_hex(6)}.tmp{path.suffix}")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        # Whoever meets the file later knows by the lock whether its process lives.
        lock_open_file(descriptor)
        with naming(path):
            yield temporary
            if not temporary.stat().st_size:
                raise OSError(errno.EIO, "nothing was written", str(path))
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(descriptor)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot do this for folders.
        if is_disk_error(error):
            raise
    finally:
        os.close(descriptor)


def write_json(path: str | os.PathLike, content: Any) -> Path:
    """Write `content` as indented JSON, atomically; return the path."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return Path(path)


_swept: set[Path] = set()  # folders that this process has looked through for leftovers


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Remove the temporary files that killed processes of attnzoo have left in a folder; those of living ones stay."""
    for path in Path(folder).iterdir():
        if not _TEMPORARY.fullmatch(path.name) or not path.is_file():
            continue
        try:
            # For writing, as NFS locks no others.
            descriptor = os.open(path, os.O_RDWR)
        except (FileNotFoundError, PermissionError):
            continue
        try:
            if lock_open_file(descriptor):
                path.unlink(missing_ok=True)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)


@contextmanager
def new_folders(*folders: Path) -> Iterator[None]:
    """Remove folders that the block has made, and those above them, where they are empty in the end."""
    absent = [path for folder in folders for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        for path in absent:
            with contextlib.suppress(OSError):
                path.rmdir()


def remove_files(folder: str | os.PathLike, names: Iterable[str | os.PathLike]) -> None:
    """Remove files by name, and then the folders that have become empty, `folder` among them; all else stays.

    Args:
        folder: Where they stand.
        names: Relative to it; those that are not there are passed over.
    """
    root, files = Path(folder), [Path(name) for name in names]
    for file in files:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            (root / file).unlink()
    parents = {parent for file in files for parent in file.parents} | {Path()}
    for parent in sorted(parents, key=lambda path: len(path.parts), reverse=True):
        with contextlib.suppress(OSError):
            (root / parent).rmdir()


def claim(folder: str | os.PathLike, owner: str, known: Iterable[str] = ()) -> None:
    """Take a folder for the files that a command writes under names of its own, and stamp it as taken.

    Args:
        folder: It is made if it is not there. It may be empty, or carry the stamp of the same owner.
        owner: The command.
        known: Names in it that do not matter, as they are checked elsewhere.

    Raises:
        UserError: if something is in the folder and no such stamp.
    """
    folder = Path(folder)
    stamp = {"written_by": owner}
    if folder.is_dir() and read_json(folder / STAMP) != stamp:
        others = sorted(path.name for path in folder.iterdir() if path.name not in (STAMP, LOCK, *known))
        if others:
            raise UserError(
                f"{folder}: holds {others[0]!r}, and nothing says that {owner!r} wrote it: name another folder, or "
                "move that away"
            )
    write_json(folder / STAMP, stamp)


def read_json(path: str | os.PathLike) -> Any:
    """The content of a JSON file, None where there is no file or no JSON in it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
