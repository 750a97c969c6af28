"""Checkpoints that want to run code, lie about their sizes, are damaged or hold odd things: read right or refused."""

import io
import json
import pickle
import pickletools
import random
import resource
import struct
import sys
import tarfile
import tempfile
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from campaign import Failed, campaign
from safetensors.torch import save_file

from attnzoo.backbones.checkpoints import CheckpointError, check_weights, read_checkpoint

DRAWS = 3000
WEIGHTS = {
    "weight": torch.arange(24.0).view(6, 4),
    "bias": torch.linspace(0, 1, 6),
    "count": torch.tensor(3),
    "table": torch.arange(12, dtype=torch.float16).view(3, 4).t(),
}
CONTENT = {"state_dict": WEIGHTS, "meta": {"epoch": 3, "names": ("a", "b")}, "log": np.arange(5.0)}

# What a payload would do, noted by the interpreter itself while a file is read.
_EVENTS = (
    "os.",
    "subprocess.",
    "exec",
    "compile",
    "import",
    "socket.",
    "shutil.",
    "ctypes.",
    "pickle.find_class",
    "marshal.",
    "code.__new__",
    "sys._getframe",
    "webbrowser.",
)
_HARMLESS = ("os.listdir", "os.scandir")
_seen: list[str] = []
_watching = False


def _watch(event: str, arguments: tuple) -> None:
    if not _watching or event in _HARMLESS:
        return
    writes = event == "open" and (
        any(letter in str(arguments[1]) for letter in "wax+") or (isinstance(arguments[2], int) and arguments[2] & 3)
    )
    if writes or event.startswith(_EVENTS):
        _seen.append(f"{event} {arguments!r:.200}")


@pytest.fixture(scope="module", autouse=True)
def hook():
    sys.addaudithook(_watch)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(6, 4))
        self.bias = torch.nn.Parameter(torch.zeros(6))
        self.register_buffer("count", torch.tensor(0))
        self.table = torch.nn.Parameter(torch.zeros(4, 3))


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and bytes_of(a) == bytes_of(b)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def read(path: Path, mark: Path) -> dict | None:
    """The content, or None where the file is refused by one clear error; anything else raises."""
    global _watching
    _seen.clear()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    listing = sorted(path.parent.iterdir())
    _watching = True
    try:
        content = read_checkpoint(path)
    except CheckpointError as error:
        content, message = None, str(error)
        if not message.startswith(f"{path}: ") or len(message) > len(str(path)) + 400 or "\n" in message:
            raise Failed(f"not one clear error: {message}") from error
        if "llocat" in message or "MemoryError" in message or "RecursionError" in message:
            raise Failed(f"only the end of memory refused it: {message}") from error
    finally:
        _watching = False
    if _seen or mark.exists() or sorted(path.parent.iterdir()) != listing:
        raise Failed(f"code ran: {_seen[:5]}, mark {mark.exists()}")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if grown > 300_000:
        raise Failed(f"memory grew by {grown} KiB for a file of {path.stat().st_size} bytes")
    if content is not None:
        use(content)
    return content


def use(content: dict) -> None:
    """Every byte of what was read can be reached, and weights that fit are loaded."""
    for key, value in content["state_dict"].items():
        if type(key) is not str or type(value) is not torch.Tensor or value.requires_grad:
            raise Failed(f"{key!r} is a {type(value).__name__}")
        if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise Failed(f"{key!r} is no plain tensor: {value.layout}, {value.device}")
        bytes_of(value)
    pickle.dumps({key: value for key, value in content.items() if key != "state_dict"})
    model = Model()
    try:
        check_weights(content["state_dict"], model)
        model.load_state_dict(content["state_dict"])
    except (CheckpointError, RuntimeError):
        return
    if not all(value.isfinite().all() for value in model.state_dict().values()):
        raise Failed("weights that are not finite were loaded")


