"""Configs by path or by short name."""

from __future__ import annotations

import argparse
import difflib
import importlib
import importlib.util
import os
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING, Any

from ..common.errors import UserError
from .checks import check_names, check_options, check_types

if TYPE_CHECKING:
    from mmengine.config import Config

CONFIG_ROOT = Path(__file__).resolve().parents[2] / "configs"
PICKLES = ("pkl", "pickle")
# No YAML config is larger.
_MOST_VALUES = 1_000_000


def one_line(error: BaseException, limit: int = 400) -> str:
    """The type and message of an error on one line of at most `limit` characters."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def nearest(name: str, names: Iterable[str]) -> str:
    """A clause naming the entries of `names` nearest to `name`, empty when none is near."""
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def require_mm() -> None:
    """Import the bridge to the mm libraries.

    Raises:
        UserError: if one of them is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "attnzoo.heads needs")  # the error says it
            heads = importlib.import_module("...heads", __package__)
        for name in heads.__all__:
            getattr(heads, name)
        utils = importlib.import_module("mmengine.config.utils")
    except ImportError as error:
        raise UserError(
            f"this command needs the mm libraries: pip install 'attnzoo[mm]' ({one_line(error)})"
        ) from error
    # mmengine looks for a distribution named mmsegmentation; the maintained one is onedl-mmsegmentation, and its
    # module is found by its own name.
    utils.MODULE2PACKAGE["mmseg"] = "mmseg"


def list_configs() -> list[str]:
    """Short names of the packaged configs, such as `biformer/gfl_biformer_4e_digits`, without bases (`_base_/…`)."""
    names = (path.relative_to(CONFIG_ROOT).with_suffix("") for path in CONFIG_ROOT.rglob("*.py"))
    return sorted(name.as_posix() for name in names if not any(part.startswith("_") for part in name.parts))


def find_config(name: str) -> Path:
    """The file of a config given by path or by short name (with or without `.py`).

    Raises:
        UserError: if there is neither, naming the nearest packaged configs.
    """
    for path in (Path(name), CONFIG_ROOT / name, CONFIG_ROOT / f"{name}.py"):
        if os.path.isfile(path):
            return path
    names = list_configs()
    by_stem = {Path(short).name: short for short in names}
    wanted = name.removesuffix(".py")
    close = nearest(wanted, names) or nearest(Path(wanted).name, by_stem)
    raise UserError(f"no config {name!r}: neither a file nor a packaged config (attnzoo list --configs){close}")


def _moved(value: Any, old: str, new: str, key: str = "") -> Iterator[tuple[str, str]]:
    """The dotted keys of all strings that begin with `old`, and what they are with `new` instead."""
    if isinstance(value, str):
        if value.startswith(old):
            yield key, new + value[len(old) :]
        return
    entries = value.items() if hasattr(value, "items") else enumerate(value) if isinstance(value, list) else ()
    for name, part in entries:
        yield from _moved(part, old, new, f"{key}.{name}" if key else str(name))


def _own_line(error: BaseException | None) -> tuple[str, int] | None:
    """File and line, of a user's own, where an error comes from: the innermost that is no library's."""
    roots = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    roots |= {str(CONFIG_ROOT.parent / folder) for folder in ("tools", "heads", "backbones", "kernels")}
    folders = [Path(root).resolve() for root in roots]
    while error is not None:
        if isinstance(error, SyntaxError) and error.filename and os.path.isfile(error.filename) and error.lineno:
            return error.filename, error.lineno
        found = None
        for frame, line in walk_tb(error.__traceback__):
            name = frame.f_code.co_filename
            if isinstance(error, SyntaxError) and frame.f_code.co_name == "_is_lazy_import" and error.lineno:
                # mmengine parses a config as text without a name.
                found = str(frame.f_locals["filename"]), error.lineno
            elif os.path.isfile(name) and not any(Path(name).resolve().is_relative_to(root) for root in folders):
                found = name, line
        if found:
            return found
        error = error.__cause__ or error.__context__
    return None


