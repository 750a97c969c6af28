"""Checkpoints of any origin, read without running code of theirs: the one reader of backbones, heads and commands.

Needs torch, safetensors, tqdm and numpy alone. What a file holds is decided by its content, not by its name:
safetensors, or what `torch.save` writes. A pickle can ask for any function to be called; here it gets PyTorch's
tensors, containers and plain values, arrays of numbers, `argparse.Namespace` as a mere holder of attributes, and what
`allow` adds.

Every damage of an archive of `torch.save` is noticed, as it has checksums; in safetensors and in files of PyTorch
before 1.6 only what concerns their structure, as numbers there have none.
"""

import hashlib
import json
import os
import re
import threading
import urllib.parse
import urllib.request
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .archives import ZIP_START, check_archive, check_stream
from .pickles import STAND_INS, Refused, finished, stand_in

__all__ = ["CheckpointError", "allow", "check_weights", "read_checkpoint", "read_safetensors"]

# Where weights stand in a checkpoint, the averaged ones first, as timm has it.
PLACES = ("state_dict_ema", "model_ema", "state_dict", "model", "params_ema", "params", "ema_state_dict")

# Seconds that a server may send nothing.
SILENCE = 60.0

_lock = threading.Lock()


class CheckpointError(RuntimeError):
    """A file that is no checkpoint, is damaged, wants to run code, or does not fit; the message names it."""


def allow(path: str, build: Callable[[dict[str, Any]], Any], members: Iterable[str] = ()) -> None:
    """Let checkpoints hold objects of one more class.

    Args:
        path: of the class, as `module.Name`.
        build: makes the object from a dict of its attributes, which it must not trust.
        members: names of methods of the class that its pickles refer to; they are read as text.
    """
    STAND_INS[path], _ = stand_in(path, build, members)


def read_checkpoint(source: str | os.PathLike, map_location: Any = "cpu") -> dict[Any, Any]:
    """Read a checkpoint; code in it is never run.

    Args:
        source: A file of safetensors or of `torch.save`, or its address (`http://` or `https://`), from which it is
            downloaded to PyTorch's folder of checkpoints, unless it is there. It holds a bare state dict, or one under
            `state_dict`, `model` or another of `PLACES`. A hash in the name of a downloaded file is checked.
        map_location: As of `torch.load`.

    Returns:
        The content of the file, with the weights under `state_dict` (plain tensors without gradient, by name) and a
        dict, possibly empty, under `meta`.

    Raises:
        FileNotFoundError: No such file.
        CheckpointError: It cannot be downloaded or read, is damaged, is no checkpoint, or wants to run code.
    """
    if re.match(r"https?://", str(source), re.IGNORECASE):
        return _downloaded(str(source), map_location)
    if re.match(r"[a-z][\w+.-]*://", str(source), re.IGNORECASE):
        raise CheckpointError(f"{source}: only files and addresses of http and https are read: download it")
    return _read(Path(source).expanduser(), map_location)


