"""What every command writes and removes by: locks, atomic files, names and stamps."""

import errno
import json
import os
import signal
import time
from contextlib import contextmanager

import pytest

from attnzoo.tools.common import files, locks
from attnzoo.tools.common.errors import UserError


def holder(enter, fork=False):
    """A process that has entered a context and stays in it until it is killed, and one that it has forked then."""
    reader, writer = os.pipe()
    number = os.fork()
    if not number:
        with enter():
            child = os.fork() if fork else 0
            if child or not fork:
                os.write(writer, f"{child}\n".encode())
            time.sleep(60)
        os._exit(0)
    with os.fdopen(reader) as answer:
        child = int(answer.readline())
    os.close(writer)
    return number, child


def end(number):
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)


@contextmanager
def half_written(path):
    with files.atomic_path(path) as temporary:
        temporary.write_text("half")
        yield


def test_a_device_is_not_replaced():
    with pytest.raises(UserError, match="/dev/null: is no regular file"), files.atomic_path("/dev/null"):
        pass
    assert not os.path.isfile("/dev/null")


def test_a_writer_that_writes_nothing_fails(tmp_path):
    (tmp_path / "a.png").write_bytes(b"old")
    with pytest.raises(OSError, match=r"nothing was written: .*a\.png"), files.atomic_path(tmp_path / "a.png"):
        pass
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_a_full_disk_is_said_with_the_name_and_leaves_the_old_file(tmp_path):
    (tmp_path / "a.json").write_text("old")
    full = pytest.raises(OSError, match=r"No space left on device: .*a\.json")
    with full as raised, half_written(tmp_path / "a.json"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert raised.value.filename and raised.value.__cause__ is not None
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_long_name_can_be_written(tmp_path):
    name = "n" * 250 + ".json"
    files.write_json(tmp_path / name, 1)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_lock_names_its_holder_and_dies_with_it(tmp_path):
    lock = tmp_path / "work" / locks.LOCK
    number, _ = holder(lambda: locks.locked(lock, "it"))
    refused = pytest.raises(UserError, match=rf"it: another run is at work there \(process {number} on ")
    with refused, locks.locked(lock, "it"):
        pass
    end(number)
    assert lock.exists(), "left by the killed process"
    with locks.locked(lock, "it") as held:
        assert held
        with pytest.raises(UserError, match=f"process {os.getpid()}"), locks.locked(lock, "it"):
            pass
    assert not lock.exists()


def test_a_lock_does_not_live_on_in_forked_workers(tmp_path):
    """As those of a data loader, which outlive a killed training for seconds."""
    lock = tmp_path / locks.LOCK
    number, child = holder(lambda: locks.locked(lock, "it"), fork=True)
    end(number)
    try:
        os.kill(child, 0)
        with locks.locked(lock, "it") as held:
            assert held
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_file_system_without_locks_warns_and_goes_on(tmp_path, monkeypatch, capsys):
    import fcntl

    def none(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with locks.locked(tmp_path / locks.LOCK, "it") as held:
        assert not held
    assert capsys.readouterr().err.startswith("attnzoo: warning: it: the file system has no locks")
    with files.atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("a")
        files.remove_leftovers(tmp_path)
        assert temporary.exists(), "whose process may live"


def test_leftovers_are_those_of_dead_processes(tmp_path):
    (alive, _), (dead, _) = (holder(lambda: half_written(tmp_path / "a.pth")) for _ in range(2))
    end(dead)
    theirs = [".a.tmp.pth", "attnzoo-0123456789ab.tmp.pth", ".attnzoo-mine.tmp", ".attnzoo.json"]
    for name in theirs:
        (tmp_path / name).write_text("mine")
    assert len(list(tmp_path.glob(".attnzoo-*.tmp.pth"))) == 2
    files.write_json(tmp_path / "b.json", 1)
    assert len(list(tmp_path.glob(".attnzoo-*.tmp.pth"))) == 1
    end(alive)
    files.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*theirs, "b.json"])


def test_files_are_removed_by_name_and_folders_when_empty(tmp_path):
    for name in ("a/b/one", "a/two", "a/mine", "c/three"):
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(name)
    files.remove_files(tmp_path / "root", ["a/b/one", "a/two", "absent/x", "c/three/no folder"])
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"mine", "three"}
    assert not (tmp_path / "root/a/b").exists()
    files.remove_files(tmp_path / "root", ["a/mine", "c/three"])
    assert not list(tmp_path.iterdir())


def test_a_claimed_folder_is_known_again_and_no_other(tmp_path):
    files.claim(tmp_path / "new", "attnzoo demo")
    (tmp_path / "new" / "notes.txt").write_text("mine")
    files.claim(tmp_path / "new", "attnzoo demo")
    with pytest.raises(UserError, match=r"holds 'notes\.txt', and nothing says that 'attnzoo compare' wrote it"):
        files.claim(tmp_path / "new", "attnzoo compare")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "data").mkdir()
    files.claim(tmp_path / "other", "attnzoo demo", known=["data"])
    assert json.loads((tmp_path / "other" / files.STAMP).read_text()) == {"written_by": "attnzoo demo"}


def test_a_file_is_whole_or_as_before(tmp_path):
    path = files.write_json(tmp_path / "new" / "a.json", [1])
    with pytest.raises(RuntimeError), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "[\n  1\n]\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.json"]
    assert temporary.suffix == ".json"


def test_the_last_of_two_writers_wins_whole(tmp_path):
    path = tmp_path / "a.json"
    with files.atomic_path(path) as one:
        one.write_text("1")
        with files.atomic_path(path) as other:
            assert other != one
            other.write_text("22")
        assert path.read_text() == "22"
    assert path.read_text() == "1"
    assert time.time() - path.stat().st_mtime < 60


@pytest.mark.parametrize("kind", ["link", "dangling link", "file", "folder", "pipe"])
def test_a_lock_takes_the_place_of_nothing(tmp_path, kind):
    lock, mine = tmp_path / locks.LOCK, tmp_path / "mine"
    mine.write_text("mine, process 1 on this")
    if kind == "file":
        lock.write_text("process 1 on this\nand more of mine\n")
    elif kind == "folder":
        lock.mkdir()
    elif kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.symlink_to(mine if kind == "link" else tmp_path / "absent")
    with pytest.raises(UserError, match="is no lock of attnzoo: move it away"), locks.locked(lock, "it"):
        pass
    assert os.path.lexists(lock) and mine.read_text() == "mine, process 1 on this"
    assert not (tmp_path / "absent").exists()
    assert kind != "file" or lock.read_text().endswith("mine\n")
