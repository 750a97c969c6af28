"""Models by name: whether there is one, and built to take images of any size."""

from __future__ import annotations

from typing import Any

from ... import list_models
from .errors import UserError
from .messages import nearest

# Accepted by timm's models that are otherwise bound to one size.
FREE_SIZE: tuple[dict[str, Any], ...] = ({"strict_img_size": False}, {"dynamic_img_size": True}, {})


def check_model(name: str) -> None:
    """Check that there is such a model.

    Raises:
        UserError: if there is none, naming the nearest.
    """
    import timm

    if not timm.is_model(name):
        # The zoo's names first: timm's thousand would crowd them out.
        close = nearest(name, list_models()) or nearest(name, timm.list_models())
        raise UserError(f"no model {name!r}{close} (attnzoo list)")
    architecture, dot, tag = name.partition(".")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if dot and timm.models.is_model(architecture) and tag not in tags:
        raise UserError(f"{architecture} has no weights {tag!r}; allowed are {', '.join(tags) or 'none'}")


def create_free(name: str, **options: Any) -> Any:
    """A model of timm that takes images of any size, as far as it can.

    Args:
        name: Of the model.
        **options: Of `timm.create_model`.
    """
    import timm

    for free in FREE_SIZE:
        try:
            return timm.create_model(name, **options, **free)
        except TypeError:
            if not free:
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")
