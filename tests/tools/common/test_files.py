"""What every command writes and removes by: locks, atomic files, names and stamps."""

import errno
import json
import os
import signal
import time
from contextlib import contextmanager

import pytest

from attnzoo.tools.common import files
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


def alias(kind, path):
    """Another name of a file or folder."""
    if kind == "same":
        return path
    if kind == "dots":
        return path.parent / "x" / ".." / path.name
    other = path.with_name("alias.pth")
    other.symlink_to(path) if kind == "symlink" else other.hardlink_to(path)
    return other


@pytest.mark.parametrize("kind", ["same", "dots", "symlink", "hardlink"])
def test_an_output_is_no_input_by_any_name(tmp_path, kind):
    path = tmp_path / "a.pth"
    path.write_text("weights")
    output = alias(kind, path)
    with pytest.raises(UserError, match=r"is read by this command, which would replace it"):
        files.check_outputs([tmp_path / "other", output], [tmp_path / "absent", path])
    with pytest.raises(UserError, match="is read by"), files.atomic_path(output, [path]) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "weights"


def test_folders_are_compared_too(tmp_path):
    with pytest.raises(UserError, match="is read by"):
        files.check_outputs([tmp_path], [tmp_path], folders=True)
    files.check_outputs([tmp_path / "inside"], [tmp_path], folders=True)


def test_what_is_there_is_replaced_only_when_asked(tmp_path):
    (tmp_path / "a.json").write_text("mine")
    files.check_outputs([tmp_path / "a.json"])
    with pytest.raises(UserError, match=r"a\.json: is there already: name another file, or give --overwrite"):
        files.check_outputs([tmp_path / "a.json"], overwrite=False)


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
    lock = tmp_path / "work" / files.LOCK
    number, _ = holder(lambda: files.locked(lock, "it"))
    refused = pytest.raises(UserError, match=rf"it: another run is at work there \(process {number} on ")
    with refused, files.locked(lock, "it"):
        pass
    end(number)
    assert lock.exists(), "left by the killed process"
    with files.locked(lock, "it") as held:
        assert held
        with pytest.raises(UserError, match=f"process {os.getpid()}"), files.locked(lock, "it"):
            pass
    assert not lock.exists()


def test_a_lock_does_not_live_on_in_forked_workers(tmp_path):
    """As those of a data loader, which outlive a killed training for seconds."""
    lock = tmp_path / files.LOCK
    number, child = holder(lambda: files.locked(lock, "it"), fork=True)
    end(number)
    try:
        os.kill(child, 0)
        with files.locked(lock, "it") as held:
            assert held
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_file_system_without_locks_warns_and_goes_on(tmp_path, monkeypatch, capsys):
    import fcntl

    def none(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with files.locked(tmp_path / files.LOCK, "it") as held:
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


def test_what_stands_in_a_folder_that_is_read_is_not_replaced(tmp_path):
    image = tmp_path / "images" / "deep" / "7.jpg"
    image.parent.mkdir(parents=True)
    image.write_text("mine")
    (tmp_path / "out.json").write_text("old")
    with pytest.raises(UserError, match=r"7\.jpg: stands in .*images, which this command reads"):
        files.check_outputs([image], [tmp_path, tmp_path / "images"])
    (tmp_path / "images" / "link.jpg").symlink_to(tmp_path / "out.json")
    with pytest.raises(UserError, match=r"link\.jpg: stands in"):
        files.check_outputs([tmp_path / "images" / "link.jpg"], [tmp_path / "images"])
    files.check_outputs([tmp_path / "out.json", tmp_path / "images" / "new.json"], [tmp_path, tmp_path / "images"])


def test_names_that_cannot_be_written_are_told_before_the_work(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    for output, said in (
        (tmp_path, "is a folder: name a file"),
        (tmp_path / "file" / "a.json", r"cannot be written: .*file is no folder"),
        (tmp_path / "link", "is there already"),
    ):
        with pytest.raises(UserError, match=said):
            files.check_outputs([output], overwrite=False)
    with pytest.raises(UserError, match="file: is no folder"):
        files.check_outputs([tmp_path / "file"], folders=True)


def test_two_outputs_are_two_files(tmp_path):
    with pytest.raises(UserError, match=r"same\.png: would be written twice"):
        files.check_outputs([tmp_path / "same.png", tmp_path / "." / "x" / ".." / "same.png"])


@pytest.mark.parametrize("kind", ["link", "dangling link", "file", "folder", "pipe"])
def test_a_lock_takes_the_place_of_nothing(tmp_path, kind):
    lock, mine = tmp_path / files.LOCK, tmp_path / "mine"
    mine.write_text("mine, process 1 on this")
    if kind == "file":
        lock.write_text("process 1 on this\nand more of mine\n")
    elif kind == "folder":
        lock.mkdir()
    elif kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.symlink_to(mine if kind == "link" else tmp_path / "absent")
    with pytest.raises(UserError, match="is no lock of attnzoo: move it away"), files.locked(lock, "it"):
        pass
    assert os.path.lexists(lock) and mine.read_text() == "mine, process 1 on this"
    assert not (tmp_path / "absent").exists()
    assert kind != "file" or lock.read_text().endswith("mine\n")
