"""Stand-in for `mmcv._ext`, the compiled half of `mmcv.ops`.

The pip packages of mmcv carry no compiled operators, and `import mmcv.ops`, hence `import mmdet.models`, fails without
them. `install()` makes the import succeed on torchvision's and PyTorch's operators, with mmcv's calling conventions
(named arguments of its pybind module, results written into the tensors passed in). A compiled `mmcv._ext` that is
installed always wins, because the finder stands last in `sys.meta_path`; of its operators `replacement.use_operators`
takes those that a user wants from here.

Operators compute 16-bit floats in float32 and round once, when the result is written.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

from . import carafe, deform_attn, deform_conv, focal, masked, nms, psamask, roi

__all__ = ["OPERATORS", "install", "replace_fallbacks"]

MODULE_NAME = "mmcv._ext"


def get_compiler_version() -> str:
    """What `mmcv.ops.get_compiler_version` prints in environment reports."""
    return "none: attnzoo.heads.mm.ops in place of mmcv._ext"


def get_compiling_cuda_version() -> str:
    """What `mmcv.ops.get_compiling_cuda_version` prints; mmcv's own words for a build without CUDA."""
    return "not available"


OPERATORS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        get_compiler_version,
        get_compiling_cuda_version,
        *carafe.OPERATORS,
        *deform_attn.OPERATORS,
        *deform_conv.OPERATORS,
        *focal.OPERATORS,
        *masked.OPERATORS,
        *nms.OPERATORS,
        *psamask.OPERATORS,
        *roi.OPERATORS,
    )
}


def _missing(name: str) -> Callable[..., NoReturn]:
    """Returns a function in the place of operator `name` that says, when called, that it is not served.

    mmcv asks for the names of all its operators at import, so a missing one may only fail when it is used.
    """
    if name.startswith("__"):
        raise AttributeError(f"module {MODULE_NAME!r} has no attribute {name!r}")

    def missing(*args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(
            f"mmcv's operator {name!r} is compiled, and no compiled mmcv is installed; attnzoo stands in for these "
            f"operators only: {', '.join(sorted(OPERATORS))}"
        )

    missing.__name__ = name
    return missing


class _Finder(MetaPathFinder, Loader):
    """Finds `mmcv._ext` here when nobody before it in `sys.meta_path` has found a compiled one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        # A spec, not only a module: mmengine's `mmcv_full_available` looks for one.
        return ModuleSpec(fullname, self, origin=__file__) if fullname == MODULE_NAME else None

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(OPERATORS, __getattr__=_missing)


def install() -> None:
    """Serves `mmcv._ext` from here on, unless a compiled one is installed. Calling it again changes nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())


def replace_fallbacks() -> None:
    """Puts mmcv's operators where mmdet, imported before `install`, has put what raises in their place."""
    served: dict[str, Any] = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] != "mmdet":
            continue
        for key, value in list(vars(module).items()):
            if str(getattr(value, "__module__", None)).startswith("mmdet.") and _is_fallback(value):
                served = served or _served()
                # Some are imported under their name with an underscore before it.
                if key.lstrip("_") in served:
                    setattr(module, key, served[key.lstrip("_")])


def _served() -> dict[str, Any]:
    """All that the modules of `mmcv.ops` define, by name; it exports a part."""
    ops = [import_module(name) for name in ("mmcv.ops", "mmcv.ops.merge_cells")]
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("mmcv.ops.")]
    return {key: value for module in [*modules, *ops] for key, value in vars(module).items()}


def _is_fallback(value: Any) -> bool:
    """Whether it is a function or class of mmdet whose only message is that mmcv is not compiled."""
    code = getattr(vars(value).get("__init__") if isinstance(value, type) else value, "__code__", None)
    return any(
        "requires mmcv to be compiled" in text for text in getattr(code, "co_consts", ()) if isinstance(text, str)
    )
