"""Where Triton was measured to be right and faster than PyTorch: `measured.json`, which backend "auto" obeys.

The file holds `{"cards": [card, ...]}`. A card is `{"name", "capability", "records"}`: the name as
`torch.cuda.get_device_name` gives it, the compute capability as [major, minor]. A record is of an operator at one size:

    operator      as `attnzoo.kernels.can_run` knows it
    dtype         "float32", "bfloat16" or "float16"
    pass          "forward", or "backward" for forward and gradients together
    size          `size_of` the operations of the forward pass: one class for each power of four
    triton_ms     time of Triton's kernels, milliseconds
    torch_ms      time of plain PyTorch
    triton_error  largest difference of result and gradients from those in float64, relative to the largest magnitude
    torch_error   that of plain PyTorch

Triton is right where its error is at most twice PyTorch's.
"""

import functools
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("measured.json")
DTYPES = ("float32", "bfloat16", "float16")
PASSES = ("forward", "backward")
# The others are made of these.
OPERATORS = (
    "deformable_attention",
    "deformable_attention_3d",
    "depthwise_conv",
    "neighborhood_attention",
    "pointwise_conv",
    "routing_attention",
    "window_attention",
)


@dataclass(frozen=True)
class Record:
    """One measurement; see the module."""

    operator: str
    dtype: str
    pass_: str
    size: int
    triton_ms: float
    torch_ms: float
    triton_error: float
    torch_error: float

    @property
    def is_for_triton(self) -> bool:
        """Whether Triton is right and faster."""
        return self.triton_error <= 2 * self.torch_error and self.triton_ms < self.torch_ms


@dataclass(frozen=True)
class Card:
    """A GPU and what was measured on it."""

    name: str
    capability: tuple[int, int]
    records: tuple[Record, ...]


def size_of(flops: int) -> int:
    """Class of a size: the power of four that its operations reach, 0 for none."""
    return (max(flops, 1).bit_length() - 1) // 2


def read(path: Path) -> tuple[Card, ...]:
    """The table in a file.

    Raises:
        ValueError: for anything that is not as the module describes it; it says where and what was expected.
    """
    try:
        content = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path.name}: not JSON: {error}") from error
    (cards,) = _fields(content, ("cards",), path.name)
    where = f"{path.name}: cards"
    found = tuple(_card(x, f"{where}[{i}]") for i, x in enumerate(_typed(cards, list, "a list", where)))
    _unique([card.name for card in found], where)
    return found


@functools.cache
def table() -> tuple[Card, ...]:
    """What the package brings."""
    return read(PATH)


def nearest(cards: Iterable[Card], name: str, capability: tuple[int, int]) -> Card | None:
    """The card itself, or else the one of the same major architecture whose minor number is nearest, None for none."""
    kin = [card for card in cards if card.capability[0] == capability[0]]
    for card in kin:
        if card.name == name:
            return card
    return min(kin, key=lambda card: (abs(card.capability[1] - capability[1]), card.name), default=None)


def spans(card: Card, operator: str, dtype: str, learns: bool) -> tuple[tuple[int, int], ...]:
    """Operations of the forward pass at which Triton is to run: each from, and up to but not including."""
    wanted = PASSES[learns]
    return tuple(
        (4**record.size, 4 ** (record.size + 1))
        for record in card.records
        if (record.operator, record.dtype, record.pass_) == (operator, dtype, wanted) and record.is_for_triton
    )


def _card(content: Any, where: str) -> Card:
    name, capability, records = _fields(content, ("name", "capability", "records"), where)
    _typed(name, str, "text", f"{where}.name")
    _typed(capability, list, "a list", f"{where}.capability")
    if len(capability) != 2:
        raise ValueError(f"{where}.capability: must be [major, minor], got {capability!r}")
    major, minor = (_integer(x, f"{where}.capability") for x in capability)
    at = f"{where}.records"
    found = tuple(_record(x, f"{at}[{i}]") for i, x in enumerate(_typed(records, list, "a list", at)))
    _unique([(x.operator, x.dtype, x.pass_, x.size) for x in found], at)
    return Card(name, (major, minor), found)


def _record(content: Any, where: str) -> Record:
    numbers = ("triton_ms", "torch_ms", "triton_error", "torch_error")
    operator, dtype, pass_, size, *rest = _fields(content, ("operator", "dtype", "pass", "size", *numbers), where)
    for name, value, known in (("operator", operator, OPERATORS), ("dtype", dtype, DTYPES), ("pass", pass_, PASSES)):
        if value not in known:
            raise ValueError(f"{where}.{name}: must be one of {', '.join(known)}, got {value!r}")
    for name, value in zip(numbers, rest, strict=True):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            raise ValueError(f"{where}.{name}: must be a number of at least 0, got {value!r}")
    return Record(operator, dtype, pass_, _integer(size, f"{where}.size"), *(float(x) for x in rest))


def _fields(content: Any, names: tuple[str, ...], where: str) -> list[Any]:
    _typed(content, dict, "an object", where)
    if set(content) != set(names):
        raise ValueError(f"{where}: must have {', '.join(names)}, got {', '.join(sorted(content)) or 'nothing'}")
    return [content[name] for name in names]


def _typed(value: Any, kind: type, said: str, where: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{where}: must be {said}, got {value!r}")
    return value


def _integer(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 64:
        raise ValueError(f"{where}: must be an integer from 0 to 63, got {value!r}")
    return value


def _unique(keys: list[Any], where: str) -> None:
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"{where}: {key!r} stands there twice")
