"""What a checkpoint's pickle may hold: checked before PyTorch reads it, with stand-ins for all that is no tensor.

PyTorch's `weights_only` unpickler runs none but the functions on its list. That list is wider than weights need, and
up to PyTorch 2.9 at least it believes what a pickle says of the size of its storages, and reads and writes beyond them.
So `Survey` walks through the instructions first, as text. What is on PyTorch's list for us besides (`stand_ins`) are
classes that hold numbers or attributes and run nothing; `finished` turns them into what they stand for.
"""

import argparse
import math
import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch


class Refused(Exception):
    """Why a file is not read."""


# Far beyond what checkpoints have (a detector with its optimizer: 100,000).
MAX_INSTRUCTIONS = 1_000_000
MAX_DEPTH = 100
# Bytes and items that are made of a pickle's, over its size.
_COPIES = 3

_ITEM_SIZES = {
    "BoolStorage": 1,
    "ByteStorage": 1,
    "CharStorage": 1,
    "ShortStorage": 2,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "IntStorage": 4,
    "FloatStorage": 4,
    "LongStorage": 8,
    "DoubleStorage": 8,
    "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
    "UntypedStorage": 1,
}
_UNSUITABLE = {
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_qtensor": "a quantized tensor",
    "_rebuild_meta_tensor_no_storage": "a meta tensor, which has no values",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_parameter_with_state": "a parameter with attributes of its own",
    "_rebuild_wrapper_subclass": "a tensor of a class of its own",
    "_rebuild_device_tensor_from_numpy": "a tensor of another device",
    "_rebuild_device_tensor_from_cpu_tensor": "a tensor of another device",
}
# Python 2's name, which protocol 2 writes to this day.
_BUILTINS = ("builtins", "__builtin__")


class NumericType:
    """Stands for `numpy.dtype`: the code and byte order of a number, nothing else."""

    __slots__ = ("code", "order")

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"b1|[iu][1248]|f[248]|c8|c16", code):
            raise Refused(f"its pickle holds an array of type {_short(code)}, not of numbers")
        self.code = code
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        # Version, byte order, sub-array, names, fields, size, alignment, flags: what follows the order could make
        # pointers of numbers.
        rest = (None, None, None, -1, -1, 0)
        if not isinstance(state, tuple) or state[0] != 3 or state[1] not in ("<", ">", "|", "=") or state[2:] != rest:
            raise Refused(f"its pickle holds an array whose type is no plain number: {_short(state)}")
        self.order = state[1]

    @property
    def dtype(self) -> np.dtype:
        """As numpy has it."""
        return np.dtype(self.order + self.code)


class NumericArray:
    """Stands for `numpy.ndarray`: an array of numbers, whose bytes are as many as its shape says."""

    __slots__ = ("array",)

    def __setstate__(self, state: Any) -> None:
        version, shape, kind, fortran, data = state
        if version != 1 or not isinstance(kind, NumericType) or not isinstance(data, bytes):
            raise Refused("its pickle holds an array that is none of numbers")
        if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
            raise Refused(f"its pickle holds an array of shape {_short(shape)}")
        if math.prod(shape) * kind.dtype.itemsize != len(data):
            raise Refused(f"its pickle holds an array of shape {_short(shape)} and {len(data)} bytes")
        array = np.frombuffer(bytearray(data), kind.dtype).reshape(shape, order="F" if fortran else "C")
        self.array = array.astype(kind.dtype.newbyteorder("="), copy=False)


def _reconstruct(kind: Any, shape: Any, code: Any) -> NumericArray:
    """Stands for numpy's function of this name, with which the pickle of an array begins."""
    if kind is not NumericArray or shape != (0,):
        raise Refused("its pickle holds an array that is none of numbers")
    return NumericArray()


def _scalar(kind: Any, data: Any) -> np.generic:
    """Stands for numpy's `scalar`."""
    if not isinstance(kind, NumericType) or not isinstance(data, bytes) or len(data) != kind.dtype.itemsize:
        raise Refused("its pickle holds a scalar that is no number")
    return np.frombuffer(data, kind.dtype)[0]


class Held:
    """Stands for an object of a class that is allowed: it holds the attributes until `build` makes the object."""

    __slots__ = ("state",)
    build: Callable[[dict[str, Any]], Any]
    members: frozenset[str] = frozenset()

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            raise Refused("its pickle holds an object whose attributes have no names")
        self.state = state


def _namespace(state: dict[str, Any]) -> argparse.Namespace:
    made = argparse.Namespace()
    vars(made).update(state)
    return made


