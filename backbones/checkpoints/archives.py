"""The files that `torch.save` writes, and whether one is whole: the archive of today and the stream of before 1.6."""

import io
import struct
import zipfile
from collections.abc import Iterable
from typing import BinaryIO

from .pickles import Refused, Survey

ZIP_START = b"PK\x03\x04"
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


def check_archive(file: BinaryIO, size: int, stand_ins: Iterable[str]) -> None:
    """Check an archive: every record once, its checksum, and the pickle in it.

    PyTorch checks no checksum. It has a reader of its own, so what two readers could understand in two ways is refused.

    Raises:
        Refused: It is damaged, or its pickle is not what a checkpoint's should be.
        Exception: It is damaged; of any kind.
    """
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        names = [record.filename for record in records]
        if _directory(file, size) != (archive.start_dir, len(records)):
            raise Refused("damaged: the directory of its zip archive is not where it should be")
        plain = all(record.orig_filename == record.filename and record.filename.isascii() for record in records)
        # PyTorch's reader takes upper and lower case for the same.
        if not plain or len({name.lower() for name in names}) < len(names):
            raise Refused("damaged: records of its zip archive have the same name, or none that is text")
        tops = {name.partition("/")[0] for name in names}
        top = f"{next(iter(tops), '')}/"
        if len(tops) != 1 or f"{top}data.pkl" not in names:
            raise Refused("not a checkpoint: a zip archive without a data.pkl of PyTorch's")
        if f"{top}constants.pkl" in names:
            raise Refused("a TorchScript archive, which is code, not a checkpoint of weights")
        stored = all(
            record.compress_type == zipfile.ZIP_STORED and record.compress_size == record.file_size
            for record in records
        )
        # Several records in the same place would need more memory than the file has.
        if not stored or sum(record.file_size for record in records) > size:
            raise Refused("damaged: records of its zip archive are compressed or overlap, as torch.save writes none")
        broken = archive.testzip()
        if broken is not None:
            raise Refused(f"damaged: the checksum of its record {broken!r} is wrong")
        sizes = {record.filename: record.file_size for record in records}

        def check_storage(key: str, nbytes: int) -> None:
            found = sizes.get(f"{top}data/{key}")
            if found != nbytes:
                what = "no record of it" if found is None else f"its record has {found}"
                raise Refused(f"damaged: its pickle describes a storage of {nbytes} bytes, and there is {what}")

        pickled = archive.read(f"{top}data.pkl")
        Survey(stand_ins, check_storage, len(pickled)).walk(io.BytesIO(pickled))


def _directory(file: BinaryIO, size: int) -> tuple[int, int]:
    """Where the directory of a zip archive starts and how many records it has, if it ends just before the end."""
    end = 22
    file.seek(size - end)
    signature, _, _, _, count, length, start, comment = struct.unpack("<4s4H2LH", file.read(end))
    if signature != b"PK\x05\x06" or comment:
        raise Refused("damaged: its zip archive does not end in its directory")
    if size >= end + 20 + 56:
        file.seek(size - end - 20)
        signature, _, place, disks = struct.unpack("<4sLQL", file.read(20))
        if signature == b"PK\x06\x07":
            end += 20 + 56
            file.seek(size - end)
            record = struct.unpack("<4sQ2H2L4Q", file.read(56))
            if record[0] != b"PK\x06\x06" or record[1] != 44 or place != size - end or disks != 1:
                raise Refused("damaged: its zip archive does not end in its directory")
            large = record[7:]
            small = (count, length, start)
            limits = (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
            if any(a not in (b, limit) for a, b, limit in zip(small, large, limits, strict=True)):
                raise Refused("damaged: the two ends of its zip archive do not agree")
            count, length, start = large
    if start + length + end != size:
        raise Refused("damaged: the directory of its zip archive is not where it should be")
    return start, count


class _Bounded:
    """A file that is asked for no more bytes than it has: Python makes room for as many as are asked for."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self.readline = file.readline

    def read(self, count: int) -> bytes:
        if count > self._size - self._file.tell():
            raise EOFError(f"{count} bytes are asked for beyond the end of the file")
        return self._file.read(count)


def check_stream(file: BinaryIO, size: int, stand_ins: Iterable[str]) -> None:
    """Check a file of PyTorch before 1.6: five pickles and the bytes of the storages, to the end of the file.

    Its numbers have no checksum: a damaged one cannot be told from another number.

    Raises:
        Refused: It is no such file, is not whole, or a pickle of it is not what a checkpoint's should be.
        Exception: It is no such file; of any kind.
    """
    file.seek(257)
    if file.read(5) == b"ustar":
        raise Refused("a .tar file of PyTorch before 0.2, which PyTorch only reads by running code in it")
    file.seek(0)

    def check_storage(key: str, nbytes: int) -> None:
        if nbytes > size:
            raise Refused(f"truncated: its pickle describes a storage of {nbytes} bytes, and the file has {size}")

    survey = Survey(stand_ins, check_storage, size)
    bounded = _Bounded(file, size)
    if survey.walk(bounded) != _MAGIC or survey.walk(bounded) != _PROTOCOL:
        raise Refused("truncated, or not a checkpoint")
    system = survey.walk(bounded)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("written on a machine of another byte order")
    survey.walk(bounded)
    storages = {key: storage for key, storage in survey.storages.items() if not key.startswith("part ")}
    keys = survey.walk(bounded)
    if type(keys) is not list or len(keys) != len(storages) or not all(key in storages for key in keys):
        raise Refused("damaged: its list of storages is not that of its pickle")
    total = file.tell() + sum(8 + storage.count * storage.item_size for storage in storages.values())
    if total != size:
        raise Refused(f"truncated or damaged: its pickle describes {total} bytes, and the file has {size}")
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        if count != storages[key].count:
            raise Refused(f"damaged: the storage {key!r} has {count} elements, not {storages[key].count}")
        file.seek(storages[key].count * storages[key].item_size, 1)
