"""Configs by path or by short name."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import UserError
from ..common.messages import nearest, one_line
from .building import place_of
from .fields import check_types
from .names import check_names, check_options
from .plain_files import plain_yaml

if TYPE_CHECKING:
    from mmengine.config import Config

CONFIG_ROOT = Path(__file__).resolve().parents[2] / "configs"


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


def _read_config(path: Path) -> Config:
    from mmengine.config import Config
    from mmengine.fileio import load

    with plain_yaml():
        if path.suffix in (".yaml", ".yml", ".json"):
            content = load(path)
            if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
                raise TypeError(f"a config has named values, this one holds a {type(content).__name__}")
        return Config.fromfile(path)


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
