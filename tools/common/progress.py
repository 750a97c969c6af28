"""One look for every progress bar."""

import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def shown() -> bool:
    """Whether bars are drawn: on a terminal, by the first process of a distributed run."""
    return sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"


def bar(
    iterable: Iterable | None = None, *, total: int | None = None, initial: int = 0, title: str = "", leave: bool = True
) -> Any:
    """A tqdm bar with the time to go, silent where no terminal looks on."""
    return tqdm(
        iterable, total=total, initial=initial, desc=title, leave=leave, disable=not shown(), dynamic_ncols=True
    )
