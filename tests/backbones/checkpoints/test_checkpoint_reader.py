"""The reader of checkpoints: by content, whole or not at all, with one clear error; the campaign draws the rest."""

import argparse
import hashlib
import os
import pickle
import socket
import subprocess
import sys
import threading
import zipfile
from collections import Counter, OrderedDict

import numpy as np
import pytest
import timm
import torch
from loopback import served
from safetensors.torch import save_file
from torch import nn

from attnzoo.backbones.checkpoints import pickles as _pickles
from attnzoo.backbones.checkpoints.reader import (
    CheckpointError,
    allow,
    check_weights,
    read_checkpoint,
    read_safetensors,
)

WEIGHTS = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(2)}


class Runs:
    """Pickled, it calls a function with arguments."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def same(state) -> bool:
    return state.keys() == WEIGHTS.keys() and all(torch.equal(state[key], WEIGHTS[key]) for key in WEIGHTS)


def write(path, kind, content=None):
    content = {"state_dict": WEIGHTS} if content is None else content
    if kind == "safetensors":
        save_file(WEIGHTS, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "archive")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a", "a.pth.tar"])
@pytest.mark.parametrize("kind", ["archive", "stream", "safetensors"])
def test_the_content_decides_not_the_name(tmp_path, kind, name):
    write(tmp_path / name, kind)
    assert same(read_checkpoint(tmp_path / name)["state_dict"])


@pytest.mark.parametrize("kind", ["archive", "stream"])
def test_what_stands_beside_weights(tmp_path, kind):
    ordered = OrderedDict(a=1)
    ordered._metadata = {"": {"version": 2}}
    content = {
        "model": {key: nn.Parameter(value) for key, value in WEIGHTS.items()},
        "args": argparse.Namespace(lr=0.1, inner=argparse.Namespace(names=["a"])),
        "counter": Counter([5, 5, 7]),
        "arrays": [np.arange(6, dtype=">i2").reshape(2, 3), np.asfortranarray(np.ones((2, 3))), np.array([True])],
        "scalars": (np.float64(0.5), np.int32(-3), np.bool_(True)),
        "plain": (None, True, 2**70, -1, 0.5, 1j, "ä", b"\xff", bytearray(b"x"), {1, 2}, slice(1, None)),
        "torch": (torch.Size([2, 3]), torch.float16, torch.device("cpu")),
        "ordered": ordered,
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    }
    write(tmp_path / "a.pth", kind, content)
    read = read_checkpoint(tmp_path / "a.pth")
    assert same(read["state_dict"]) and type(read["state_dict"]["bias"]) is torch.Tensor
    assert type(read["args"]) is argparse.Namespace and read["args"] == content["args"]
    assert read["counter"] == content["counter"] and type(read["counter"]) is Counter
    for array, written in zip(read["arrays"], content["arrays"], strict=True):
        assert type(array) is np.ndarray and array.dtype == written.dtype.newbyteorder("=")
        assert np.array_equal(array, written)
    for key in ("scalars", "plain", "torch", "ordered"):
        assert read[key] == content[key]
    assert read["ordered"]._metadata == ordered._metadata
    assert read["optimizer"]["state"][0]["step"] == 3
    assert read["meta"] == {}


def test_averaged_weights_come_first_as_in_timm(tmp_path):
    other = {key: value + 1 for key, value in WEIGHTS.items()}
    for place in ("state_dict_ema", "model_ema"):
        torch.save({"state_dict": other, place: WEIGHTS}, tmp_path / "a.pth")
        assert same(read_checkpoint(tmp_path / "a.pth")["state_dict"])
        assert same(timm.models.load_state_dict(str(tmp_path / "a.pth")))
    torch.save({"params": other, "params_ema": WEIGHTS}, tmp_path / "a.pth")
    assert same(read_checkpoint(tmp_path / "a.pth")["state_dict"])


def test_only_what_is_allowed_from_above_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(_pickles, "STAND_INS", _pickles.STAND_INS)
    monkeypatch.setitem(_pickles.STAND_INS, "x", None)
    del _pickles.STAND_INS["x"]
    content = {"state_dict": WEIGHTS, "extra": Owner()}
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth: refused, its pickle asks for '[\w.]*Owner'"):
        read_checkpoint(tmp_path / "a.pth")
    path = f"{Owner.__module__}.Owner"
    allow(path, lambda state: ("made", state), members=("method",))
    try:
        assert read_checkpoint(tmp_path / "a.pth")["extra"] == ("made", {"x": 1, "m": "Owner.method"})
        torch.save({**content, "extra": Runs(getattr, Owner, "other")}, tmp_path / "a.pth")
        with pytest.raises(CheckpointError, match="refused, its pickle asks for the attribute 'other'"):
            read_checkpoint(tmp_path / "a.pth")
    finally:
        del _pickles.STAND_INS[path]


class Owner:
    def __init__(self):
        self.x = 1
        self.m = Owner.method

    def method(self):
        raise AssertionError("a method of a pickled object ran")

    def other(self):
        pass


def test_a_list_that_others_have_widened_does_not_count(tmp_path):
    content = {"state_dict": WEIGHTS, "array": np.ones(2)}
    torch.save(content, tmp_path / "a.pth")
    torch.save({"state_dict": WEIGHTS, "extra": Runs(os.path.join, "a", "b")}, tmp_path / "b.pth")
    before = torch.serialization.get_safe_globals()
    ours = [np.dtype, np.ndarray, (os.path.join, "posixpath.join")]
    torch.serialization.add_safe_globals(ours)
    try:
        assert np.array_equal(read_checkpoint(tmp_path / "a.pth")["array"], np.ones(2))
        with pytest.raises(CheckpointError, match=r"posixpath\.join"):
            read_checkpoint(tmp_path / "b.pth")
        assert set(torch.serialization.get_safe_globals()) == {*before, *ours}
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def test_attributes_of_tensors_are_left_out(tmp_path):
    """FSDP notes on each tensor that it gathers whether it is a copy."""
    tensor = torch.ones(2)
    tensor._has_been_cloned = True
    torch.save({"state_dict": {"a": tensor}}, tmp_path / "a.pth")
    found = read_checkpoint(tmp_path / "a.pth")["state_dict"]["a"]
    assert type(found) is torch.Tensor and not vars(found) and torch.equal(found, torch.ones(2))


@pytest.mark.parametrize(
    ("name", "value"), [("data", 1), ("__class__", "x"), ("grad", None), ("a b", 1), ("note", [1]), ("note", {})]
)
def test_attributes_that_mean_something_are_refused(tmp_path, name, value):
    class Rebuilt:
        def __reduce__(self):
            function, arguments = torch.ones(2).__reduce_ex__(2)[:2]
            return torch._tensor._rebuild_from_type_v2, (function, torch.Tensor, arguments, {name: value})

    torch.save({"state_dict": {"a": torch.ones(2)}, "extra": Rebuilt()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="attributes of its own"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.long
def test_no_environment_makes_it_run_code(tmp_path):
    mark = tmp_path / "ran"
    torch.save({"state_dict": WEIGHTS, "extra": Runs(os.mkdir, str(mark))}, tmp_path / "a.pth")
    code = (
        "import sys; from attnzoo.backbones.checkpoints import *\n"
        "try: read_checkpoint(sys.argv[1])\nexcept CheckpointError as error: print(error)"
    )
    environment = {**os.environ, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    command = [sys.executable, "-c", code, str(tmp_path / "a.pth")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert "refused, its pickle asks for 'posix.mkdir'" in done.stdout, done.stderr
    assert not mark.exists()


def test_every_flipped_bit_of_an_archive_is_noticed_or_changes_nothing(tmp_path):
    path = tmp_path / "a.pth"
    write(path, "archive", {"state_dict": WEIGHTS, "epoch": 3})
    data = path.read_bytes()
    refused = 0
    for place in range(0, len(data), 3):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        try:
            read = read_checkpoint(path)
        except CheckpointError as error:
            assert str(error).startswith(f"{path}: ")
            refused += 1
        else:
            assert same(read["state_dict"]) and read["epoch"] == 3
    assert refused > 200


@pytest.mark.parametrize("kind", ["archive", "stream", "safetensors"])
def test_every_truncation_is_refused_by_name(tmp_path, kind):
    path = tmp_path / "a.pth"
    write(path, kind)
    data = path.read_bytes()
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError) as raised:
            read_checkpoint(path)
        assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.eye(2).to_sparse(), "holds a sparse tensor"),
        (torch.eye(2).to_sparse_csr(), "holds a sparse tensor"),
        (torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8), "holds a quantized tensor"),
        (torch.ones(2, device="meta"), "holds a meta tensor"),
        (torch.ones(1).expand(2), "elements share memory"),
        (torch.arange(3.0).as_strided((2, 2), (1, 1)), "elements share memory"),
        (torch.ones(2, dtype=torch.complex64).conj(), "conjugate"),
        (1.0, "holds no weights"),
        ({"a": torch.ones(2)}, "holds no weights"),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_weights(tmp_path, value, message):
    torch.save({"state_dict": {**WEIGHTS, "bias": value}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=rf"a\.pth: .*{message}"):
        read_checkpoint(tmp_path / "a.pth")


def test_names_that_are_no_texts(tmp_path):
    torch.save({"state_dict": {**WEIGHTS, 7: torch.ones(2)}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="a tensor's name is the int 7, not a text"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_tar_file_and_torchscript_and_any_zip_say_what_they_are(tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "a.pth", "w") as file:
        file.add(__file__, "storages")
    with pytest.raises(CheckpointError, match=r"a\.pth: a \.tar file of PyTorch before 0\.2"):
        read_checkpoint(tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "b.pth", "w") as file:
        file.writestr("b/data.pkl", b"\x80\x02}.")
        file.writestr("b/constants.pkl", b"x")
    with pytest.raises(CheckpointError, match="TorchScript"):
        read_checkpoint(tmp_path / "b.pth")
    with zipfile.ZipFile(tmp_path / "c.pth", "w") as file:
        file.writestr("c/weights.npy", b"x")
    with pytest.raises(CheckpointError, match=r"without a data\.pkl"):
        read_checkpoint(tmp_path / "c.pth")


def test_names_that_lower_the_guard_of_one_reader_of_zip_files(tmp_path):
    torch.save({"state_dict": WEIGHTS}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth", "a") as file:
        file.writestr("a/DATA.PKL", pickle.dumps(Runs(os.mkdir, str(tmp_path / "ran")), 2))
    with pytest.raises(CheckpointError, match="records of its zip archive have the same name"):
        read_checkpoint(tmp_path / "a.pth")


def test_safetensors_with_its_text(tmp_path):
    save_file(WEIGHTS, tmp_path / "a.safetensors", {"a": "b"})
    tensors, texts = read_safetensors(tmp_path / "a.safetensors")
    assert same(tensors) and texts == {"a": "b"}
    data = (tmp_path / "a.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].rstrip()
    twice = (
        header[:-1]
        + b',"bias"'
        + header[header.index(b'"bias"') + 6 : header.index(b"}", header.index(b'"bias"')) + 1]
        + b"}"
    )
    (tmp_path / "a.safetensors").write_bytes(len(twice).to_bytes(8, "little") + twice + data[8 + length :])
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "a.safetensors")
    with pytest.raises(FileNotFoundError, match="none"):
        read_safetensors(tmp_path / "none")


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2, 2))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("index", torch.zeros(2, dtype=torch.int64))
        self.weight.data.fill_(torch.nan)  # as memory that nothing was written to may be


FINE = dict(weight=torch.ones(2, 2), mask=torch.tensor([0.0, -torch.inf]), mean=torch.ones(2), count=torch.tensor(3))


@pytest.mark.parametrize(
    "change",
    [
        {},
        dict(weight=torch.ones(2, 2).half()),
        dict(weight=torch.ones(2, 2).bfloat16()),
        dict(weight=torch.ones(2, 2).double()),
        dict(count=torch.tensor(3.0)),
        dict(count=torch.tensor(3, dtype=torch.int32)),
        dict(mask=torch.full((2,), torch.nan)),
        dict(unknown=torch.full((2,), torch.nan)),
    ],
)
def test_weights_that_fit(change):
    check_weights({**FINE, **change}, Masked())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(weight=torch.ones(2, 2, dtype=torch.bool)), "'weight' is bool, where the model has float32"),
        (dict(weight=torch.ones(2, 2, dtype=torch.int64)), "'weight' is int64, where the model has float32"),
        (dict(weight=torch.ones(2, 2, dtype=torch.complex64)), "'weight' is complex64, where"),
        (dict(weight=torch.ones(2, 2).to(torch.float8_e4m3fn)), "'weight' is float8_e4m3fn, where"),
        (dict(count=torch.tensor(0.5)), "'count' is float32, where the model has int64"),
        (dict(count=torch.tensor(1j)), "'count' is complex64, where the model has int64"),
        (dict(weight=torch.full((2, 2), torch.nan)), "'weight' holds NaN"),
        (dict(weight=torch.full((2, 2), -torch.inf)), "'weight' holds a number that is infinite as float32"),
        (dict(weight=torch.full((2, 2), 1e300, dtype=torch.float64)), "'weight' holds a number that is infinite as"),
        (dict(mean=torch.tensor([1.0, torch.nan])), "'mean' holds NaN"),
    ],
)
def test_weights_that_do_not_fit(change, message):
    with pytest.raises(CheckpointError, match=message):
        check_weights({**FINE, **change}, Masked())


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """PyTorch's folder of checkpoints, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "hub" / "checkpoints"


