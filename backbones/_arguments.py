"""Checks of arguments: each raises one ValueError that names the argument, its value and what is allowed."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

__all__ = ["check_divisible", "check_integers", "check_numbers", "check_rates", "check_stages"]


def check_integers(least: int = 1, odd: bool = False, **values: Any) -> None:
    """Raises unless each value is an integer, or a sequence of integers, that is large enough.

    Args:
        least: that is allowed.
        odd: whether even ones are refused.
        **values: by the names of their arguments; sequences may be nested.
    """
    kind = f"odd integers of at least {least}" if odd else f"integers of at least {least}"
    for name, value in values.items():
        for entry in _entries(value):
            if not isinstance(entry, Integral) or entry < least or (odd and entry % 2 == 0):
                raise ValueError(f"{name}={value!r}: {kind} are needed")


def check_numbers(
    least: float | None = None, above: float | None = None, most: float | None = None, **values: Any
) -> None:
    """Raises unless each value is a finite number, or a sequence of them, within the limits.

    Args:
        least: that is allowed.
        above: what the value must exceed.
        most: that is allowed.
        **values: by the names of their arguments; sequences may be nested.
    """
    limits = {"at least": least, "above": above, "at most": most}
    kind = " and ".join(f"{words} {limit:g}" for words, limit in limits.items() if limit is not None)
    for name, value in values.items():
        for entry in _entries(value):
            number = float(entry) if isinstance(entry, Real) else math.nan
            if (
                not math.isfinite(number)
                or (least is not None and number < least)
                or (above is not None and number <= above)
                or (most is not None and number > most)
            ):
                raise ValueError(f"{name}={value!r}: finite numbers{' ' + kind if kind else ''} are needed")


def check_rates(**values: Any) -> None:
    """Raises unless each value is the probability of dropping something: at least 0 and below 1."""
    for name, value in values.items():
        if not isinstance(value, Real) or not 0 <= float(value) < 1:
            raise ValueError(f"{name}={value!r}: a number of at least 0 and below 1 is needed")


def check_stages(**values: Any) -> None:
    """Raises unless the values are sequences with one entry a stage, for one stage at least."""
    for name, value in values.items():
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(f"{name}={value!r}: a tuple with one entry a stage is needed")
    lengths = [len(value) for value in values.values()]
    if len(set(lengths)) > 1 or 0 in lengths:
        given = ", ".join(f"{name}={value!r}" for name, value in values.items())
        raise ValueError(f"{given}: one entry a stage is needed, as many in each")


def check_divisible(of: str, by: str, **values: Any) -> None:
    """Raises unless one argument is a multiple of another, entry by entry where they are sequences.

    Args:
        of: name of the argument that is divided.
        by: name of the one that divides it; what both say has been checked to be positive integers.
        **values: both, by their names.
    """
    for size, parts in zip(_entries(values[of]), _entries(values[by]), strict=True):
        if size % parts:
            raise ValueError(f"{of}={values[of]!r} and {by}={values[by]!r}: {by} must divide {of}, {parts} and {size}")


def _entries(value: Any) -> list[Any]:
    """The value itself, or all that a sequence holds."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [entry for part in value for entry in _entries(part)]
    return [value]