def _member(owner: Any, name: Any) -> str:
    """Stands for `getattr`, with which a method is pickled; the text of its name is enough."""
    if not (isinstance(owner, type) and issubclass(owner, Held) and name in owner.members):
        raise Refused(f"refused, its pickle asks for the attribute {_short(name)}, which no checkpoint needs")
    return f"{owner.__name__}.{name}"


def stand_in(path: str, build: Callable[[dict[str, Any]], Any], members: Iterable[str] = ()) -> tuple[type, str]:
    """A class whose pickled objects become what `build` makes of their attributes.

    Args:
        path: of the class, module and name.
        build: makes the object from its attributes; it must not trust them.
        members: names of methods that the pickle may refer to.

    Returns:
        An entry for `torch.serialization.add_safe_globals`.
    """
    names = dict(__slots__=(), build=staticmethod(build), members=frozenset(members))
    return type(path.rpartition(".")[2], (Held,), names), path


# Entries for `torch.serialization.add_safe_globals`, by path.
STAND_INS: dict[str, Any] = {
    "argparse.Namespace": stand_in("argparse.Namespace", _namespace)[0],
    "builtins.getattr": _member,
    "builtins.slice": slice,
    "numpy.dtype": NumericType,
    "numpy.ndarray": NumericArray,
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
}


def finished(value: Any, _done: dict[int, Any] | None = None) -> Any:
    """The content of a checkpoint with stand-ins replaced by what they stand for, containers in place."""
    done = {} if _done is None else _done
    if id(value) in done:
        return done[id(value)][1]
    made = value
    if isinstance(value, NumericArray):
        made = value.array
    elif isinstance(value, Held):
        state = getattr(value, "state", {})
        made = type(value).build({key: finished(item, done) for key, item in state.items()})
    elif isinstance(value, dict):
        for key in value:
            value[key] = finished(value[key], done)
        if isinstance(value, OrderedDict):
            finished(vars(value).get("_metadata"), done)
    elif isinstance(value, list):
        value[:] = [finished(item, done) for item in value]
    elif type(value) is tuple:
        made = tuple(finished(item, done) for item in value)
    elif isinstance(value, torch.nn.Parameter) or (isinstance(value, torch.Tensor) and vars(value)):
        made = value.detach()  # a plain tensor without attributes
    elif not isinstance(value, (torch.Tensor, torch.Size, *_PLAIN)):
        raise Refused(f"its pickle holds {_short(value)}, which no checkpoint needs")
    # The value beside its result: while it lives, no other gets its id.
    done[id(value)] = (value, made)
    return made


_PLAIN = (str, bytes, bytearray, int, float, complex, set, slice, np.generic, torch.dtype, torch.device, type(None))


