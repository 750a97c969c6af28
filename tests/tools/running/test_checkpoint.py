"""Checkpoints of every kind, honest, broken and hostile."""

import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from attnzoo.tools.common.errors import UserError
from attnzoo.tools.config.loading import require_mm
from attnzoo.tools.running.checkpoint import load_checkpoint, load_into

WEIGHTS = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(2)}


class Runs:
    """Pickled, it calls a function with arguments."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("content", [WEIGHTS, {"state_dict": WEIGHTS}, {"model": WEIGHTS, "epoch": 3}])
def test_layouts(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    loaded = load_checkpoint(tmp_path / "a.pth")
    assert loaded["meta"] == {}
    assert all(torch.equal(loaded["state_dict"][key], WEIGHTS[key]) for key in WEIGHTS)


def test_safetensors(tmp_path):
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    model = nn.Linear(3, 2)
    load_into(model, tmp_path / "a.safetensors")
    assert torch.equal(model.weight, WEIGHTS["weight"])


def test_prefix_of_data_parallel(tmp_path):
    torch.save({f"module.{key}": value for key, value in WEIGHTS.items()}, tmp_path / "a.pth")
    model = nn.Linear(3, 2)
    load_into(model, tmp_path / "a.pth")
    assert torch.equal(model.bias, WEIGHTS["bias"])


def test_log_buffers_of_mmengine_are_read_and_the_text_that_it_would_execute_is_dropped(tmp_path):
    require_mm()
    from mmengine.logging import HistoryBuffer

    buffer = HistoryBuffer()
    buffer.update(2.5)
    content = dict(state_dict=WEIGHTS, message_hub=dict(loss=buffer), meta=dict(epoch=2, config="raise SystemExit"))
    torch.save(content, tmp_path / "a.pth")
    loaded = load_checkpoint(tmp_path / "a.pth")
    assert loaded["message_hub"]["loss"].current() == 2.5
    assert loaded["meta"] == {"epoch": 2}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated(tmp_path, suffix, share):
    path = tmp_path / f"a{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(WEIGHTS, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match="truncated") as raised:
        load_checkpoint(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("content", [b"hello world " * 50, b"\x80\x02}q\x00", b"PK\x03\x04" + bytes(100)])
def test_no_checkpoint_at_all(tmp_path, content):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match="truncated"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [torch.ones(2), {"epoch": 3}, {}, {"state_dict": {"a": 1}}, [WEIGHTS]])
def test_no_weights(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"not a checkpoint|holds no weights"):
        load_checkpoint(tmp_path / "a.pth")


def test_missing(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint .*absent\.pth"):
        load_checkpoint(tmp_path / "absent.pth")


@pytest.mark.parametrize("form", ["torch", 0, 2, 4])
def test_code_in_a_pickle_is_not_run(tmp_path, form):
    mark = tmp_path / "ran"
    content = {"state_dict": WEIGHTS, "extra": Runs(os.mkdir, str(mark))}
    path = tmp_path / "hostile.pth"
    if form == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=form))
    with pytest.raises(UserError, match=r"refused, its pickle asks for|could run code"):
        load_checkpoint(path)
    assert not mark.exists()
    torch.load(path, weights_only=False) if form == "torch" else pickle.loads(path.read_bytes())
    assert mark.exists(), "the pickle of this test has no teeth"


@pytest.mark.parametrize(("owner", "name"), [(np.ndarray, "tofile"), ("buffer", "__init__"), ("buffer", "__class__")])
def test_attributes_are_reached_only_as_log_buffers_need(tmp_path, owner, name):
    require_mm()
    from mmengine.logging import HistoryBuffer

    hostile = Runs(getattr, HistoryBuffer if owner == "buffer" else owner, name)
    torch.save({"state_dict": WEIGHTS, "extra": hostile}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="refused"):
        load_checkpoint(tmp_path / "a.pth")


def test_mmengine_itself_reads_by_our_loader(tmp_path):
    require_mm()
    from mmengine.runner.checkpoint import load_checkpoint as load_of_mmengine

    import attnzoo.tools.running.engine  # noqa: F401  registers the reader, unless another test has put another
    from attnzoo.heads.mm import checkpoints

    checkpoints.register(load_checkpoint)
    mark = tmp_path / "ran"
    torch.save({"state_dict": WEIGHTS, "extra": Runs(os.mkdir, str(mark))}, tmp_path / "hostile.pth")
    with pytest.raises(UserError, match="refused"):
        load_of_mmengine(nn.Linear(3, 2), str(tmp_path / "hostile.pth"))
    assert not mark.exists()


def test_other_architecture_is_summed_up(tmp_path):
    meta = dict(cfg="model = dict(backbone=dict(model_name='van_b0'))", experiment_name="gfl_van_20260101_000000")
    state = {"weight": torch.ones(2, 4), "gamma": torch.ones(2), "head.bias": torch.ones(1)}
    torch.save(dict(state_dict=state, meta=meta), tmp_path / "a.pth")
    model = nn.Linear(3, 2)
    before = model.weight.clone()
    with pytest.raises(UserError) as raised:
        load_into(model, tmp_path / "a.pth")
    message = str(raised.value)
    assert "of 2 keys 1 missing (bias), 2 unexpected (gamma, head.bias)" in message
    assert "1 of another shape (weight (2, 4) for (2, 3))" in message
    assert "written with config 'gfl_van', backbone van_b0" in message
    assert torch.equal(model.weight, before)


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
    torch.save({**WEIGHTS, "bias": torch.tensor([1.0, torch.nan])}, tmp_path / "a.pth")
    model = nn.Linear(3, 2)
    before = model.weight.clone()
    with pytest.raises(UserError, match=r"a\.pth: 'bias' holds NaN"):
        load_into(model, tmp_path / "a.pth")
    assert torch.equal(model.weight, before)


def test_two_tensors_of_one_name_are_refused(tmp_path):
    torch.save({**WEIGHTS, "module.bias": torch.zeros(2)}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth: 'bias' and 'module\.bias' are both there"):
        load_into(nn.Linear(3, 2), tmp_path / "a.pth")


def test_sharded_and_compiled_models_leave_no_prefix(tmp_path):
    for prefix in ("_fsdp_wrapped_module.", "module._orig_mod.", "_orig_mod.module."):
        torch.save({f"{prefix}{key}": value for key, value in WEIGHTS.items()}, tmp_path / "a.pth")
        model = nn.Linear(3, 2)
        load_into(model, tmp_path / "a.pth")
        assert torch.equal(model.bias, WEIGHTS["bias"])
