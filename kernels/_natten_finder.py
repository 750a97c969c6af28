"""How `import natten` and what looks for an installed natten find names of ours."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

_NOT_SERVED = ("na1d", "na3d", "natten1d", "natten3d", "NeighborhoodAttention1D", "NeighborhoodAttention3D")


class Finder(MetaPathFinder, Loader):
    """Finds `natten` and `natten.functional` where nobody before it in `sys.meta_path` has found one.

    Args:
        names: what both modules hold.
        version: of the distribution.
    """

    def __init__(self, names: dict[str, Any], version: str):
        self._names = names
        self._version = version

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What `import` asks for."""
        if fullname not in ("natten", "natten.functional"):
            return None
        return ModuleSpec(fullname, self, origin=__file__, is_package=fullname == "natten")

    def exec_module(self, module: ModuleType) -> None:
        """Fills a module."""
        vars(module).update(self._names, __version__=self._version, __getattr__=_absent)
        if module.__name__ == "natten":
            importlib.import_module("natten.functional")

    # The default is the one that `importlib.metadata` gives it.
    def find_distributions(self, context: Any = DistributionFinder.Context()) -> Iterator[Distribution]:  # noqa: B008
        """What `importlib.metadata` asks for."""
        if context.name in (None, "natten"):
            yield _Distribution(self._version)


class _Distribution(Distribution):
    """A name and a version."""

    def __init__(self, version: str):
        self._version = version

    def read_text(self, filename: str) -> str | None:
        return f"Metadata-Version: 2.1\nName: natten\nVersion: {self._version}\n" if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Path:
        return Path(__file__).parent / path


def _absent(name: str) -> Callable[..., NoReturn]:
    """In the place of a name of one or three dimensions: it can be imported beside those that are served."""
    if not name.startswith(_NOT_SERVED):
        raise AttributeError(f"attnzoo's stand-in for natten has no {name!r}")

    def absent(*args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(f"natten's {name}: attnzoo stands in for the functions of two dimensions only")

    return absent