@pytest.fixture
def site(tmp_path):
    (tmp_path / "site").mkdir()
    with served(tmp_path / "site") as address:
        yield tmp_path / "site", address


def test_a_file_at_an_address_comes_once(site, hub):
    folder, address = site
    write(folder / "a.pth", "archive")
    assert same(read_checkpoint(f"{address}/a.pth?download=1")["state_dict"])
    assert [path.name for path in hub.iterdir()] == ["a.pth"]
    (folder / "a.pth").unlink()
    assert same(read_checkpoint(f"{address}/a.pth")["state_dict"])


def test_a_hostile_or_broken_file_at_an_address_leaves_nothing(site, hub, tmp_path):
    folder, address = site
    torch.save({"state_dict": WEIGHTS, "extra": Runs(os.mkdir, str(tmp_path / "ran"))}, folder / "a.pth")
    (folder / "b.pth").write_bytes((folder / "a.pth").read_bytes()[:-50])
    for name, reason in (("a.pth", "refused"), ("b.pth", "truncated"), ("c.pth", "404")):
        with pytest.raises(CheckpointError, match=rf"^{address}/{name}: .*{reason}"):
            read_checkpoint(f"{address}/{name}")
    assert not (tmp_path / "ran").exists() and list(hub.iterdir()) == []


