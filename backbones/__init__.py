"""Backbones registered with timm, one file a family.

Importing it changes nothing of timm but its registry: the families' own names, and those of CoaT, see `coat`.
"""

import warnings

import timm

from . import agent, attention_cnns, biformer, hat, inline, litv2, nat, van
from .contract.registration import TimmChangedError
from .modules import attention
from .modules.attach import attach

__all__ = ["attach", "attention", "list_models"]

_FAMILIES = [agent, attention_cnns, biformer, hat, inline, litv2, nat, van]
try:
    from . import coat

    _FAMILIES.append(coat)
except TimmChangedError as error:
    warnings.warn(f"the models of CoaT stay as timm has them, bound to their image size: {error}", stacklevel=2)


def list_models(filter: str = "") -> list[str]:
    """Names of attnzoo's own models, sorted as timm sorts them.

    Args:
        filter: shell-style pattern such as `"van_*"`; all if empty.
    """
    ours = {family.__name__ for family in _FAMILIES}
    return [name for name in timm.list_models(filter) if timm.model_entrypoint(name).__module__ in ours]
