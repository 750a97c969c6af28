"""Files of heads, honest ones and others."""

import json

import pytest
import safetensors.torch
import torch

from attnzoo.heads.probing import ProbeHead, load_head, save_head


@pytest.mark.parametrize("pooling", ["attentive", "mean"])
def test_a_head_survives_its_file(pooling, tmp_path):
    head = ProbeHead(48, 3, pooling).train()
    head(torch.randn(4, 5, 48))
    save_head(head, tmp_path / "head.safetensors", model="van_b0", classes=["a", "b", "c"])
    loaded, facts = load_head(tmp_path / "head.safetensors")
    assert facts == {"model": "van_b0", "classes": ["a", "b", "c"]} and not loaded.training
    x = torch.randn(4, 5, 48)
    assert torch.equal(loaded(x), head.eval()(x))


def test_a_head_on_a_full_disk():
    with pytest.raises(OSError, match="No space left"):
        save_head(ProbeHead(48, 3), "/dev/full")


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (dict(channels=2**40), {}),
        (dict(num_classes=2**40), {}),
        (dict(num_queries=2**40), {}),
        (dict(num_queries=0), {}),
        (dict(pooling="max"), {}),
        ({}, {"classifier.weight": torch.full((3, 48), torch.nan)}),
        ({}, {"classifier.bias": torch.ones(3, dtype=torch.int64)}),
    ],
    ids=str,
)
def test_a_head_that_lies_is_refused(config, change, tmp_path):
    head = ProbeHead(48, 3)
    state = {**head.state_dict(), **change}
    facts = {"head": json.dumps({**head.config, **config}), "facts": "{}"}
    safetensors.torch.save_file(state, tmp_path / "head.safetensors", facts)
    with pytest.raises(ValueError, match=r"head\.safetensors: not a head written by attnzoo probe"):
        load_head(tmp_path / "head.safetensors")


def test_a_file_that_is_no_head_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no head"):
        load_head(tmp_path / "nothing")
    (tmp_path / "torn").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "other")
    for name in ("torn", "other"):
        with pytest.raises(ValueError, match=f"{name}: not a head written by attnzoo probe"):
            load_head(tmp_path / name)