def test_the_hash_in_a_name_is_checked(site, hub):
    folder, address = site
    write(folder / "a.pth", "archive")
    digest = hashlib.sha256((folder / "a.pth").read_bytes()).hexdigest()
    for name in (f"a-{digest[:8]}.pth", f"a-{digest}.pth", "a-20240131.pth"):
        (folder / name).write_bytes((folder / "a.pth").read_bytes())
        assert same(read_checkpoint(f"{address}/{name}")["state_dict"])
    wrong = "a-0123abcd.pth"
    (folder / wrong).write_bytes((folder / "a.pth").read_bytes())
    with pytest.raises(CheckpointError, match=rf"^{address}/{wrong}: its hash does not begin with 0123abcd"):
        read_checkpoint(f"{address}/{wrong}")
    assert not (hub / wrong).exists()
    write(hub / wrong, "archive")
    with pytest.raises(CheckpointError, match="its hash does not begin with 0123abcd"):
        read_checkpoint(f"{address}/{wrong}")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "timed out"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 99\r\n\r\nPK", "timed out"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 99\r\n\r\nPK<end>", "it ended after 2 of 99 bytes|IncompleteRead"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: many\r\n\r\nPK", "timed out"),
    ],
    ids=["silent", "falls silent", "ends early", "no number"],
)
def test_a_server_that_fails(answer, reason, hub, monkeypatch):
    monkeypatch.setattr("attnzoo.backbones.checkpoints.reader.SILENCE", 0.3)
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer.removesuffix(b"<end>"))
                if not answer.endswith(b"<end>"):
                    ended.wait(20)

        thread = threading.Thread(target=serve)
        thread.start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.pth"
        try:
            with pytest.raises(CheckpointError, match=rf"^{address}: cannot be downloaded \(.*({reason})"):
                read_checkpoint(address)
        finally:
            ended.set()
            thread.join()
    assert list(hub.iterdir()) == []


