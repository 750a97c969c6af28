"""Checks of arguments that come from configs, where a wrong type would else train with something that nobody meant.

A wrong type is a TypeError and a wrong value a ValueError, as in the mm libraries. `backbones.contract.arguments` has
one error for both, as timm's models do.
"""

import math
from collections.abc import Sequence
from typing import Any

from ..backbones.contract.arguments import is_integer, is_number, is_within

__all__ = ["check_bool", "check_choice", "check_int", "check_ints", "check_keys", "check_number", "check_text"]


def check_int(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """The value, if it is a whole number from `least` to `most`; a bool is none.

    Raises:
        TypeError: Naming the argument and what it got.
        ValueError: Likewise, with the range.
    """
    if not is_integer(value):
        raise TypeError(f"{name}={value!r}: must be a whole number, got {type(value).__name__}")
    number = int(value)
    if (least is not None and number < least) or (most is not None and number > most):
        raise ValueError(f"{name}={value!r}: must be {_range(least, most)}")
    return number


def check_ints(name: str, value: Any, least: int | None = None) -> tuple[int, ...]:
    """The value as a tuple, if it is a sequence of whole numbers, each of `least` or more; errors as `check_int`."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name}={value!r}: must be a sequence of whole numbers, got {type(value).__name__}")
    return tuple(check_int(f"{name}[{i}]", item, least) for i, item in enumerate(value))


def check_number(name: str, value: Any, least: float, most: float = math.inf, above: bool = False) -> float:
    """The value, if it is a finite number from `least` to `most`, or `above` the least; errors as `check_int`."""
    if not is_number(value):
        raise TypeError(f"{name}={value!r}: must be a number, got {type(value).__name__}")
    if not is_within(value, least, above=least if above else None, most=most):
        raise ValueError(f"{name}={value!r}: must be {_range(least, most, above)}")
    return float(value)


def check_bool(name: str, value: Any) -> bool:
    """The value, if it is True or False, else a TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r}: must be True or False, got {type(value).__name__}")
    return value


def check_text(name: str, value: Any) -> str:
    """The value, if it is a string, else a TypeError."""
    if not isinstance(value, str):
        raise TypeError(f"{name}={value!r}: must be a string, got {type(value).__name__}")
    return value


def check_choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raises a ValueError if the value is none of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: allowed are {', '.join(map(repr, allowed))}")


def check_keys(name: str, value: Any, allowed: Sequence[str]) -> dict[str, Any]:
    """A copy of the value, if it is a dict with keys among `allowed`.

    Raises:
        TypeError: It is no dict.
        ValueError: Naming the keys that are unknown, and those that are allowed.
    """
    if not isinstance(value, dict):
        raise TypeError(f"{name}={value!r}: must be a dict, got {type(value).__name__}")
    unknown = [key for key in value if key not in allowed]
    if unknown:
        raise ValueError(f"{name}: has no {', '.join(map(repr, unknown))}; allowed are {', '.join(allowed)}")
    return dict(value)


def _range(least: float | None, most: float | None, above: bool = False) -> str:
    """In words: "1 or more", "above 0", "from 0 to 1"."""
    if least == -math.inf:
        return "finite"
    if most is None or most == math.inf:
        return f"above {least}" if above else f"{least} or more"
    if least is None:
        return f"{most} or less"
    return f"above {least} and up to {most}" if above else f"from {least} to {most}"
