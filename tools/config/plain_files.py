"""Files of configs and data read without running code in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..common.errors import UserError

PICKLES = ("pkl", "pickle")
# No YAML config is larger.
_MOST_VALUES = 1_000_000


@contextmanager
def plain_yaml() -> Iterator[None]:
    """Let mmengine read YAML as values alone, inside the block; its own reader runs code."""
    from mmengine.fileio.handlers.yaml_handler import YamlHandler

    class PlainYaml(YamlHandler):
        def load_from_fileobj(self, file: Any, **options: Any) -> Any:
            import yaml

            content = yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            _count(content, {})
            return content

    with _handled(dict.fromkeys(("yaml", "yml"), PlainYaml())):
        yield


@contextmanager
def plain_files() -> Iterator[None]:
    """Let mmengine read no file of data inside the block that could run code: YAML as values alone, pickles not at all.

    Raises:
        UserError: for a pickle.
    """
    from mmengine.fileio import PickleHandler

    class NoPickle(PickleHandler):
        def load_from_fileobj(self, file: Any, **options: Any) -> Any:
            raise UserError(
                "a file of the data is a pickle, which is refused: code in it would run; write JSON instead"
            )

    with plain_yaml(), _handled(dict.fromkeys(PICKLES, NoPickle())):
        yield


@contextmanager
def _handled(handlers: dict[str, Any]) -> Iterator[None]:
    """Let mmengine read files by these handlers inside the block, by their suffix."""
    from mmengine.fileio.handlers import file_handlers

    kept = {suffix: file_handlers[suffix] for suffix in handlers}
    file_handlers.update(handlers)
    try:
        yield
    finally:
        file_handlers.update(kept)


def _count(value: Any, counts: dict[int, int]) -> int:
    """How many values a value of YAML is once each use of an alias is a copy, as in a config.

    Raises:
        ValueError: for more than a config can have, or a value that holds itself.
    """
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in counts:
        counts[id(value)] = _MOST_VALUES
        parts = value.values() if isinstance(value, dict) else value
        counts[id(value)] = 1 + sum(_count(part, counts) for part in parts)
    if counts[id(value)] >= _MOST_VALUES:
        raise ValueError(f"more than {_MOST_VALUES} values, or one that holds itself")
    return counts[id(value)]