@pytest.mark.parametrize("source", ["http://127.0.0.1:9/", "http://127.0.0.1:9/..", "http:///a.pth", "http://[/a.pth"])
def test_addresses_of_nothing(source, hub):
    with pytest.raises(CheckpointError, match=r"names no file|cannot be downloaded|no address"):
        read_checkpoint(source)


def test_other_places_are_refused():
    for source in ("s3://bucket/a.pth", "ftp://host/a.pth", "file:///etc/passwd", "torchvision://resnet50"):
        with pytest.raises(CheckpointError, match="only files and addresses of http and https are read"):
            read_checkpoint(source)


@pytest.mark.parametrize("kind", ["archive", "stream", "pickle"])
def test_timm_itself_runs_no_code_of_a_file(tmp_path, kind):
    mark = tmp_path / "ran"
    content = {"state_dict": timm.create_model("test_resnet").state_dict(), "extra": Runs(os.mkdir, str(mark))}
    if kind == "pickle":
        (tmp_path / "a.pth").write_bytes(pickle.dumps(content, 2))
    else:
        write(tmp_path / "a.pth", kind, content)
    for name in ("test_resnet", "van_b0"):
        with pytest.raises(RuntimeError, match=r"weights_only=True blocked"):
            timm.create_model(name, pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / "a.pth")))
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["archive", "stream"])
def test_timm_and_we_read_the_official_release_of_van(tmp_path, kind):
    """It pickles its `argparse.Namespace`."""
    weights = timm.create_model("van_b0").state_dict()
    write(tmp_path / "a.pth", kind, {"state_dict": weights, "args": argparse.Namespace(model="van_b0")})
    model = timm.create_model("van_b0", pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / "a.pth")))
    state = read_checkpoint(tmp_path / "a.pth")["state_dict"]
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
