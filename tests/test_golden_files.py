"""How golden files are made: the maker and the reader agree, and the maker gives what a file holds."""

import json
import subprocess
import sys
import zlib
from pathlib import Path

import golden_files
import pytest
import torch
from torch import nn

from attnzoo.backbones import modules

TINY = """
from torch import nn

def tiny(width, pieces=False):
    model = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())
    if pieces:
        model.forward = lambda x: [x, model[0](x)]
    return model
"""
FACTS = ["--source", "here", "--license", "MIT", "--paper", "https://example.org"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, that of the published code."""
    (tmp_path / "published.py").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "published", raising=False)
    return tmp_path


@pytest.mark.long
def test_a_file_of_a_tiny_model(folder, monkeypatch):
    arguments = ["published:tiny", "tiny.json", "--arguments", '{"width": 4}', "--shape", "2", "3", "9", "11"]
    arguments += ["--seed", "5", *FACTS, "--note", "no bias", "--note", "small"]
    # As the README says: a script, in the folder of the published code.
    command = [sys.executable, golden_files.__file__, *arguments]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "tiny.json\n"
    monkeypatch.setattr(golden_files, "FOLDER", folder)
    golden = golden_files.load("tiny")
    assert (golden["model"], golden["source"], golden["notes"]) == ("tiny", "here", ["no bias", "small"])
    assert golden["params"] == 4 * 27 + 4 + 8 and golden["buffers"] == {"1.num_batches_tracked": []}
    assert golden["tensors"]["0.weight"] == [4, 3, 3, 3] and golden["tensors"]["1.running_var"] == [4]
    # The same layers, made elsewhere.
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).double().eval()
    model.load_state_dict(golden_files.checkpoint(golden), strict=False)
    with torch.no_grad():
        output = model(golden_files.image(golden))
        assert golden_files.error(output, golden["outputs"]["logits"]) < 1e-12
        model[1].eps = 1e-4
        assert golden_files.error(model(golden_files.image(golden)), golden["outputs"]["logits"]) > 1e-6


def test_maps(folder):
    maps = ["published:tiny", "maps.json", "--arguments", '{"width": 4, "pieces": true}', "--shape", "1", "3", "5", "5"]
    assert golden_files.main([*maps, *FACTS]) == 0
    outputs = json.loads(Path("maps.json").read_text())["outputs"]
    assert {name: value["shape"] for name, value in outputs.items()} == {"stage0": [1, 3, 5, 5], "stage1": [1, 4, 3, 3]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["published:tiny", "published.py", *FACTS], "published.py is there already"),
        (["published", "a.json", *FACTS], "'published': MODULE:FUNCTION is needed"),
        (["published:huge", "a.json", *FACTS], "has no attribute 'huge'"),
        (["nowhere:tiny", "a.json", *FACTS], "No module named 'nowhere'"),
        (["published:tiny", "a.json", "--arguments", "[4]", *FACTS], "a JSON object is needed"),
        (["published:tiny", "a.json"], "required: --source, --license, --paper"),
    ],
)
def test_wrong_arguments(folder, capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        golden_files.main(arguments)
    assert caught.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]
    assert not Path("a.json").exists()


class Named(nn.Module):
    """ELA, the names of whose tensors are ours, with the output's name of its golden file."""

    def __init__(self):
        super().__init__()
        self.module = modules.create("ela", 64)

    def named_parameters(self, *args, **kwargs):
        return self.module.named_parameters(*args, **kwargs)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": self.module(x)}


def test_an_existing_file_is_made_again():
    golden = golden_files.load("ela_module")
    made = golden_files.make(Named(), **golden["input"])
    assert made["params"] == golden["params"] and made["tensors"] == golden["tensors"]
    assert made["input"] == golden["input"] and made["buffers"] == golden["buffers"]
    found, want = made["outputs"]["out"], golden["outputs"]["out"]
    assert found.keys() == want.keys() and found["shape"] == want["shape"]
    for key in ("mean", "std", "abs_max", "values"):
        torch.testing.assert_close(torch.tensor(found[key]), torch.tensor(want[key]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "shape", "scale", "shift"),
    [
        ("a.running_var", (400,), None, 1),
        ("a.bias", (400,), 0.1, 0),
        ("a.relative_bias", (20, 20), 0.1, 0),
        ("a.weight", (400,), 0.1, 1),
        ("a.weight", (400, 1, 1), 0.1, 1),
        ("a.pos_embed", (1, 20, 20), 0.1, 0),
        ("a.weight", (40, 5, 5), 0.2, 0),
    ],
)
def test_the_rule(name, shape, scale, shift):
    filled = golden_files.fill(name, shape)
    assert filled.dtype == torch.float64 and filled.shape == shape
    drawn = golden_files.noise(shape, zlib.crc32(name.encode()))
    want = 1 + 0.1 * drawn.abs() if scale is None else shift + scale * drawn
    torch.testing.assert_close(filled, want, rtol=1e-15, atol=1e-15)
