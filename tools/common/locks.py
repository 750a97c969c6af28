"""Locks that end with their process."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError, warn

LOCK = ".attnzoo.lock"
# What stands in a lock, or nothing where its process was killed at once.
_HOLDER = re.compile(rb"(?:process \d+ on [^\n]*\n)?")
# What a file system without locks says, NFS for instance.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF)


def lock_open_file(descriptor: int) -> bool:
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
            holds = lock_open_file(descriptor)
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