class _Name:
    """A class or function that the pickle names."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path


class _Made:
    """A value that is made by a class or function; `parts` are what it holds."""

    __slots__ = ("parts", "path")

    def __init__(self, path: str, *parts: Any) -> None:
        self.path = path
        self.parts = list(parts)


class _Table(dict):
    """An OrderedDict or Counter."""

    parts: Any = ()


class _Storage:
    __slots__ = ("count", "item_size", "key")

    def __init__(self, key: str, item_size: int, count: int) -> None:
        self.key = key
        self.item_size = item_size
        self.count = count


_KEYS = (str, int, float, bool, bytes, type(None))


class Survey:
    """Walks through a pickle without making what it says, and refuses what no checkpoint needs.

    Args:
        stand_ins: The paths that are allowed besides PyTorch's tensors, containers and plain values.
        check_storage: Called with the key of a storage and its size in bytes; refuses what the file does not have.
        size: Bytes that the pickle has, or the file around it.
    """

    def __init__(self, stand_ins: Iterable[str], check_storage: Callable[[str, int], None], size: int) -> None:
        self._stand_ins = frozenset(stand_ins)
        self._check_storage = check_storage
        # What is written once is copied into bytes, and from there into an array.
        self._copies_left = _COPIES * size
        self.storages: dict[str, _Storage] = {}

    def walk(self, file: Any) -> Any:
        """Check the pickle at the file's position, and leave that behind it.

        Args:
            file: With `read` and `readline`.

        Returns:
            Its outline: plain values and containers are what they are.

        Raises:
            Refused: It asks for what no checkpoint needs, or its tensors do not fit into their storages.
            Exception: It is no pickle that PyTorch writes; of any kind.
        """
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count > MAX_INSTRUCTIONS:
                raise Refused(f"its pickle has more than {MAX_INSTRUCTIONS:,} instructions, far beyond a checkpoint's")
            if opcode.name == "STOP":
                break
            self._step(opcode.name, argument)
        found = self._stack.pop()
        _measured(found, {})
        return found

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            stack.append(argument)
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "MARK":
            self._marked.append(stack)
            self._stack = []
        elif name in _TUPLES:
            count = _TUPLES[name]
            if len(stack) < count:
                raise ValueError("the stack is empty")
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            items = self._since_mark()
            self._stack.append(tuple(items))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self._since_mark()
            if type(self._stack[-1]) is not list:
                raise Refused("its pickle appends to what is no list")
            self._stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._since_mark()
            self._set_items(items)
        elif name == "PROTO":
            pass  # PyTorch tries any, with the instructions of protocol 2
        elif name == "GLOBAL":
            stack.append(self._name(argument))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack[-1] = self._call(stack[-1], arguments)
        elif name == "NEWOBJ":
            arguments = stack.pop()
            stack[-1] = self._new(stack[-1], arguments)
        elif name == "BUILD":
            state = stack.pop()
            self._build(stack[-1], state)
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        else:
            raise Refused(f"not a checkpoint, or a pickle that could run code (it has {name}); it was not run")

    def _since_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._marked.pop()
        return items

    def _set_items(self, items: list[Any]) -> None:
        table = self._stack[-1]
        if type(table) not in (dict, _Table) or len(items) % 2:
            raise Refused("its pickle puts items into what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in _KEYS:
                raise Refused("its pickle holds a dict with a key that is neither text nor number")
            if key in table:
                raise Refused(f"the key {_short(key)} is there twice")
            table[key] = value

    def _name(self, argument: str) -> _Name:
        module, _, name = argument.partition(" ")
        path = f"{'builtins' if module in _BUILTINS else module}.{name}"
        if module in ("torch._utils", "torch._tensor") and name in _UNSUITABLE:
            raise Refused(f"holds {_UNSUITABLE[name]}; weights must be plain tensors")
        if path in ("torch.QInt8Storage", "torch.QUInt8Storage", "torch.QInt32Storage"):
            raise Refused("holds a quantized tensor; weights must be plain tensors")
        known = path in _CALLS or path in _TENSOR_TYPES or path in self._stand_ins
        if not known and _item_size(path) is None and not _is_dtype(path):
            raise Refused(f"refused, its pickle asks for {path!r}, which no checkpoint needs")
        return _Name(path)

    def _call(self, function: Any, arguments: Any) -> Any:
        path = function.path if isinstance(function, _Name) else None
        if type(arguments) is not tuple:
            raise Refused("its pickle calls a function without arguments")
        if path in _CALLS:
            self._copy(arguments)
            return _CALLS[path](*arguments)
        if path in self._stand_ins and path in _FUNCTIONS:
            return _Made(path, *arguments)
        raise Refused(f"refused, its pickle calls {path or 'what is no function'!r}, which no checkpoint needs")

    def _copy(self, values: tuple[Any, ...]) -> None:
        """Count what a call copies: one text, copied again and again, would fill the memory."""
        self._copies_left -= sum(len(value) for value in values if isinstance(value, str | bytes | list | tuple | dict))
        if self._copies_left < 0:
            raise Refused("its pickle copies the same values again and again")

    def _new(self, kind: Any, arguments: Any) -> _Made:
        path = kind.path if isinstance(kind, _Name) else None
        if path not in self._stand_ins or path in _FUNCTIONS or path == "numpy.ndarray" or arguments != ():
            raise Refused(f"refused, its pickle makes a new {path or 'object of what is no class'!r}")
        return _Made(path)

    def _build(self, value: Any, state: Any) -> None:
        if type(value) is _Table:
            # PyTorch puts any attributes there, also such as hide the methods of a dict.
            if type(state) is not dict or state.keys() != {"_metadata"} or not isinstance(state["_metadata"], dict):
                raise Refused("its pickle gives a dict attributes")
            value.parts = (state,)
        elif type(value) is _Made and value.path in self._stand_ins:
            if type(state) is tuple:
                self._copy(state)
            value.parts.append(state)
        else:
            raise Refused("its pickle sets the state of what has none")

    def _storage(self, found: Any) -> _Storage:
        if type(found) is not tuple or len(found) not in (5, 6) or found[0] != "storage":
            raise Refused("its pickle refers to what is no storage")
        _, kind, key, location, count, *view = found
        size = _item_size(kind.path) if isinstance(kind, _Name) else None
        named = type(key) is str and key.isascii() and type(location) is str
        if size is None or not named or type(count) is not int or count < 0:
            raise Refused("its pickle describes a storage that is none")
        storage = self.storages.setdefault(key, _Storage(key, size, count))
        if (storage.item_size, storage.count) != (size, count):
            raise Refused(f"its pickle describes the storage {_short(key)} in two ways")
        self._check_storage(key, size * count)
        if view and kind.path.endswith("UntypedStorage"):
            raise Refused("holds a tensor of a dtype that PyTorch cannot read from files in the format before 1.6")
        if not view or view[0] is None:
            return storage
        # Of PyTorch before 0.4: a part of another storage.
        name, offset, length = view[0]
        if not (type(name) is str and name.isascii() and type(offset) is int and type(length) is int):
            raise Refused("its pickle describes a storage that is none")
        if offset < 0 or length < 0 or offset + length > count:
            raise Refused(f"its pickle describes a part of the storage {_short(key)} beyond its end")
        part = self.storages.setdefault(f"part {key} {name}", _Storage(key, size, length))
        if part.count != length:
            raise Refused(f"its pickle describes the storage {_short(name)} in two ways")
        return part


def _item_size(path: str) -> int | None:
    module, _, name = path.rpartition(".")
    return _ITEM_SIZES.get(name) if module in ("torch", "torch.storage") else None


def _is_dtype(path: str) -> bool:
    module, _, name = path.rpartition(".")
    return module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)


def _rebuilt(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any = False, hooks: Any = None, metadata: Any = None
) -> _Made:
    """`torch._utils._rebuild_tensor` and `_rebuild_tensor_v2`."""
    if not isinstance(storage, _Storage):
        raise Refused("its pickle holds a tensor without a storage")
    _check_view(offset, size, stride, storage.count)
    if type(grad) is not bool or hooks or metadata:
        raise Refused("its pickle holds a tensor with hooks, or one that is the conjugate of another")
    return _Made("tensor")


def _rebuilt_of_dtype(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> _Made:
    """`torch._utils._rebuild_tensor_v3`, of dtypes that have no class of storages."""
    if not isinstance(storage, _Storage) or not isinstance(dtype, _Name) or not _is_dtype(dtype.path):
        raise Refused("its pickle holds a tensor without a storage or dtype")
    if dtype.path.startswith(("torch.q", "torch.bits")):
        raise Refused("holds a quantized tensor; weights must be plain tensors")
    item_size = getattr(torch, dtype.path.rpartition(".")[2]).itemsize
    part = _Storage(storage.key, item_size, storage.count * storage.item_size // item_size)
    return _rebuilt(part, offset, size, stride, grad, hooks, metadata)


def _check_view(offset: Any, size: Any, stride: Any, count: int) -> None:
    whole = type(size) is tuple and type(stride) is tuple and len(size) == len(stride) <= 64
    if not whole or not all(type(n) is int and 0 <= n < 2**62 for n in (offset, *size, *stride)):
        raise Refused(f"its pickle holds a tensor of shape {_short(size)} and strides {_short(stride)}")
    if 0 in size:
        # An empty view reaches nothing, but PyTorch checks its offset in versions of its own.
        if offset > count:
            raise Refused(f"its pickle holds a tensor that begins beyond its storage of {count} elements")
        return
    if offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= count:
        raise Refused(f"its pickle holds a tensor of shape {_short(size)} beyond its storage of {count} elements")
    reach = 1
    for step, n in sorted((step, n) for n, step in zip(size, stride, strict=True) if n > 1):
        if step < reach:
            raise Refused(f"its pickle holds a tensor of shape {_short(size)} whose elements share memory")
        reach += step * (n - 1)


def _parameter(data: Any, grad: Any, hooks: Any) -> _Made:
    if not isinstance(data, _Made) or data.path != "tensor" or type(grad) is not bool or hooks:
        raise Refused("its pickle holds a parameter that is no tensor")
    return data


def _typed(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """`torch._tensor._rebuild_from_type_v2`: a tensor with attributes, as FSDP gathers them."""
    path = function.path if isinstance(function, _Name) else None
    plain = isinstance(kind, _Name) and kind.path in _TENSOR_TYPES
    if path not in _REBUILDS or not plain or type(arguments) is not tuple:
        raise Refused("holds a tensor of a class of its own; weights must be plain tensors")
    # PyTorch sets the attributes, whatever they are.
    if type(state) is not dict or not all(_is_harmless(name, value) for name, value in state.items()):
        raise Refused("holds a tensor with attributes of its own; weights must be plain tensors")
    return _CALLS[path](*arguments)


def _is_harmless(name: Any, value: Any) -> bool:
    own = type(name) is str and name.isidentifier() and not hasattr(torch.nn.Parameter, name)
    return own and type(value) in (str, int, float, bool, type(None))


def _ordered(*arguments: Any) -> _Table:
    pairs = arguments[0] if arguments else []
    if (
        len(arguments) > 1
        or type(pairs) is not list
        or not all(type(p) in (list, tuple) and len(p) == 2 for p in pairs)
    ):
        raise Refused("its pickle makes an OrderedDict of what is no list of pairs")
    if not all(type(key) in _KEYS for key, _ in pairs):
        raise Refused("its pickle holds a dict with a key that is neither text nor number")
    table = _Table(pairs)
    if len(table) < len(pairs):
        raise Refused("its pickle holds a dict with a key that is there twice")
    return table


def _counter(*arguments: Any) -> _Table:
    if len(arguments) != 1 or type(arguments[0]) is not dict:
        raise Refused("its pickle makes a Counter of what is no dict")
    return _Table(arguments[0])


def _encoded(text: Any, encoding: Any = None) -> bytes:
    # PyTorch's list has the whole of `_codecs.encode`, which imports a module by the name of the encoding.
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise Refused("its pickle holds bytes that are no text of latin1")
    return text.encode("latin1")


def _byte_array(data: Any = b"") -> _Made:
    if type(data) is not bytes:  # a number would ask for as much memory
        raise Refused("its pickle holds a bytearray that is none")
    return _Made("bytearray")


def _set(items: Any) -> _Made:
    if type(items) is not list or not all(type(item) in _KEYS for item in items):
        raise Refused("its pickle holds a set of more than texts and numbers")
    return _Made("set")


def _plain(*arguments: Any) -> _Made:
    if not all(type(argument) in (str, int, float) for argument in arguments):
        raise Refused("its pickle makes a device or complex number of neither text nor numbers")
    return _Made("plain")


def _size(dimensions: Any = ()) -> tuple[int, ...]:
    if type(dimensions) not in (tuple, list) or not all(type(n) is int for n in dimensions):
        raise Refused("its pickle holds a torch.Size of what is no number")
    return tuple(dimensions)


_CALLS: dict[str | None, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "collections.Counter": _counter,
    "torch._utils._rebuild_tensor": _rebuilt,
    "torch._utils._rebuild_tensor_v2": _rebuilt,
    "torch._utils._rebuild_tensor_v3": _rebuilt_of_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._tensor._rebuild_from_type_v2": _typed,
    "torch.Size": _size,
    "torch.device": _plain,
    "builtins.complex": _plain,
    "builtins.bytearray": _byte_array,
    "builtins.set": _set,
    "_codecs.encode": _encoded,
}
_REBUILDS = {path for path, call in _CALLS.items() if call in (_rebuilt, _rebuilt_of_dtype, _parameter)}
_TENSOR_TYPES = ("torch.Tensor", "torch.nn.parameter.Parameter")
_FUNCTIONS = STAND_INS.keys() - {"argparse.Namespace", "numpy.ndarray"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": lambda: _Made("set")}
_LITERALS = {"BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


_CONTAINERS = (dict, list, tuple, _Made)


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value
    if isinstance(value, _Made | _Table):
        yield from value.parts


def _measured(value: Any, done: dict[int, tuple[int, int]], depth: int = 1) -> tuple[int, int]:
    """How many levels a value has and how many parts, those it has twice counted twice.

    Refuses so many, or a container in itself, that code which walks through all would end the process.
    """
    height, size = done.get(id(value), (0, 0))
    if not size and depth <= MAX_DEPTH:
        for part in _parts(value):
            below, more = _measured(part, done, depth + 1) if isinstance(part, _CONTAINERS) else (0, 1)
            height, size = max(height, below), size + more
        height, size = height + 1, size + 1
        done[id(value)] = height, size
    if not size or depth + height > MAX_DEPTH + 1:
        raise Refused(f"its pickle nests containers more than {MAX_DEPTH} deep, or one in itself")
    if size > 10 * MAX_INSTRUCTIONS:
        raise Refused("its pickle holds the same containers in each other again and again")
    return height, size


def _short(value: Any) -> str:
    """For a message; never of more than a few words."""
    if isinstance(value, tuple) and len(value) <= 8 and all(isinstance(part, int) for part in value):
        return str(value) if all(abs(part) < 2**64 for part in value) else "(…)"
    if isinstance(value, str):
        return repr(value[:60])
    return f"a {type(value).__name__}"
