"""attnzoo: attention backbones for computer vision, as timm models.

`import attnzoo` registers every model with timm and needs torch and timm alone. The mm libraries are met by
`import attnzoo.heads`, the commands by `attnzoo --help`. `import attnzoo.kernels` needs torch alone: without timm
there are no models, and what this package exports of them raises an ImportError that says what to install.
"""

from typing import NoReturn

__version__ = "0.1.0"
__all__ = ["__version__", "attach", "attention", "list_models"]

try:
    from .backbones import attach, attention, list_models
except ModuleNotFoundError as error:
    # A library is missing; a part of one, or of this package, would be a fault that nobody should overlook.
    if error.name is None or "." in error.name:
        raise
    _missing = error

    def __getattr__(name: str) -> NoReturn:
        if name in __all__:
            raise ImportError(str(_missing), name=_missing.name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
