"""Backbones registered with timm, one file a family."""

import timm

from . import biformer, van

__all__ = ["list_models"]

_FAMILIES = (biformer, van)


def list_models(filter: str = "") -> list[str]:
    """Names of attnzoo's own models, sorted as timm sorts them.

    Args:
        filter: shell-style pattern such as `"van_*"`; all if empty.
    """
    ours = {name for family in _FAMILIES for name in timm.list_models(module=family.__name__.rsplit(".", 1)[-1])}
    return [name for name in timm.list_models(filter) if name in ours]