# A small assembler of pickles.


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def row(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def table(**values: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in values.items()) + b"u"


def ints(values) -> bytes:
    return row(*(number(value) for value in values))


def latin(data: bytes) -> bytes:
    return named("_codecs", "encode") + row(text(data.decode("latin1")), text("latin1")) + b"R"


HOOKS = named("collections", "OrderedDict") + b")R"


def storage(kind: str, key: str, count: int, location: str = "cpu", more: bytes = b"") -> bytes:
    module = "torch.storage" if kind == "UntypedStorage" else "torch"
    return row(text("storage"), named(module, kind), text(key), text(location), number(count), more) + b"Q"


def tensor(stored: bytes, offset: int, size, stride) -> bytes:
    arguments = row(stored, number(offset), ints(size), ints(stride), b"\x89", HOOKS)
    return named("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def dtype(code: str, state: bytes | None = None) -> bytes:
    state = row(number(3), text("<"), b"N", b"N", b"N", number(-1), number(-1), number(0)) if state is None else state
    return named("numpy", "dtype") + row(text(code), b"\x89", b"\x88") + b"R" + state + b"b"


def array(kind: bytes, shape, data: bytes, core: str = "numpy._core") -> bytes:
    begun = named(f"{core}.multiarray", "_reconstruct") + row(named("numpy", "ndarray"), ints((0,)), latin(b"b")) + b"R"
    return begun + row(number(1), ints(shape), kind, b"\x89", latin(data)) + b"b"


# Ways of putting a pickle into a file.


def archive(path: Path, pickled: bytes, records: dict[str, bytes], rng: random.Random, odd: bool = False) -> None:
    entries = [("a/data.pkl", pickled), ("a/byteorder", b"little"), ("a/version", b"3\n")]
    entries += [(f"a/data/{key}", data) for key, data in records.items()]
    method = zipfile.ZIP_STORED
    buffer = io.BytesIO()
    trick = rng.randrange(9) if odd else None
    if trick == 0:
        method = zipfile.ZIP_DEFLATED
    elif trick == 1:
        entries.append(rng.choice(entries))
    elif trick == 2:
        entries.append(("a/DATA.pkl", rng.choice((pickled, b"\x80\x02}."))))
    elif trick == 3:
        entries.append((rng.choice(("../out", "/tmp/out", "b/data.pkl", "a/\xff", "a/constants.pkl")), b"x"))
    elif trick == 4:
        entries[1] = ("a/byteorder", rng.choice((b"big", b"", b"x" * 100)))
    elif trick == 5:
        buffer.write(bytes(rng.randrange(256) for _ in range(rng.randrange(1, 200))))
    with zipfile.ZipFile(buffer, "a" if trick == 5 else "w", method) as file:
        for name, data in entries:
            file.writestr(name, data)
        if trick == 6:
            file.comment = b"PK\x05\x06" + bytes(18)
    data = buffer.getvalue()
    if trick == 7:
        place = rng.randrange(len(data) - 22, len(data))
        data = data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
    elif trick == 8:
        data += data[-22:]
    path.write_bytes(data)


MAGIC, PROTOCOL = pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2)
SYSTEM = pickle.dumps(dict(protocol_version=1001, little_endian=True, type_sizes=dict(short=2, int=4, long=4)), 2)


def stream(path: Path, pickled: bytes, records: dict[str, bytes], rng: random.Random, odd: bool = False) -> None:
    parts = [MAGIC, PROTOCOL, SYSTEM, pickled, pickle.dumps(list(records), 2)]
    if odd:  # in place of another of the five
        parts[rng.randrange(5)] = pickled
    data = b"".join(struct.pack("<q", len(data) // 4) + data for data in records.values())
    path.write_bytes(b"".join(parts) + data)


def tar(path: Path, pickled: bytes) -> None:
    with tarfile.open(path, "w") as file:
        for name in ("storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = len(pickled)
            file.addfile(entry, io.BytesIO(pickled))


KINDS = ("archive", "archive", "archive", "odd archive", "stream", "stream", "odd stream", "tar", "bare")


def packed(kind: str, path: Path, pickled: bytes, records: dict[str, bytes], rng: random.Random) -> None:
    if kind.endswith("archive"):
        archive(path, pickled, records, rng, kind.startswith("odd"))
    elif kind.endswith("stream"):
        stream(path, pickled, records, rng, kind.startswith("odd"))
    elif kind == "tar":
        tar(path, pickled)
    else:
        path.write_bytes(pickled)


def weight(kind: str) -> bytes:
    """A true tensor for that kind of file."""
    return tensor(storage("FloatStorage", "0", 24, more=b"N" if kind.endswith("stream") else b""), 0, (6, 4), (4, 1))


# The draws.


def calls(mark: Path, rng: random.Random) -> tuple[str, str, tuple]:
    """A function that leaves a mark, and its arguments."""
    code = f"open({str(mark)!r}, 'w')"
    return rng.choice(
        (
            ("posix", "system", (f"touch {mark}",)),
            ("os", "system", (f"touch {mark}",)),
            ("nt", "system", (f"touch {mark}",)),
            ("os", "mkdir", (str(mark),)),
            ("builtins", "exec", (code,)),
            ("__builtin__", "eval", (code,)),
            ("builtins", "open", (str(mark), "w")),
            ("__builtin__", "file", (str(mark), "w")),
            ("builtins", "__import__", ("antigravity",)),
            ("subprocess", "check_output", (("touch", str(mark)),)),
            ("commands", "getoutput", (f"touch {mark}",)),
            ("runpy", "_run_code", (code, {})),
            ("torch.serialization", "load", (str(mark),)),
            ("torch.hub", "load", (str(mark), "x", "local")),
            ("torch.jit", "load", (str(mark),)),
            ("torch", "save", ((), str(mark))),
            ("numpy", "save", (str(mark), ())),
            ("numpy", "load", (str(mark), None, True)),
            ("numpy.testing._private.utils", "runstring", (code, {})),
            ("pathlib", "Path", (str(mark),)),
            ("importlib", "import_module", ("antigravity",)),
            ("operator", "attrgetter", ("system",)),
            ("functools", "partial", (print, "x")),
            ("timm.models._helpers", "load_state_dict", (str(mark),)),
            ("_codecs", "encode", ("x", "zlib_codec")),
            ("_codecs", "encode", ("x", "antigravity")),
            ("builtins", "bytearray", (2**45,)),
            ("torch.storage", "UntypedStorage", (2**45,)),
            ("torch", "FloatTensor", (2**20, 2**20)),
            ("torch", "Tensor", (2**20, 2**20)),
            ("torch", "FloatStorage", (2**45,)),
            ("torch._utils", "_rebuild_tensor", (1, 2, 3, 4)),
            ("numpy", "ndarray", ((2**40,), "O")),
            ("argparse", "Namespace", ()),
            ("argparse", "FileType", ("w",)),
            ("collections", "OrderedDict", ({"a": 1},)),
            ("builtins", "getattr", (dict, "__init__")),
        )
    )


def hostile(rng: random.Random, mark: Path, values: list[bytes]) -> bytes:
    """A pickle, or a part of one, that asks for a function, in any of pickle's ways."""
    module, name, arguments = calls(mark, rng)
    packed_arguments = pickle.dumps(arguments, 2)[2:-1] if module != "functools" else row(text("x"))
    named_ = named(module, name)
    owner = rng.choice((named("numpy", "ndarray"), named("argparse", "Namespace"), named_, values[0]))
    chain = named("builtins", "getattr")
    for attribute in rng.sample(("__class__", "__init__", "__globals__", "__reduce__", "system", "tofile"), 2):
        chain += row(owner, text(attribute)) + b"R"
        owner = chain
    state = table(__setstate__=named_, __class__=named_, items=named_, keys=named_, values=named_)
    return rng.choice(
        (
            lambda: named_ + packed_arguments + b"R",
            lambda: named_ + packed_arguments + b"\x81",
            lambda: b"(" + packed_arguments[:-1] + f"i{module}\n{name}\n".encode(),
            lambda: b"(" + named_ + b"".join(text(str(a)) for a in arguments) + b"o",
            lambda: text(module) + text(name) + b"\x93" + packed_arguments + b"R",
            lambda: b"\x82\x01" + packed_arguments + b"R",
            lambda: b"\x83\x01\x02" + packed_arguments + b"R",
            lambda: named_ + packed_arguments + b"}\x92",
            lambda: chain,
            lambda: chain + packed_arguments + b"R",
            lambda: named("argparse", "Namespace") + b")\x81" + state + b"b" + text(f"touch {mark}") + b"b",
            lambda: HOOKS + state + b"b" + packed_arguments + b"b",
            lambda: HOOKS + row(b"N", state) + b"b",
            lambda: values[0] + state + b"b",
            lambda: row(text("module"), named_, text(str(mark)), text("x")) + b"Q",
            lambda: named_,
            lambda: (
                named("torch._tensor", "_rebuild_from_type_v2") + row(named_, named_, packed_arguments, b"N") + b"R"
            ),
            lambda: named("copyreg", "_reconstructor") + row(named_, named("builtins", "object"), b"N") + b"R",
            lambda: b"P1\n" + packed_arguments + b"R",
        )
    )()


def draw_code(rng: random.Random, path: Path, mark: Path) -> str:
    kind = rng.choice(KINDS)
    good = weight(kind)
    harmless = rng.random() < 0.1
    payload = array(dtype("f8"), (3,), bytes(24)) if harmless else hostile(rng, mark, [good])
    for _ in range(rng.randrange(3)):
        payload = rng.choice(
            (
                lambda p: row(p),
                lambda p: b"]" + p + b"a",
                lambda p: table(x=p),
                lambda p: b"}" + number(1) + p + b"s",
                lambda p: HOOKS + table(_metadata=table(x=p)) + b"b",
                lambda p: named("argparse", "Namespace") + b")\x81" + table(x=p) + b"b",
                lambda p: p + b"q\x07h\x07\x86",
            )
        )(payload)
    whole = table(state_dict=table(weight=good), extra=payload)
    pickled = rng.choice((whole, payload, table(extra=payload, state_dict=table(weight=good))))
    if rng.random() < 0.5:
        pickled = bytes([0x80, rng.choice((2, 2, 2, 0, 1, 3, 4, 5, 77))]) + pickled
    packed(kind, path, pickled + b".", {"0": bytes(96)}, rng)
    content = read(path, mark)
    if harmless and content is None and kind in ("archive", "stream") and b"state_dict" in pickled:
        raise Failed("what is harmless was refused")
    return "code: refused" if content is None else "code: only plain values read"


def mutated(rng: random.Random, true: dict, lies: dict) -> dict:
    """The true values, or those with one to three lies among them."""
    chosen = rng.sample(sorted(lies), min(rng.choice((0, 0, 1, 1, 2, 3)), len(lies)))
    return {**true, **{name: rng.choice(lies[name]) for name in chosen}}


def draw_array(rng: random.Random, path: Path, mark: Path) -> str:
    data = rng.randbytes(24)
    flags = row(number(3), text("|"), b"N", b"N", b"N", number(-1), number(-1), number(63))
    parts = row(number(3), text("<"), row(dtype("O8"), ints((3,))), b"N", b"N", number(-1), number(-1), number(0))
    fields = row(
        number(3), text("<"), b"N", row(text("a")), table(a=row(dtype("O8"), number(0))), *[number(8)] * 2, b"K\0"
    )
    noted = row(number(4), text("<"), b"N", b"N", b"N", number(-1), number(-1), number(0), table(a=b"N"))
    drawn = mutated(
        rng,
        dict(code="f8", state=None, shape=(3,), data=data, core="numpy._core", more=b"", scalar=False, version=1),
        dict(
            code=(
                "f4",
                "i8",
                "b1",
                "u1",
                "c16",
                "O",
                "O8",
                "|O",
                "V8",
                "S8",
                "U2",
                "M8[s]",
                "m8",
                "i3",
                "f8,O",
                "g",
                "f16",
            ),
            state=(
                flags,
                parts,
                fields,
                noted,
                b"N",
                b")",
                table(code=text("O8")),
                row(number(3), text("O"), *[b"N"] * 6),
            ),
            shape=(
                (3, 1),
                (1, 3, 1),
                (24,),
                (),
                (4,),
                (-1,),
                (-3, -1),
                (2**40, 2**40),
                (2**31, 0),
                (2**70,),
                (1,) * 70,
            ),
            data=(b"", data[:8], data[:7], data * 2),
            core=("numpy.core",),
            more=(
                flags + b"b",
                table(array=number(1)) + b"b",
                row(number(1), ints((1,)), dtype("f8"), b"\x89", b"]" + number(7) + b"a") + b"b",
                row(number(1), ints((1,)), dtype("O8", flags), b"\x89", latin(data[:8])) + b"b",
                ints((1, 2)) + b"R",
            ),
            scalar=(True,),
            version=(0, 2, 2**40),
        ),
    )
    kind = dtype(drawn["code"], drawn["state"])
    made = named(f"{drawn['core']}.multiarray", "_reconstruct")
    made += row(named("numpy", "ndarray"), ints((0,)), latin(b"b")) + b"R"
    made += row(number(drawn["version"]), ints(drawn["shape"]), kind, b"\x89", latin(drawn["data"])) + b"b"
    if drawn["scalar"]:
        made = named(f"{drawn['core']}.multiarray", "scalar") + row(kind, latin(drawn["data"])) + b"R"
    good = tensor(storage("FloatStorage", "0", 24), 0, (6, 4), (4, 1))
    pickled = b"\x80\x02" + table(state_dict=table(weight=good), log=made + drawn["more"]) + b"."
    archive(path, pickled, {"0": bytes(96)}, rng)
    content = read(path, mark)
    if content is None:
        return "arrays: refused"
    log = content["log"]
    if not isinstance(log, np.ndarray | np.generic) or log.dtype.kind not in "biufc":
        raise Failed(f"{log!r} came of {drawn}")
    if not drawn["more"] and log.nbytes != len(drawn["data"]):
        raise Failed(f"an array of {log.nbytes} bytes came of {len(drawn['data'])}")
    return "arrays: numbers read"


def draw_claims(rng: random.Random, path: Path, mark: Path) -> str:
    """Tensors that lie about their storages."""
    sizes = (0, 1, 2, 6, 23, 25, 2**20, 2**31, 2**40, 2**62, 2**63, 2**64, -1)
    shapes = ((24,), (2, 3, 4), (), (0,), (6, 5), (7, 4), (-6, -4), (2**32, 2**32), (1,) * 70, (6, 4, 0), (1, 2**62))
    streamed = rng.random() < 0.4
    drawn = mutated(
        rng,
        dict(kind="FloatStorage", key="0", count=24, location="cpu", view=b"N", offset=0)
        | dict(size=(6, 4), stride=(4, 1), of=None, twice=None),
        dict(
            kind=("DoubleStorage", "ByteStorage", "UntypedStorage", "BoolStorage", "HalfStorage", "QInt8Storage"),
            key=("1", "../0", "é", ""),
            count=(12, 96, *sizes),
            location=("cuda:0", "meta", "", "privateuse"),
            view=tuple(row(text("9"), number(a), number(b)) for a in (0, 1, -1, 2**40) for b in (24, 23, 2**40, -1)),
            offset=sizes,
            size=shapes,
            stride=((1, 6), (4, 2), (0, 0), (0, 1), (1, 1), (-4, -1), (2**62, 1), (2**63, 1), (4,), (5, 1), (4, 1, 1)),
            of=("uint16", "float8_e4m3fn", "float32", "float64", "qint8", "strided"),
            twice=(24, 25, 2**20),
        ),
    )
    stored = storage(drawn["kind"], drawn["key"], drawn["count"], drawn["location"], drawn["view"] if streamed else b"")
    made = tensor(stored, drawn["offset"], drawn["size"], drawn["stride"])
    if drawn["of"]:
        place = number(drawn["offset"]), ints(drawn["size"]), ints(drawn["stride"])
        arguments = row(stored, *place, b"\x89", HOOKS, named("torch", drawn["of"]))
        made = named("torch._utils", "_rebuild_tensor_v3") + arguments + b"R"
    state = {"weight": made}
    if drawn["twice"]:
        second = storage("FloatStorage", "0", drawn["twice"], more=b"N" if streamed else b"")
        state["other"] = tensor(second, 0, (6, 4), (4, 1))
    pickled = b"\x80\x02" + table(state_dict=table(**state)) + b"."
    (stream if streamed else archive)(path, pickled, {"0": bytes(96)}, rng, rng.random() < 0.1)
    return "sizes: refused" if read(path, mark) is None else "sizes: true ones read"


def draw_program(rng: random.Random, path: Path, mark: Path) -> str:
    """Instructions in any order."""
    pieces = (
        lambda: rng.choice((b")", b"]", b"}", b"\x8f", b"N", b"\x88", b"\x89", b"(", b"(", b"(")),
        lambda: rng.choice((b"t", b"\x85", b"\x86", b"\x87", b"u", b"s", b"a", b"e", b"R", b"b", b"\x81", b"Q")),
        lambda: text(rng.choice(("a", "state_dict", "weight", "latin1", "storage", "0", "cpu", "_metadata"))),
        lambda: number(rng.choice((0, 1, 6, 24, 2**40, -1))),
        lambda: b"q" + bytes([rng.randrange(4)]),
        lambda: rng.choice((b"h", b"r\xff\xff\xff", b"j\0\0\0")) + bytes([rng.randrange(4)]),
        lambda: tensor(storage("FloatStorage", "0", 24), 0, (6, 4), (4, 1)),
        lambda: rng.choice((dtype("f8"), array(dtype("f8"), (1,), bytes(8)), HOOKS)),
        lambda: named(*rng.choice(ALLOWED)),
        lambda: bytes([rng.randrange(256)]),
    )
    body = b"".join(rng.choice(pieces)() for _ in range(rng.randrange(1, 30)))
    if rng.random() < 0.5:  # those that PyTorch writes, with some lost, doubled, exchanged or added
        steps = list(STEPS)
        for _ in range(rng.choice((1, 1, 2, 4))):
            at, other = rng.randrange(len(steps)), rng.randrange(len(steps))
            change = rng.randrange(4)
            if change == 0:
                del steps[at]
            elif change == 1:
                steps.insert(at, steps[other])
            elif change == 2:
                steps[at], steps[other] = steps[other], steps[at]
            else:
                steps.insert(at, rng.choice(pieces)())
        archive(path, b"".join(steps), RECORDS, rng)
        return "programs: refused" if read(path, mark) is None else "programs: plain values read"
    pickled = b"\x80\x02" + rng.choice((body, table(state_dict=table(weight=pieces[6]())) + body, table(x=body))) + b"."
    packed(rng.choice(KINDS), path, pickled, {"0": bytes(96)}, rng)
    return "programs: refused" if read(path, mark) is None else "programs: plain values read"


def steps_of_torch() -> tuple[list[bytes], dict[str, bytes]]:
    """The instructions that PyTorch writes for CONTENT, each as bytes, and its storages."""
    buffer = io.BytesIO()
    torch.save(CONTENT, buffer)
    with zipfile.ZipFile(buffer) as file:
        top = file.namelist()[0].partition("/")[0]
        pickled = file.read(f"{top}/data.pkl")
        records = {name.rpartition("/")[2]: file.read(name) for name in file.namelist() if "/data/" in name}
    places = [place for _, _, place in pickletools.genops(pickled)]
    return [pickled[a:b] for a, b in pairwise([*places, len(pickled)])], records


STEPS, RECORDS = steps_of_torch()
ALLOWED = [
    ("collections", "OrderedDict"),
    ("collections", "Counter"),
    ("argparse", "Namespace"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("builtins", "getattr"),
    ("builtins", "slice"),
    ("builtins", "set"),
    ("builtins", "bytearray"),
    ("builtins", "complex"),
    ("_codecs", "encode"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch", "float32"),
    ("torch", "FloatStorage"),
    ("torch.storage", "UntypedStorage"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
]


def saved(kind: str, path: Path) -> dict:
    """A good file, and what is read from it."""
    if kind == "safetensors":
        save_file({key: value.contiguous() for key, value in WEIGHTS.items()}, path)
    else:
        torch.save(CONTENT, path, _use_new_zipfile_serialization=kind == "archive")
    return read_checkpoint(path)


def draw_damage(rng: random.Random, path: Path, mark: Path) -> str:
    kind = rng.choice(("archive", "archive", "stream", "safetensors"))
    whole = saved(kind, path)
    data = bytearray(path.read_bytes())
    how = rng.choice(("flipped", "flipped", "cut", "block", "longer", "swapped"))
    if how == "flipped":
        for _ in range(rng.choice((1, 1, 1, 2, 8))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del data[rng.randrange(len(data)) :]
    elif how == "block":
        start, length = rng.randrange(len(data)), rng.choice((4, 64, 512))
        stop = min(start + length, len(data))
        data[start:stop] = bytes(stop - start) if rng.random() < 0.5 else rng.randbytes(stop - start)
    elif how == "longer":
        data += rng.choice((b"\0", rng.randbytes(50), bytes(data)))
    else:
        a, b = sorted(rng.randrange(len(data)) for _ in range(2))
        data[a : a + 32], data[b : b + 32] = data[b : b + 32], data[a : a + 32]
    path.write_bytes(data)
    content = read(path, mark)
    if content is None:
        return f"damaged {kind}: refused"
    if equal(content, whole):
        return f"damaged {kind}: what was written is read"
    if kind == "archive":
        raise Failed(f"a damaged archive ({how}) was read as another")
    return f"damaged {kind}: another number or name, which this format cannot tell"


def draw_odd(rng: random.Random, path: Path, mark: Path) -> str:
    """Files that torch.save itself writes, of what is no weights or of what should not be taken for them."""
    nested = WEIGHTS["bias"]
    for _ in range(rng.choice((150, 3000, 100_000))):
        nested = rng.choice((lambda v: (v,), lambda v: [v]))(nested) if rng.random() < 0.5 else (nested,)
    loop: list = []
    loop.append(loop)
    with_attribute = torch.ones(6)
    with_attribute.flag = [1]
    refused = {
        "sparse": torch.eye(4).to_sparse(),
        "compressed": torch.eye(4).to_sparse_csr(),
        "quantized": torch.quantize_per_tensor(torch.ones(6), 1.0, 0, torch.qint8),
        "meta": torch.ones(6, device="meta"),
        "conjugate": torch.ones(6, dtype=torch.complex64).conj(),
        "expanded": torch.ones(1).expand(6),
        "overlapping": torch.arange(9.0).as_strided((6, 4), (1, 1)),
        "attribute": with_attribute,
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    }
    odd = {
        "bool": torch.ones(6, dtype=torch.bool),
        "int": torch.ones(6, dtype=torch.int32),
        "complex": torch.ones(6, dtype=torch.complex64),
        "uint16": torch.ones(6, dtype=torch.uint16),
        "float8": torch.ones(6).to(torch.float8_e4m3fn),
        "nan": torch.full((6,), torch.nan),
        "infinite": torch.full((6,), torch.inf),
        "too large": torch.full((6,), 1e300, dtype=torch.float64),
    }
    fine = {
        "half": torch.ones(6).half(),
        "double": torch.ones(6).double(),
        "bfloat16": torch.ones(6).bfloat16(),
        "parameter": torch.nn.Parameter(torch.ones(6)),
        "part": torch.arange(12.0)[6:],
        "columns": torch.arange(12.0).view(6, 2)[:, 0],
    }
    kind = rng.choice((*refused, *odd, *fine, "deep", "loop", "integer keys", "keys", "no tensors", "many"))
    state = dict(WEIGHTS)
    content: dict = {"state_dict": state}
    archived = rng.random() < 0.6
    if kind in (*refused, *odd, *fine):
        state["bias"] = {**refused, **odd, **fine}[kind]
    elif kind == "deep":
        content["extra"] = nested
    elif kind == "loop":
        content["extra"] = loop
    elif kind == "integer keys":
        state[7] = state.pop("bias")
    elif kind == "keys":
        content[rng.choice(((1, 2), frozenset((1,)), torch.float32))] = 1
    elif kind == "no tensors":
        state["bias"] = rng.choice((1.0, "x", None, [1.0], {"a": torch.ones(1)}))
    else:
        content["extra"] = [{} for _ in range(20_000)]
    try:
        sys.setrecursionlimit(1_000_000 if kind == "deep" else 1000)
        if kind == "deep":
            pickled = table(state_dict=table(weight=tensor(storage("FloatStorage", "0", 24), 0, (6, 4), (4, 1))))
            depth = rng.choice((150, 3000, 300_000))
            pickled = (
                pickled[:-1]
                + text("extra")
                + rng.choice((b")" + b"\x85" * depth, b"]" * depth + b"a" * (depth - 1)))
                + b"u"
            )
            archive(path, b"\x80\x02" + pickled + b".", {"0": bytes(96)}, rng)
        else:
            torch.save(content, path, _use_new_zipfile_serialization=archived)
    finally:
        sys.setrecursionlimit(1000)
    found = read(path, mark)
    if kind in fine or kind in odd or kind == "many":
        if found is None and kind in ("uint16", "float8") and not archived:
            return "odd contents: refused"  # which PyTorch itself cannot read back
        if found is None:
            raise Failed(f"{kind} was refused")
        try:
            check_weights(found["state_dict"], Model())
        except CheckpointError:
            if kind in odd:
                return "odd contents: refused"
            raise
        if kind in odd:
            raise Failed(f"{kind} was taken for weights")
        return "odd contents: read"
    if found is not None:
        raise Failed(f"{kind} was read")
    return "odd contents: refused"


def draw_header(rng: random.Random, path: Path, mark: Path) -> str:
    """Headers of safetensors that lie."""
    data = bytes(96)
    entry = {
        "dtype": rng.choice(("F32", "F32", "F32", "F64", "I64", "BOOL", "F8_E4M3", "C64", "X9", 3, None)),
        "shape": rng.choice(([6, 4], [24], [-1], [2**63], [2**32, 2**32], [6, 4, 0], [1.5], "x", None, [[6]])),
        "data_offsets": rng.choice(([0, 96], [0, 96], [0, 95], [96, 0], [-1, 95], [0, 2**63], [0], None, [4, 100])),
    }
    header = {"weight": entry}
    kind = rng.randrange(8)
    if kind == 0:
        header["bias"] = {**entry, "data_offsets": rng.choice(([0, 96], [48, 96], [96, 96], [96, 2**40]))}
    elif kind == 1:
        header["__metadata__"] = rng.choice(({"a": "b"}, {"a": 1}, [], "x", {"a": {"b": "c"}}))
    elif kind == 2:
        del entry[rng.choice(list(entry))]
    elif kind == 3:
        header = rng.choice(([], {}, {"weight": 1}, {"": entry}, {"weight": [entry]}))
    encoded = json.dumps(header).encode()
    if kind == 4:
        encoded = b'{"weight":' + b"[" * rng.choice((200, 100_000)) + encoded
    elif kind == 5:
        encoded = encoded[:-1] + b", " + encoded[1:]
    elif kind == 6:
        encoded = encoded.replace(b"weight", rng.choice((b"\xff", b"\\ud800", b"\\u0000", b"a" * 5000)))
    elif kind == 7 and rng.random() < 0.5:
        entry.update(dtype="F32", shape=[6, 4], data_offsets=[0, 96])
        encoded = json.dumps(header).encode()
    length = len(encoded) + rng.choice((0, 0, 0, 0, 1, -1, 96, 2**40, 2**62))
    path = path.with_suffix(rng.choice((".pth", ".safetensors")))
    path.write_bytes(struct.pack("<Q", max(length, 0)) + encoded + data[: rng.choice((96, 96, 96, 0, 50))])
    return "headers: refused" if read(path, mark) is None else "headers: true ones read"


def draw(seed: int) -> str:
    rng = random.Random(seed)
    kinds = (
        draw_code,
        draw_code,
        draw_array,
        draw_claims,
        draw_program,
        draw_program,
        draw_damage,
        draw_damage,
        draw_odd,
        draw_header,
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "files").mkdir()
        return rng.choice(kinds)(rng, Path(folder, "files", "a.pth"), Path(folder, "mark"))


def test_campaign(tmp_path):
    # What Python, PyTorch and safetensors import when they are first used is no code of a file's.
    b"\xff".decode("cp437")
    for kind in ("archive", "stream", "safetensors"):
        saved(kind, tmp_path / "good")
    tar(tmp_path / "tar", b"x")
    (tmp_path / "no").write_bytes(b"no")
    for name in ("tar", "no"):
        with pytest.raises(CheckpointError):
            read_checkpoint(tmp_path / name)
    campaign("checkpoints", draw, DRAWS)


def test_the_watch_sees_what_a_payload_does(tmp_path):
    """Read by pickle itself, the payloads leave their mark."""
    global _watching
    marked = seen = 0
    for seed in range(300):
        rng = random.Random(seed)
        mark = tmp_path / f"mark{seed}"
        module, name, arguments = calls(mark, rng)
        if (module, name) not in (("posix", "system"), ("os", "mkdir"), ("builtins", "exec"), ("builtins", "open")):
            continue
        _seen.clear()
        _watching = True
        try:
            pickle.loads(named(module, name) + pickle.dumps(arguments, 2)[2:-1] + b"R.")
        finally:
            _watching = False
        marked += mark.exists()
        seen += bool(_seen)
    assert marked == seen > 20


def test_what_the_attack_of_the_review_used(tmp_path):
    """Object pointers made of bytes: a dtype whose state says that its numbers are objects."""
    flags = row(number(3), text("|"), b"N", b"N", b"N", number(8), number(8), number(63))
    for code in ("O8", "f8", "i8"):
        log = array(dtype(code, flags), (1,), struct.pack("<Q", 0x4141414141414141))
        good = tensor(storage("FloatStorage", "0", 24), 0, (6, 4), (4, 1))
        pickled = b"\x80\x02" + table(state_dict=table(weight=good), log=log) + b"."
        archive(tmp_path / "a.pth", pickled, {"0": bytes(96)}, random.Random(0))
        with pytest.raises(CheckpointError, match=r"a\.pth: its pickle holds an array"):
            read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            b"]q\0" + b"".join(b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(80)),
            "the same containers in each other again and again",
        ),
        (b"]" * 200 + b"a" * 199, "more than 100 deep"),
        (b"]q\0h\0a", "more than 100 deep, or one in itself"),
        (b"](" + b"}" * 1_100_000 + b"e", "more than 1,000,000 instructions"),
        (b"}" + b")" + b"\x85" * 200_000 + b"Ns", "a key that is neither text nor number"),
        (b"X\xff\xff\xff\xff", "truncated, or not a checkpoint"),
        (
            b"(c_codecs\nencode\nq\0(" + text("a" * 10_000) + text("latin1") + b"tq\1R" + b"h\0h\1R" * 100 + b"t",
            "copies the same values again and again",
        ),
        (
            b"(ctorch\nSize\nq\0](" + number(3) * 10_000 + b"e\x85q\1R" + b"h\0h\1R" * 100 + b"t",
            "copies the same values again and again",
        ),
    ],
    ids=["doubled", "deep", "in itself", "many", "deep key", "long text", "encoded", "sizes"],
)
@pytest.mark.parametrize("kind", ["archive", "stream"])
def test_pickles_that_would_take_all_memory_or_time(tmp_path, kind, extra, message):
    pickled = b"\x80\x02" + table(state_dict=table(weight=weight(kind)), extra=extra) + b"."
    packed(kind, tmp_path / "a.pth", pickled, {"0": bytes(96)}, random.Random(0))
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "a.pth")
