"""Which parts of a model have a traceable form, and the error that names one without."""

from torch import nn


class UnsupportedModelError(ValueError):
    """The model has a part without a traceable form; the message names it and what there is."""


def inherits(module: nn.Module, base: type, *methods: str) -> bool:
    """Whether `module` is a `base` that leaves these methods to it, so that their traceable form here speaks for it."""
    return isinstance(module, base) and all(getattr(type(module), name) is getattr(base, name) for name in methods)


def require(condition: bool, what: str, part: object, allowed: str) -> None:
    """Raises an UnsupportedModelError with all three unless the condition holds.

    Args:
        condition: Whether there is a traceable form.
        what: The kind of part, e.g. "head".
        part: The part, or its name.
        allowed: The parts that have one.
    """
    if not condition:
        raise UnsupportedModelError(f"{what} {part} has no traceable form; allowed: {allowed}")
