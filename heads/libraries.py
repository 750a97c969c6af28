"""Whether the mm libraries and timm are there, and what a package that needs them says where one is not."""

from collections.abc import Callable, Collection
from importlib.util import find_spec
from typing import NoReturn

_NEEDED = ("timm", "torchvision", "mmengine", "mmcv", "mmdet", "mmseg")
MISSING = next((name for name in _NEEDED if find_spec(name) is None), None)
MESSAGE = f"attnzoo.heads needs {MISSING}: pip install 'attnzoo[mm]'"


def absent(package: str, names: Collection[str]) -> Callable[[str], NoReturn]:
    """The `__getattr__` of a package whose names need the library that is missing.

    Args:
        package: Its name, for the error of names that it never has.
        names: What it exports where the library is there; each raises an ImportError with `MESSAGE`.
    """

    def missing(name: str) -> NoReturn:
        if name in names:
            raise ImportError(MESSAGE, name=MISSING)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return missing
