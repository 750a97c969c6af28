"""Parts of messages: errors, values and names as one short line."""

import difflib
from collections.abc import Callable, Iterable
from typing import Any


def single_line(text: str) -> str:
    """A text with its lines, and whatever space is between words, as one line."""
    return " ".join(text.split())


def printable(text: str) -> str:
    """A text as one line of letters and signs only, whatever is in a name that it tells."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in single_line(text))


def shortened(text: str, limit: int) -> str:
    """The beginning of a text that is longer than `limit` characters, with a mark that it goes on."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def one_line(error: BaseException, limit: int = 400) -> str:
    """The type and message of an error on one line of at most `limit` characters."""
    return shortened(single_line(f"{type(error).__name__}: {error}"), limit)


def shown(value: Any) -> str:
    """Type and beginning of a value."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deep, or an integer of too many digits
        text = "…"
    return f"{type(value).__name__} {shortened(text, 80)}"


def some(values: Iterable[Any], most: int = 5, show: Callable[[Any], str] = repr) -> str:
    """The first of several values, with a mark where there are more."""
    listed = list(values)
    return ", ".join(map(show, listed[:most])) + (", …" if len(listed) > most else "")


def nearest(name: str, names: Iterable[str]) -> str:
    """A clause naming the entries of `names` nearest to `name`, empty when none is near."""
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""