def place_of(error: BaseException) -> str:
    """A clause naming the line of the user's own program that an error comes from, as far as there is one."""
    found = _own_line(error)
    return f" ({found[0]}, line {found[1]}; --traceback shows more)" if found else " (--traceback shows more)"


@contextmanager
def building(place: str) -> Iterator[None]:
    """Turn what constructors of any library raise inside the block into a UserError that begins with `place`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{place}: {one_line(error)}{place_of(error)}") from error


@contextmanager
def _plain_yaml() -> Iterator[None]:
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

    with _plain_yaml(), _handled(dict.fromkeys(PICKLES, NoPickle())):
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


def _read_config(path: Path) -> Config:
    from mmengine.config import Config
    from mmengine.fileio import load

    with _plain_yaml():
        if path.suffix in (".yaml", ".yml", ".json"):
            content = load(path)
            if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
                raise TypeError(f"a config has named values, this one holds a {type(content).__name__}")
        return Config.fromfile(path)


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


def load_config(name: str | Path, options: dict[str, Any] | None = None) -> Config:
    """Load an mm config and what it imports.

    A Python config is a program, and runs. Of YAML and JSON nothing runs, but they name modules to import, Python
    configs as their bases, and classes to build.

    Args:
        name: A path, or the short name of a packaged config.
        options: Dotted keys and the values that replace those of the file, as in mmengine's `--cfg-options`. A new
            `data_root` replaces that of the file wherever a path begins with it.

    Raises:
        UserError: if the mm libraries are missing, the config is unknown or raises, an option does not fit, or a value
            is of a wrong type or almost named as one that is read.
    """
    path = find_config(str(name))
    require_mm()
    try:
        cfg = _read_config(path)
    except Exception as error:  # a config is a program: it can raise anything
        raise UserError(f"{path}: the config cannot be loaded: {one_line(error)}{place_of(error)}") from error
    check_types(cfg)
    _check_scope(cfg)
    options = dict(options or {})
    check_options(cfg, options)
    old, new = cfg.get("data_root"), options.get("data_root")
    if isinstance(old, str) and old and isinstance(new, str):
        # The data sets and metrics of a config hold copies of its `data_root`.
        del options["data_root"]
        options = {**dict(_moved(cfg, old, f"{new.rstrip('/')}/" if old.endswith("/") else new)), **options}
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError, IndexError, AssertionError, AttributeError, ValueError) as error:
        raise UserError(f"--cfg-options does not fit {path}: {one_line(error)}") from error
    check_types(cfg)
    _check_scope(cfg)
    check_names(cfg)
    return cfg


def _check_scope(cfg: Config) -> None:
    scope = cfg.get("default_scope")
    try:
        found = not scope or importlib.util.find_spec(scope) is not None
    except ValueError:  # a module without a spec, such as __main__
        found = False
    if not found:
        raise UserError(f"{cfg.filename}: default_scope: needs {scope}, as mmdet or mmseg: pip install 'attnzoo[mm]'")


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add `--cfg-options`, to be read by `parse_options`."""
    parser.add_argument(
        "--cfg-options", nargs="+", metavar="K=V", default=[], help="replace values of the config, by dotted keys"
    )


def parse_options(pairs: list[str]) -> dict[str, Any]:
    """Parse `key=value` pairs as mmengine does: numbers, booleans, None, lists and tuples become such.

    Raises:
        UserError: if there is no `=` in one, a key is empty or given twice, or brackets do not match.
    """
    if not pairs:
        return {}
    require_mm()
    from mmengine.config import DictAction

    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, _ = pair.partition("=")
        if not equals or not all(key.split(".")):
            raise UserError(f"--cfg-options: {pair[:160]!r} is not of the form key=value")
        if key in options:
            raise UserError(f"--cfg-options: {key} is given twice")
        parser = argparse.ArgumentParser(allow_abbrev=False)
        parser.add_argument("options", nargs=1, action=DictAction)
        try:
            options |= parser.parse_args(["--", pair]).options
        except (AssertionError, RecursionError, ValueError) as error:
            raise UserError(f"--cfg-options: {pair[:160]!r}: no value can be read: {one_line(error, 160)}") from error
    return options