def _read(path: Path, map_location: Any) -> dict[Any, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {str(path)!r}: no such file")
    try:
        content = _content(path, map_location)
        if not isinstance(content, dict):
            raise Refused(f"holds a {type(content).__name__}, not a checkpoint")
        return _with_weights(content)
    except Refused as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # each reader fails in its own ways on a damaged file
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise CheckpointError(f"{path}: truncated, or not a checkpoint ({reason})") from error


def _content(path: Path, map_location: Any) -> Any:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(9)
        if start.startswith(ZIP_START):
            return _torch_load(file, size, map_location, check_archive)
        if _is_safetensors(start, size):
            tensors, _ = _safetensors(path)
            return {key: _moved(value, map_location) for key, value in tensors.items()}
        if path.suffix == ".safetensors" and not start.startswith(b"\x80"):
            raise Refused("truncated, or not a safetensors file")
        return _torch_load(file, size, map_location, check_stream)


def _is_safetensors(start: bytes, size: int) -> bool:
    """Whether a file begins with the length of a header that it has, and with JSON."""
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= size - 8


def _torch_load(file: BinaryIO, size: int, map_location: Any, check: Callable[..., None]) -> Any:
    check(file, size, STAND_INS)
    file.seek(0)
    # The list is the process's own. What others have put on it could stand for the same names.
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch warns of is refused
        others = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals([(value, path) for path, value in STAND_INS.items()])
        try:
            content = torch.load(file, map_location=map_location, weights_only=True, mmap=False)
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(others)
    return finished(content)


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import safe_open

    with safe_open(path, "pt") as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118, it is no dict
        metadata = opened.metadata() or {}
    with path.open("rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
    json.loads(header, object_pairs_hook=_unique)
    return tensors, metadata


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise Refused(f"damaged: its header has {name[:60]!r} twice")
        found[name] = value
    return found


def read_safetensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file and the text beside them.

    Raises:
        FileNotFoundError: No such file.
        CheckpointError: It is truncated, or no safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}")
    try:
        return _safetensors(path)
    except Exception as error:  # safetensors raises an error of its own kind
        raise CheckpointError(f"{path}: truncated, or not a safetensors file ({error})") from error


def _moved(tensor: Tensor, map_location: Any) -> Tensor:
    return tensor.to(map_location) if isinstance(map_location, str | torch.device) else tensor


def _with_weights(content: dict[Any, Any]) -> dict[Any, Any]:
    place = next((key for key in PLACES if isinstance(content.get(key), dict)), None)
    state = content if place is None else content[place]
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise Refused("holds no weights (a dict of tensors, or one under 'state_dict' or 'model')")
    odd = next((key for key in state if not isinstance(key, str)), None)
    if odd is not None:
        raise Refused(f"holds no weights: a tensor's name is the {type(odd).__name__} {odd!r:.60}, not a text")
    meta = content.get("meta") if place is not None else None
    # mmengine executes the Python text that old checkpoints carry as `config`, for nothing but a count of GPUs.
    meta = {key: value for key, value in meta.items() if key != "config"} if isinstance(meta, dict) else {}
    return {**(content if place is not None else {}), "state_dict": state, "meta": meta}


def _downloaded(url: str, map_location: Any) -> dict[Any, Any]:
    """Read the file at an address from PyTorch's folder of checkpoints, where it comes when it has been read once."""
    try:
        name = urllib.parse.urlparse(url).path.rpartition("/")[2]
    except ValueError as error:
        raise CheckpointError(f"{url}: no address: {error}") from error
    if name in ("", ".", ".."):
        raise CheckpointError(f"{url}: names no file")
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    # Of sha256, as PyTorch and OpenMMLab name their files; eight decimal digits are a date.
    found = re.search(r"-([0-9a-f]{8,64})\.", name)
    digits = found[1] if found and not re.fullmatch(r"(19|20)\d{6}", found[1]) else None
    if path.is_file():
        if digits and not _sha256(path).startswith(digits):
            raise CheckpointError(f"{path}: not the file of {url}: its hash does not begin with {digits}; remove it")
        return _read(path, map_location)
    # Others that look there may run code in what they find: nothing stays that has not been read.
    temporary = path.with_name(f".{os.getpid()}.{name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(url, temporary)
        if digits and not _sha256(temporary).startswith(digits):
            raise Refused(f"its hash does not begin with {digits}, as its name says")
        content = _read(temporary, map_location)
        temporary.replace(path)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(temporary), url)) from error
    except Refused as error:
        raise CheckpointError(f"{url}: {error}") from error
    except Exception as error:  # of the network, the address or the disk
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise CheckpointError(f"{url}: cannot be downloaded ({reason})") from error
    finally:
        temporary.unlink(missing_ok=True)
    return content


def _download(url: str, path: Path) -> None:
    """Write what an address holds, with a progress bar on a terminal.

    Raises:
        OSError: of the address, the network or the disk; the server sent nothing for `SILENCE` seconds or ended early.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "attnzoo"})
    with urllib.request.urlopen(request, timeout=SILENCE) as response, path.open("wb") as file:
        size = response.length
        # disable=None: where there is no terminal.
        with tqdm(total=size, unit="B", unit_scale=True, desc=path.name, disable=None) as bar:
            while block := response.read(1 << 16):
                file.write(block)
                bar.update(len(block))
        if size is not None and file.tell() != size:
            raise OSError(f"it ended after {file.tell()} of {size} bytes")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_COMPLEX = (torch.complex64, torch.complex128)
_WHOLE = (torch.bool, *(getattr(torch, f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)))


def check_weights(state: dict[str, Tensor], model: nn.Module) -> None:
    """Check that weights are numbers of the model's kind, all of them finite.

    Floating-point weights may have another precision than the model. What counts or indexes in the model may be of any
    type that holds the same numbers. Buffers that are not finite in the model either, such as masks, may be so.

    Args:
        state: In the model's layout; what the model does not have is not looked at.
        model: About to be loaded.

    Raises:
        CheckpointError: Naming the first tensor that does not fit.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for key, own in model.state_dict().items():
        value = state.get(key)
        if not isinstance(own, Tensor) or value is None or own.is_meta:
            continue
        cast = _cast(value, own.dtype)
        if cast is None:
            raise CheckpointError(f"{key!r} is {_kind(value)}, where the model has {_kind(own)}")
        if not cast.isfinite().all() and (key in parameters or own.isfinite().all()):
            found = "NaN" if cast.isnan().any() else f"a number that is infinite as {_kind(own)}"
            raise CheckpointError(f"{key!r} holds {found}: weights must be finite")


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor | None:
    """`value` as a model of that dtype holds it; None where that would be another kind of number."""
    if value.dtype == dtype:
        return value
    if dtype.is_floating_point or dtype.is_complex:
        return value.to(dtype) if value.dtype in (_FLOATS if dtype.is_floating_point else _COMPLEX) else None
    if value.dtype not in _FLOATS + _WHOLE:
        return None
    cast = value.to(dtype)
    return cast if torch.equal(cast.to(value.dtype), value) else None


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
