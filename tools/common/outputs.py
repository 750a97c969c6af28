"""Outputs that take the place of nothing that is read, and of nothing that must stay."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .errors import UserError


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
    data, used = _innermost(read), {identity(path) for path in read}
    for output in map(Path, outputs):
        if identity(output) in used:
            raise UserError(f"{output}: is read by this command, which would replace it: name another output")
        there = standing(output)
        if there != output and not there.is_dir():
            raise UserError(f"{output}: cannot be written: {there} is no folder")
        if folders:
            if there == output and not output.is_dir():
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


def identity(path: str | os.PathLike) -> Any:
    """What all names of a file or folder share, whether by links or by other paths; of none, its path without links."""
    try:
        # Also of a way through a folder that is not there yet, and back.
        plain = os.path.realpath(path)
        found = os.stat(plain)
    except OSError:
        return plain
    except ValueError:  # a name that no file can have
        return os.fspath(path)
    return found.st_dev, found.st_ino


def standing(path: Path) -> Path:
    """The innermost of a path and the folders above it that is there."""
    return next((one for one in (path, *path.absolute().parents) if os.path.lexists(one)), path)
