"""`init_cfg`, and mmengine's own ways to a checkpoint, all by the one reader."""

import os

import numpy as np
import pytest
import timm
import torch
from loopback import served
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import BaseModule
from mmengine.runner import checkpoint as of_mmengine
from mmengine.runner.checkpoint import CheckpointLoader, load_checkpoint
from torch import nn

from attnzoo.backbones.checkpoints import CheckpointError, read_checkpoint
from attnzoo.heads import Backbone, DyHead, MCAHead, Restorer, SimpleFeaturePyramid
from attnzoo.heads.mm import checkpoints

WEIGHTS = {"layer.weight": torch.arange(6.0).view(2, 3), "layer.bias": torch.ones(2)}


class MakesFolder:
    """Pickled, it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Part(BaseModule):
    """A module of another library, which mmengine initialises."""

    def __init__(self, init_cfg=None):
        super().__init__(init_cfg)
        self.layer = nn.Linear(3, 2)


@pytest.fixture(autouse=True)
def _loaders(monkeypatch):
    """As importing heads leaves them: the commands, which other tests import, register themselves."""
    monkeypatch.setattr(CheckpointLoader, "_schemes", CheckpointLoader._schemes)
    checkpoints.register()


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A server of a good and of a hostile file, and PyTorch's folder of checkpoints, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MMENGINE_HOME", str(tmp_path / "mmengine"))
    folder = tmp_path / "site"
    folder.mkdir()
    van = timm.create_model("van_b0").state_dict()
    mark = MakesFolder(tmp_path / "ran")
    torch.save({"state_dict": WEIGHTS}, folder / "good.pth")
    torch.save({"state_dict": WEIGHTS, "extra": mark}, folder / "hostile.pth")
    torch.save({"state_dict": van}, folder / "van.pth")
    torch.save({"state_dict": van, "extra": mark}, folder / "hostile_van.pth")
    with served(folder) as address:
        yield address
    assert not (tmp_path / "ran").exists(), "a checkpoint ran code"


def test_addresses_in_modules_of_mmengine(site):
    part = Part(dict(type="Pretrained", checkpoint=f"{site}/good.pth"))
    part.init_weights()
    assert torch.equal(part.layer.weight, WEIGHTS["layer.weight"])
    with pytest.raises(CheckpointError, match=r"hostile\.pth: refused"):
        Part(dict(type="Pretrained", checkpoint=f"{site}/hostile.pth")).init_weights()


def test_addresses_in_the_adapter(site):
    backbone = Backbone("van_b0", init_cfg=dict(type="Pretrained", checkpoint=f"{site}/van.pth"))
    backbone.init_weights()
    state = read_checkpoint(f"{site}/van.pth")["state_dict"]
    assert all(torch.equal(value, state[key]) for key, value in backbone.model.state_dict().items())
    with pytest.raises(CheckpointError, match=r"hostile_van\.pth: refused"):
        Backbone("van_b0").load_checkpoint(f"{site}/hostile_van.pth")


@pytest.mark.parametrize("scheme", ["torchvision", "modelzoo", "open-mmlab", "openmmlab", "mmcls"])
def test_names_of_mmengine_lead_to_the_reader(scheme, site, monkeypatch):
    lists = dict(torchvision="torchvision", modelzoo="torchvision", mmcls="mmcls").get(scheme, "external")
    known = dict(good=f"{site}/good.pth", hostile=f"{site}/hostile.pth")
    loader = CheckpointLoader._get_checkpoint_loader(f"{scheme}://good")
    assert loader.__module__ == "attnzoo.heads.mm.checkpoints"
    monkeypatch.setattr(of_mmengine, f"get_{lists}_models", lambda: known)
    checkpoints.register()
    found = CheckpointLoader.load_checkpoint(f"{scheme}://good")["state_dict"]
    assert found.keys() == (set() if scheme == "mmcls" else WEIGHTS.keys())
    with pytest.raises(CheckpointError, match="refused"):
        CheckpointLoader.load_checkpoint(f"{scheme}://hostile")
    with pytest.raises(CheckpointError, match="has no checkpoint of this name"):
        CheckpointLoader.load_checkpoint(f"{scheme}://none")


@pytest.mark.parametrize("name", ["s3://b/a.pth", "petrel://b/a.pth", "pavi://a.pth", "open-mmlab:s3://b/a.pth"])
def test_places_that_only_other_libraries_read_are_refused(name):
    with pytest.raises(CheckpointError, match="download it and give its path"):
        CheckpointLoader.load_checkpoint(name)


def test_no_loader_of_mmengines_own_is_left():
    assert {loader.__module__ for loader in CheckpointLoader._schemes.values()} <= {"attnzoo.heads.mm.checkpoints"}


def test_log_buffers_are_their_numbers_alone(tmp_path):
    hub = MessageHub("runner")
    for value in (0.5, 1.5):
        hub.update_scalar("train/loss", value)
    before = dict(HistoryBuffer._statistics_methods)
    buffer = hub.get_scalar("train/loss")
    buffer._statistics_methods = {**before, "mean": HistoryBuffer.max}  # as a file could say it for all buffers
    torch.save({"state_dict": WEIGHTS, "buffer": buffer}, tmp_path / "a.pth")
    read = read_checkpoint(tmp_path / "a.pth")["buffer"]
    assert read.statistics("mean") == 1.0 and HistoryBuffer._statistics_methods == before
    assert type(read.data[0]) is np.ndarray

    read._count_history = read._count_history[:1]
    torch.save({"state_dict": WEIGHTS, "buffer": read}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"b\.pth: .*a log buffer that is not one of mmengine's"):
        read_checkpoint(tmp_path / "b.pth")


def test_text_that_mmengine_would_run_is_left_out(tmp_path):
    torch.save({"state_dict": WEIGHTS, "meta": {"config": "raise SystemExit", "epoch": 2}}, tmp_path / "a.pth")
    assert load_checkpoint(Part(), str(tmp_path / "a.pth"))["meta"] == {"epoch": 2}


MAKERS = {
    "Backbone": lambda init_cfg: Backbone("van_b0", init_cfg=init_cfg),
    "DyHead": lambda init_cfg: DyHead(32, 32, num_blocks=1, init_cfg=init_cfg),
    "SimpleFeaturePyramid": lambda init_cfg: SimpleFeaturePyramid(32, 32, init_cfg=init_cfg),
    "MCAHead": lambda init_cfg: MCAHead(
        in_channels=[8, 16], in_index=[0, 1], channels=16, heads=8, num_classes=2, init_cfg=init_cfg
    ),
    "Restorer": lambda init_cfg: Restorer("hat_small_x4", init_cfg=init_cfg, depths=(1,), num_heads=(6,)),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(checkpont="b.pth"), r"unknown are checkpont"),
        (dict(strict=False, revise_keys=[]), r"allowed are None and dict.*prefix.*unknown are strict, revise_keys"),
        (dict(checkpoint=None), r"checkpoint is a path or an address"),
        (dict(checkpoint=3), r"checkpoint is a path or an address"),
    ],
)
def test_unknown_options_of_init_cfg_are_named(name, change, message):
    with pytest.raises(ValueError, match=message):
        MAKERS[name](dict(type="Pretrained", checkpoint="a.pth") | change)


@pytest.mark.parametrize("name", MAKERS)
def test_known_options_of_init_cfg(name, tmp_path):
    module = MAKERS[name](None)
    state = {f"student.{key}": value + 1 for key, value in module.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "a.pth"), prefix="student", map_location="cpu")
    other = MAKERS[name](init_cfg)
    other.init_weights()
    part = other.model if name in ("Backbone", "Restorer") else other
    lead = "student.model." if part is not other else "student."
    assert all(torch.equal(value, state[f"{lead}{key}"]) for key, value in part.state_dict().items())
    with pytest.raises(RuntimeError, match=r"a\.pth: has no tensor below 'teacher\.'"):
        MAKERS[name](dict(init_cfg, prefix="teacher.")).init_weights()


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(("value", "message"), [(torch.nan, "holds NaN"), ("int", "is int64, where the model has")])
def test_weights_that_are_no_finite_numbers_are_refused(name, value, message, tmp_path):
    module = MAKERS[name](None)
    state = dict(module.state_dict())
    key = next(key for key in state if key.endswith("weight"))
    state[key] = state[key].long() if value == "int" else torch.full_like(state[key], value)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(RuntimeError, match=rf"a\.pth: .*{message}"):
        MAKERS[name](None).load_checkpoint(tmp_path / "a.pth")
