"""Checkpoints for the mm libraries: their log buffers, their ways of naming files, and `init_cfg`.

Importing this module makes mmengine read every checkpoint by `attnzoo.backbones.checkpoints`: mmengine itself falls
back to an unpickler that runs what a hostile file asks for.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import barrier, is_main_process
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint as of_mmengine
from mmengine.runner.checkpoint import CheckpointLoader

from ...backbones.checkpoints import CheckpointError, allow, read_checkpoint

Loader = Callable[[str, Any], dict[Any, Any]]

# Whether a file comes from there cannot be told before it has been read by libraries of their own.
UNREAD = ("pavi://", r"(\S+\:)?s3://", r"(\S+\:)?petrel://")


def _history(state: dict[str, Any]) -> HistoryBuffer:
    """A log buffer of its numbers alone: what it says of the statistics' functions would hold for all buffers."""
    length, values, counts = (state.get(name) for name in ("max_length", "_log_history", "_count_history"))
    if (
        not (isinstance(values, np.ndarray) and isinstance(counts, np.ndarray) and type(length) is int)
        or values.ndim != 1
        or values.shape != counts.shape
    ):
        raise CheckpointError("holds a log buffer that is not one of mmengine's")
    made = HistoryBuffer(max_length=length)
    made._log_history, made._count_history = values, counts
    return made


allow("mmengine.logging.history_buffer.HistoryBuffer", _history, ("current", "max", "mean", "min"))


def register(read: Callable[..., dict[Any, Any]] = read_checkpoint) -> None:
    """Let mmengine read checkpoints by `read`, from every place that it knows.

    Args:
        read: Called with a path or address and a `map_location`.
    """

    def load_from_file(filename: str, map_location: Any = None) -> dict[Any, Any]:
        return read(filename, map_location or "cpu")

    def load_from_http(filename: str, map_location: Any = None) -> dict[Any, Any]:
        # The first process downloads, the others find the file.
        if is_main_process():
            try:
                return load_from_file(filename, map_location)
            finally:
                barrier()
        barrier()
        return load_from_file(filename, map_location)

    def load_by_name(addresses: Callable[[], dict[str, str]]) -> Loader:
        def load_from_list(filename: str, map_location: Any = None) -> dict[Any, Any]:
            scheme, _, name = filename.partition("://")
            known = addresses()
            name = of_mmengine.get_deprecated_model_names().get(name, name) if "mmlab" in scheme else name
            if name not in known:
                raise CheckpointError(f"{filename}: mmengine has no checkpoint of this name")
            address = known[name]
            if "://" in address:
                return load_from_http(address, map_location)
            return load_from_file(str(Path(of_mmengine._get_mmengine_home(), address)), map_location)

        return load_from_list

    of_mmcls = load_by_name(of_mmengine.get_mmcls_models)

    def load_from_mmcls(filename: str, map_location: Any = None) -> dict[Any, Any]:
        return of_mmengine._process_mmcls_checkpoint(of_mmcls(filename, map_location))

    def load_from_nowhere(filename: str, map_location: Any = None) -> dict[Any, Any]:
        raise CheckpointError(f"{filename}: attnzoo reads no checkpoints from there: download it and give its path")

    for prefixes, loader in (
        ("", load_from_file),
        (("http://", "https://"), load_from_http),
        (("modelzoo://", "torchvision://"), load_by_name(of_mmengine.get_torchvision_models)),
        (("open-mmlab://", "openmmlab://"), load_by_name(of_mmengine.get_external_models)),
        ("mmcls://", load_from_mmcls),
        (UNREAD, load_from_nowhere),
    ):
        CheckpointLoader.register_scheme(prefixes=prefixes, loader=loader, force=True)


register()


def pretrained(init_cfg: Any, *more: str) -> dict[str, Any]:
    """The options of `init_cfg=dict(type="Pretrained", checkpoint=...)`.

    Args:
        init_cfg: As a module got it.
        more: Keys that this module knows besides `checkpoint`, `prefix` and `map_location`.

    Returns:
        All keys but `type`.

    Raises:
        ValueError: It has another type, an unknown key or no checkpoint.
    """
    allowed = ("checkpoint", "prefix", "map_location", *more)
    options = dict(init_cfg) if isinstance(init_cfg, dict) else {}
    kind = options.pop("type", None)
    unknown = [key for key in options if key not in allowed]
    if kind != "Pretrained" or not isinstance(options.get("checkpoint"), str | Path) or unknown:
        given = f"unknown are {', '.join(map(str, unknown))}" if unknown else "checkpoint is a path or an address"
        raise ValueError(
            f"init_cfg={init_cfg}: allowed are None and dict(type='Pretrained', checkpoint=...) with any of "
            f"{', '.join(allowed[1:])}; {given}"
        )
    return options


def read_state_dict(source: str | Path, prefix: str | None = None, map_location: Any = "cpu") -> dict[str, Any]:
    """The weights of a checkpoint.

    Args:
        source: A file, or an address of http or https.
        prefix: Take the tensors below it alone, e.g. `"backbone."`; their names are without it then.
        map_location: As of `torch.load`.

    Raises:
        FileNotFoundError: No such file.
        CheckpointError: It is no checkpoint, or has nothing below `prefix`.
    """
    state = read_checkpoint(source, map_location)["state_dict"]
    if not prefix:
        return state
    prefix = f"{prefix.removesuffix('.')}."
    part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not part:
        raise CheckpointError(f"{source}: has no tensor below {prefix!r}")
    return part
