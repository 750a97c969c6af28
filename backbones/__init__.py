"""Backbones registered with timm, one file a family: every module in this folder is one, and is found.

Importing it changes nothing of timm but its registry: the families' own names, and those of CoaT, see `coat`.
"""

import importlib
import pkgutil
import warnings

try:
    import timm
except ModuleNotFoundError as error:
    # Of timm, or of what comes with it, such as torchvision.
    message = f"attnzoo's models need timm ({error}): pip install timm. attnzoo.kernels works without it"
    raise ModuleNotFoundError(message, name=error.name) from error

from .contract.facts import families
from .contract.registration import TimmChangedError
from .modules import attention
from .modules.attach import attach

__all__ = ["attach", "attention", "list_models"]


def _find_families() -> None:
    """Imports every module of this folder; the packages beside them hold what families share."""
    for found in pkgutil.iter_modules(__path__, f"{__name__}."):
        if not found.ispkg:
            try:
                importlib.import_module(found.name)
            except TimmChangedError as error:
                family = found.name.rpartition(".")[2]
                warnings.warn(f"{family}: the models of this name stay as timm has them: {error}", stacklevel=3)


_find_families()


def list_models(filter: str = "") -> list[str]:
    """Names of attnzoo's own models, sorted as timm sorts them.

    Args:
        filter: shell-style pattern such as `"van_*"`; all if empty.
    """
    ours = {name for names in families().values() for name in names}
    return [name for name in timm.list_models(filter) if name in ours]
