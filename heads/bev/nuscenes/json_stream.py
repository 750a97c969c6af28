"""JSON files of gigabytes, read value by value: no more than a part of the text and one value are in memory."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

# Characters read at once. A value may be longer.
_CHUNK = 1 << 20
# A value that does not end within so many characters is taken for broken.
_LONGEST_VALUE = 1 << 26
_SPACE = re.compile(r"[ \t\r\n]*")


class JsonStream:
    """A JSON file of one array or one object whose parts are taken one after the other.

    Args:
        path: Of the file, UTF-8.

    Raises:
        FileNotFoundError: There is no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._decode = json.JSONDecoder().raw_decode
        self._text = ""
        self._at = 0
        # Characters of the file before `_text`.
        self._before = 0
        self._file: TextIO | None = None

    def rows(self) -> Iterator[dict[str, Any]]:
        """The objects of a file that holds an array of objects.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is no such array, naming file and place.
        """
        with self._opened():
            for row in self._items("[", "]", self._value):
                if not isinstance(row, dict):
                    raise self._error("an object is expected")
                yield row
            self._end()

    def entries(self, nested: str) -> Iterator[tuple[str | None, str, Any]]:
        """The entries of a file that holds an object, and those of the object under one of its keys.

        Args:
            nested: A key whose value, an object, is taken entry by entry.

        Yields:
            `(None, key, value)` for the entries of the file's object, `(nested, key, value)` for those of the nested
            one, and `(None, nested, None)` where it starts.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is no such object, or a key comes twice, naming file and place.
        """
        with self._opened():
            for key in self._items("{", "}", self._key, unique=True):
                if key == nested:
                    yield None, key, None
                    for inner in self._items("{", "}", self._key, unique=True):
                        yield nested, inner, self._value()
                else:
                    yield None, key, self._value()
            self._end()

    def _opened(self) -> TextIO:
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: there is no such file")
        self._text, self._at, self._before = "", 0, 0
        self._file = self.path.open(encoding="utf-8")
        return self._file

    def _items(self, start: str, end: str, take: Any, unique: bool = False) -> Iterator[Any]:
        """What `take` reads between two brackets, with commas between."""
        self._character(start)
        if self._peek() == end:
            self._at += 1
            return
        seen = set()
        while True:
            item = take()
            if unique:
                if item in seen:
                    raise self._error(f"the key {item!r} comes twice")
                seen.add(item)
            yield item
            if self._character(f",{end}") == end:
                return

    def _key(self) -> str:
        key = self._value()
        if not isinstance(key, str):
            raise self._error("a key is expected")
        self._character(":")
        return key

    def _value(self) -> Any:
        """The next value, with as much text as it needs."""
        self._peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except RecursionError:
                raise self._error("nested too deep") from None
            except ValueError:
                if len(self._text) - self._at > _LONGEST_VALUE or not self._more():
                    raise self._error("no JSON") from None
                continue
            # A number may go on behind what has been read.
            if end < len(self._text) or not self._more():
                self._at = end
                return value

    def _peek(self) -> str:
        """The next character that is no space, without taking it; empty at the end of the file."""
        while True:
            space = _SPACE.match(self._text, self._at)
            assert space is not None
            self._at = space.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _character(self, allowed: str) -> str:
        found = self._peek()
        if not found or found not in allowed:
            raise self._error(f"{' or '.join(map(repr, allowed))} is expected")
        self._at += 1
        return found

    def _end(self) -> None:
        if self._peek():
            raise self._error("the file should end here")

    def _more(self) -> bool:
        """Read on; what has been taken is dropped."""
        assert self._file is not None
        try:
            # Doubled where a value is long, so that its start is not read again and again.
            text = self._file.read(max(_CHUNK, len(self._text) - self._at))
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: no UTF-8 ({error})") from error
        if not text:
            return False
        self._before += self._at
        self._text, self._at = self._text[self._at :] + text, 0
        return True

    def _error(self, problem: str) -> ValueError:
        return ValueError(f"{self.path}: {problem}, at character {self._before + self._at}")
