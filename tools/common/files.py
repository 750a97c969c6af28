"""Files that are either complete or not there, and that take the place of nothing of the user's.

Commands write through `atomic_path` and remove through `remove_files`. What may be replaced or removed is known by
name and by a stamp that attnzoo has set there, never by a guess.
"""

import contextlib
import errno
import json
import os
import re
import secrets
import socket
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import UserError, warn

LOCK = ".attnzoo.lock"
STAMP = ".attnzoo.json"

_TEMPORARY = re.compile(r"\.attnzoo-[0-9a-f]{12}\.tmp(\..*)?")
# What stands in a lock, or nothing where its process was killed at once.
_HOLDER = re.compile(rb"(?:process \d+ on [^\n]*\n)?")
# What a full or failing disk says, mostly without the name of the file.
_NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
# What a file system without locks says, NFS for instance.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF)


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


def check_outputs(
    outputs: Iterable[str | os.PathLike],
    inputs: Iterable[str | os.PathLike] = (),
    *,
    overwrite: bool = True,
    folders: bool = False,
) -> None:
    """Check, before any work is done, that no output takes the place of something else.

    Args:
        outputs: The files that a command is going to write.
        inputs: The files or folders that it reads, by whatever names: links are followed. What stands in a folder that
            is read is not replaced either, unless others of them stand in it or the command is run in it.
        overwrite: Whether a file may be replaced that is there already and is no input.
        folders: The outputs are folders to write into, in place of files.

    Raises:
        UserError: naming the first output that is an input, that cannot be written, that is there already, or that is
            another output, too.
    """
    read, written = [Path(path) for path in inputs], set()
    data = _innermost(read)
    for output in map(Path, outputs):
        for path in read:
            if _is_same(output, path):
                raise UserError(f"{output}: is read by this command, which would replace it: name another output")
        standing = next((path for path in (output, *output.absolute().parents) if os.path.lexists(path)), output)
        if standing != output and not standing.is_dir():
            raise UserError(f"{output}: cannot be written: {standing} is no folder")
        if folders:
            if standing == output and not output.is_dir():
                raise UserError(f"{output}: is no folder: name another one")
            continue
        if output.is_dir():
            raise UserError(f"{output}: is a folder: name a file")
        if output.exists() and not output.is_file():
            raise UserError(f"{output}: is no regular file, and cannot be replaced by one")
        if os.path.lexists(output) and not overwrite:
            raise UserError(f"{output}: is there already: name another file, or give --overwrite to replace it")
        # What is replaced is a name, whatever it links to.
        name = Path(os.path.realpath(output.parent), output.name)
        inside = next((folder for folder in data if name.is_relative_to(folder)), None)
        if os.path.lexists(output) and inside is not None:
            raise UserError(f"{output}: stands in {inside}, which this command reads: name another output")
        if name in written:
            raise UserError(f"{output}: would be written twice: name another file for one of the outputs")
        written.add(name)


def _innermost(paths: list[Path]) -> list[Path]:
    """The folders among paths in which neither another of them stands nor this process, with links resolved."""
    folders = {path.resolve() for path in paths if path.is_dir()}
    return [
        folder
        for folder in folders
        if not Path.cwd().is_relative_to(folder)
        and not any(other != folder and other.is_relative_to(folder) for other in folders)
    ]


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there
        return os.path.realpath(one) == os.path.realpath(other)


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
        _lock(descriptor)
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


def _lock(descriptor: int) -> bool:
    """Lock an open file for this process; whether the file system can.

    Raises:
        BlockingIOError: if another process, or another part of this one, holds the lock.
    """
    try:
        import fcntl
    except ImportError:  # no POSIX
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


_held: set[int] = set()
_swept: set[Path] = set()  # folders that this process has looked through for leftovers


def _let_go() -> None:
    """Close what a forked process, such as a data loader's, has inherited: the lock must die with its holder."""
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextmanager
def locked(path: str | os.PathLike, what: str) -> Iterator[bool]:
    """Hold a lock that ends with the block, or with the process however that ends.

    Args:
        path: The file to lock. It is made, with its folder, and removed in the end; one that a killed process has left
            is taken over.
        what: Is locked, for the message.

    Yields:
        Whether the lock is held. Without it, where the file system has no locks, a warning is given.

    Raises:
        UserError: if another process holds the lock, naming it, or if the file is none that this function has made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except OSError as error:
            if path.is_symlink() or path.is_dir():
                raise UserError(f"{path}: is no lock of attnzoo: move it away") from error
            raise
        try:
            holds = _lock(descriptor)
            # The holder before may have removed the file between the two calls.
            if not holds or _is_open_file(descriptor, path):
                _check_lock(descriptor, path)
                break
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace").strip()
            os.close(descriptor)
            raise UserError(
                f"{what}: another run is at work there ({holder or 'unknown process'}): wait for it, stop it, or name "
                "another folder"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    if not holds:
        warn(f"{what}: the file system has no locks: take care that no other run works there")
    _held.add(descriptor)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield holds
    finally:
        if descriptor in _held:  # not in a process forked meanwhile
            _held.remove(descriptor)
            path.unlink(missing_ok=True)
            os.close(descriptor)


def _check_lock(descriptor: int, path: Path) -> None:
    """Check that an open file is a lock, or one that was just made, before it is written and removed."""
    regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
    if not regular or not _HOLDER.fullmatch(os.read(descriptor, 400)):
        raise UserError(f"{path}: is no lock of attnzoo: move it away")
    os.lseek(descriptor, 0, os.SEEK_SET)


def _is_open_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


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
            if _lock(descriptor):
                path.unlink(missing_ok=True)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)


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
