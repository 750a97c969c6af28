"""Configs by path or by short name."""

from __future__ import annotations

import argparse
import difflib
import importlib
import importlib.util
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    from mmengine.config import Config

CONFIG_ROOT = Path(__file__).resolve().parents[1] / "configs"


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
            heads = importlib.import_module("..heads", __package__)
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
        if path.is_file():
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


def load_config(name: str | Path, options: dict[str, Any] | None = None) -> Config:
    """Load an mm config and what it imports.

    Args:
        name: A path, or the short name of a packaged config.
        options: Dotted keys and the values that replace those of the file, as in mmengine's `--cfg-options`. A new
            `data_root` replaces that of the file wherever a path begins with it.

    Raises:
        UserError: if the mm libraries are missing, the config is unknown or raises, or an option does not fit.
    """
    path = find_config(str(name))
    require_mm()
    from mmengine.config import Config

    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is a program: it can raise anything
        raise UserError(f"{path}: the config cannot be loaded: {one_line(error)}") from error
    scope = cfg.get("default_scope")
    if scope and importlib.util.find_spec(scope) is None:
        raise UserError(f"{path}: needs {scope}: pip install 'attnzoo[mm]'")
    options = dict(options or {})
    old, new = cfg.get("data_root"), options.get("data_root")
    if old and isinstance(new, str):
        # The data sets and metrics of a config hold copies of its `data_root`.
        del options["data_root"]
        options = {**dict(_moved(cfg, old, f"{new.rstrip('/')}/" if old.endswith("/") else new)), **options}
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError, IndexError, AssertionError) as error:
        raise UserError(f"--cfg-options does not fit {path}: {one_line(error)}") from error
    return cfg


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add `--cfg-options`, to be read by `parse_options`."""
    parser.add_argument(
        "--cfg-options", nargs="+", metavar="K=V", default=[], help="replace values of the config, by dotted keys"
    )


def parse_options(pairs: list[str]) -> dict[str, Any]:
    """Parse `key=value` pairs as mmengine does: numbers, booleans, None, lists and tuples become such.

    Raises:
        UserError: if there is no `=` in one.
    """
    bad = [pair for pair in pairs if "=" not in pair]
    if bad:
        raise UserError(f"--cfg-options: {bad[0]!r} is not of the form key=value")
    if not pairs:
        return {}
    require_mm()
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--options", nargs="+", action=DictAction)
    return parser.parse_args(["--options", *pairs]).options
