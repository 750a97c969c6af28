"""A table of nuScenes as columns: arrays instead of dictionaries, a tenth of the memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from .json_stream import JsonStream

# Rows that are brought into arrays at once: so few that Python's garbage collector does not meet them (twice as fast).
_BATCH = 1 << 8


@dataclass(frozen=True)
class Field:
    """A field of a table, and what it must hold.

    Attributes:
        name: Of the field.
        kind: `text`; `reference`, the token of a row of a table, text too; `integer`; `flag`; `numbers`, finite ones;
            `matrix`, 3 x 3 finite numbers or an empty list; `references`, a list of tokens, of which the first counts;
            `token_set`, a list of tokens.
        size: How many numbers.
        table: What a reference points to.
        optional: Whether a reference may be empty.
    """

    name: str
    kind: str
    size: int = 0
    table: str = ""
    optional: bool = False

    @property
    def expected(self) -> str:
        """In words."""
        if self.kind == "numbers":
            return f"a list of {self.size} finite numbers"
        words = {
            "text": "a text that is not empty",
            "reference": f"a token of {self.table}.json" + (" or an empty text" if self.optional else ""),
            "integer": "a whole number below 2**63",
            "flag": "true or false",
            "matrix": "3 x 3 finite numbers or an empty list",
            "references": f"a list of tokens of {self.table}.json",
            "token_set": "a list of tokens",
        }
        return words[self.kind]

    def array(self, values: list) -> np.ndarray | None:
        """The values as an array (rows, ...), or None where one is not what is expected."""
        try:
            return _ARRAYS[self.kind](self, values)
        except (ValueError, OverflowError, TypeError):
            return None


def _texts(field: Field, values: list) -> np.ndarray | None:
    if set(map(type, values)) - {str} or ("" in values and not field.optional):
        return None
    return np.array([value.encode() for value in values], np.bytes_)


def _integers(field: Field, values: list) -> np.ndarray | None:
    return None if set(map(type, values)) - {int} else np.array(values, np.int64)


def _flags(field: Field, values: list) -> np.ndarray | None:
    return None if set(map(type, values)) - {bool} else np.array(values, np.bool_)


def _numbers(field: Field, values: list) -> np.ndarray | None:
    if set(map(type, values)) - {list} or set(map(type, chain.from_iterable(values))) - {int, float}:
        return None
    # Shaped beforehand, since of no rows numpy knows no columns.
    array = np.array(values, np.float64).reshape(len(values), -1 if values else field.size)
    return array if array.shape[1] == field.size and np.isfinite(array).all() else None


def _matrices(field: Field, values: list) -> np.ndarray | None:
    array = np.full((len(values), 3, 3), np.nan)
    for i, value in enumerate(values):
        if value != []:
            rows = _numbers(Field(field.name, "numbers", 3), value)
            if rows is None or len(rows) != 3:
                return None
            array[i] = rows
    return array


def _token_lists(field: Field, values: list) -> np.ndarray | None:
    """(rows, 2): the first token of each list, and "+" where there are more."""
    if set(map(type, values)) - {list} or set(map(type, chain.from_iterable(values))) - {str}:
        return None
    pairs = [(value[0].encode() if value else b"", b"+" if len(value) > 1 else b"") for value in values]
    return np.array(pairs, np.bytes_).reshape(-1, 2)


def _token_sets(field: Field, values: list) -> np.ndarray | None:
    """(rows,): the tokens of each list with a space after each."""
    if set(map(type, values)) - {list} or set(map(type, chain.from_iterable(values))) - {str}:
        return None
    return np.array(["".join(f"{token} " for token in value).encode() for value in values], np.bytes_)


_ARRAYS: dict[str, Callable[[Field, list], np.ndarray | None]] = {
    "text": _texts,
    "reference": _texts,
    "integer": _integers,
    "flag": _flags,
    "numbers": _numbers,
    "matrix": _matrices,
    "references": _token_lists,
    "token_set": _token_sets,
}


class Table:
    """The rows of a JSON file, an array of objects with a token each.

    Args:
        path: Of the file.
        fields: What is read of each row, besides its token.
        keep: Whether a row, a dict, is kept; all are, by default.

    Attributes:
        path: Of the file.
        tokens: (rows,), bytes.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no such array, or a field is missing or not what is expected, naming file, token and field.
    """

    def __init__(self, path: Path, fields: tuple[Field, ...], keep: Callable[[dict], bool] | None = None) -> None:
        self.path = path
        self._fields = {field.name: field for field in (Field("token", "text"), *fields)}
        parts: dict[str, list[np.ndarray]] = {name: [] for name in self._fields}
        for rows in self._batches(keep):
            for name, field in self._fields.items():
                parts[name].append(self._column(field, rows))
        # Column by column, so that no more than one is there twice.
        self._columns = {name: np.concatenate(parts.pop(name)) for name in self._fields}
        self.tokens = self._columns.pop("token")

    def _batches(self, keep: Callable[[dict], bool] | None) -> Iterator[list[dict]]:
        rows: Iterator[dict] = JsonStream(self.path).rows()
        if keep is not None:
            rows = filter(self._checked(keep), rows)
        while batch := list(islice(rows, _BATCH)):
            yield batch
        # Of no rows the columns have their types too.
        yield []

    def _checked(self, keep: Callable[[dict], bool]) -> Callable[[dict], bool]:
        def decide(row: dict) -> bool:
            try:
                return keep(row)
            except (AttributeError, KeyError, TypeError):
                # What is wrong with it is said where its fields are read.
                return True

        return decide

    def _column(self, field: Field, rows: list[dict]) -> np.ndarray:
        try:
            array = field.array([row[field.name] for row in rows])
        except KeyError:
            array = None
        if array is not None:
            return array
        for row in rows:
            if field.name not in row:
                raise self.error(row.get("token"), f"the field {field.name!r} is missing")
            if field.array([row[field.name]]) is None:
                found = repr(row[field.name])
                raise self.error(row.get("token"), f"{field.name} must be {field.expected}, got {found:.80}")
        raise AssertionError("a batch is wrong and none of its rows is")

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, name: str) -> np.ndarray:
        """A column: texts and references are bytes, integers int64, numbers float64 (rows, size)."""
        return self._columns[name]

    def resolve(self, name: str, target: "Table") -> np.ndarray:
        """The column of a reference as rows of the table that it points to; read once, it is kept in this form.

        Returns:
            (rows,) of int64; -1 where an optional reference is empty. Of lists of references, the first, and -2 where
            there are more.

        Raises:
            ValueError: A token points nowhere, naming file, row and field.
        """
        column = self._columns[name]
        if column.dtype.kind != "S":
            return column
        tokens = column if column.ndim == 1 else column[:, 0]
        found = target.rows(tokens)
        wrong = (found < 0) & (tokens != b"")
        if wrong.any():
            row = int(wrong.argmax())
            raise self.error(
                self.token(row), f"{name} points to {tokens[row].decode()!r}, which is not in {target.path.name}"
            )
        if column.ndim == 2:
            found[column[:, 1] != b""] = -2
        self._columns[name] = found
        return found

    def token(self, row: int) -> str:
        """The token of a row."""
        return self.tokens[row].decode()

    def text(self, name: str, row: int) -> str:
        """A text of a row."""
        return self._columns[name][row].decode()

    def row(self, token: str) -> int:
        """The row of a token.

        Raises:
            ValueError: There is none, naming the file.
        """
        row = int(self.rows(np.array([token.encode()], np.bytes_))[0])
        if row < 0:
            raise ValueError(f"{self.path}: there is no row with the token {token!r}")
        return row

    def rows(self, tokens: np.ndarray) -> np.ndarray:
        """The rows (N,) of tokens (N,), bytes; -1 where there is none.

        Raises:
            ValueError: A token comes twice in the table.
        """
        if not len(self):
            return np.full(len(tokens), -1)
        order, known = self._index
        at = np.searchsorted(known, tokens).clip(max=len(known) - 1)
        return np.where(known[at] == tokens, order[at], -1)

    @cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows in the order of their tokens, and the tokens in order."""
        order = np.argsort(self.tokens)
        known = self.tokens[order]
        twice = known[1:] == known[:-1]
        if twice.any():
            raise self.error(known[int(twice.argmax())].decode(), "the token comes twice")
        return order, known

    def error(self, token: Any, problem: str) -> ValueError:
        """A ValueError with the file and the row."""
        return ValueError(f"{self.path}: row {token!r}: {problem}")
