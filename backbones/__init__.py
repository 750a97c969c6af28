"""Backbones registered with timm, one file a family."""

import timm

from . import agent, attention_cnns, biformer, coat, hat, inline, litv2, nat, van
from .attach import attach
from .modules import attention

__all__ = ["attach", "attention", "list_models"]

_FAMILIES = (agent, attention_cnns, biformer, coat, hat, inline, litv2, nat, van)


def list_models(filter: str = "") -> list[str]:
    """Names of attnzoo's own models, sorted as timm sorts them.

    Args:
        filter: shell-style pattern such as `"van_*"`; all if empty.
    """
    ours = {name for family in _FAMILIES for name in timm.list_models(module=family.__name__.rsplit(".", 1)[-1])}
    return [name for name in timm.list_models(filter) if name in ours]
