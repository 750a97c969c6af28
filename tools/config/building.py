"""Errors of what a config builds, with the line of the user's own that they come from."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb

from ..common.errors import UserError
from ..common.messages import one_line

_PACKAGE = Path(__file__).resolve().parents[2]


def _own_line(error: BaseException | None) -> tuple[str, int] | None:
    """File and line, of a user's own, where an error comes from: the innermost that is no library's."""
    roots = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    roots |= {str(_PACKAGE / folder) for folder in ("tools", "heads", "backbones", "kernels")}
    folders = [Path(root).resolve() for root in roots]
    while error is not None:
        if isinstance(error, SyntaxError) and error.filename and os.path.isfile(error.filename) and error.lineno:
            return error.filename, error.lineno
        found = None
        for frame, line in walk_tb(error.__traceback__):
            name = frame.f_code.co_filename
            if isinstance(error, SyntaxError) and frame.f_code.co_name == "_is_lazy_import" and error.lineno:
                # mmengine parses a config as text without a name.
                found = str(frame.f_locals["filename"]), error.lineno
            elif os.path.isfile(name) and not any(Path(name).resolve().is_relative_to(root) for root in folders):
                found = name, line
        if found:
            return found
        error = error.__cause__ or error.__context__
    return None


def place_of(error: BaseException) -> str:
    """A clause naming the line of the user's own program that an error comes from, as far as there is one."""
    found = _own_line(error)
    return f" ({found[0]}, line {found[1]}; --traceback shows more)" if found else " (--traceback shows more)"


@contextmanager
def building(place: str) -> Iterator[None]:
    """Turn what constructors of any library raise inside the block into a UserError that begins with `place`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # what a config builds can raise anything
        raise UserError(f"{place}: {one_line(error)}{place_of(error)}") from error
