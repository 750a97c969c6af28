"""Plug-in attention in the adapter: `attention=dict(type=..., stages=...)`."""

import pytest
import torch
from mmengine.config import Config

from attnzoo.backbones import modules
from attnzoo.backbones.modules.attach import Gated
from attnzoo.heads import Backbone
from attnzoo.heads.mm.registry import MODELS

BODY = dict(model_name="resnet18", layers=(1, 1, 1, 1), channels=(16, 32, 64, 128), out_indices=(2, 3, 4))
ELA = dict(type="ela", stages=(2, 3, 4))


def trained(backbone):
    """Every number of it is another one than at the beginning."""
    for value in backbone.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5)
    return backbone.eval()


def test_from_a_config_and_starts_as_the_original_function():
    cfg = Config(dict(backbone=dict(type="attnzoo.Backbone", attention=ELA, **BODY)))
    backbone = MODELS.build(cfg.backbone).eval()
    plain = Backbone(**BODY).eval()
    plain.load_state_dict({k: v for k, v in backbone.state_dict().items() if k in plain.state_dict()})
    x = torch.randn(1, 3, 65, 97)
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(backbone(x), plain(x), strict=True))
    assert len([m for m in backbone.modules() if isinstance(m, Gated)]) == 3
    assert backbone.channels == (32, 64, 128)
    bare = Backbone(attention=dict(ELA, identity=False, kernel_size=5), **BODY)
    assert isinstance(bare.model.layer4[1], modules.ELA) and bare.model.layer4[1].conv.kernel_size == (5,)


def test_stages_left_out_are_all_that_are_kept():
    backbone = Backbone("resnet18", out_indices=(1, 2), attention=dict(type="cbam"))
    assert {key.split(".")[0] for key in backbone.attention_keys} == {"layer1", "layer2"}


def test_checkpoints_with_and_without_attention(tmp_path):
    whole = trained(Backbone(attention=ELA, **BODY))
    torch.save({"state_dict": {f"backbone.{k}": v for k, v in whole.state_dict().items()}}, tmp_path / "with.pth")
    other = Backbone(attention=ELA, **BODY)
    other.load_checkpoint(tmp_path / "with.pth")
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in whole.state_dict().items())

    plain = trained(Backbone(**BODY))
    torch.save(plain.state_dict(), tmp_path / "without.pth")
    fresh = Backbone(attention=ELA, **BODY)
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    fresh.load_checkpoint(tmp_path / "without.pth")
    for key, value in fresh.state_dict().items():
        assert torch.equal(value, plain.state_dict().get(key, before[key])), key

    lost = {key: value for key, value in whole.state_dict().items() if not key.endswith("module.norm.bias")}
    torch.save(lost, tmp_path / "lost.pth")
    with pytest.raises(RuntimeError, match="Missing key"):
        fresh.load_checkpoint(tmp_path / "lost.pth")
    with pytest.raises(RuntimeError, match="Unexpected key"):
        Backbone(**BODY).load_checkpoint(tmp_path / "with.pth")


def test_attention_is_never_frozen():
    backbone = Backbone(attention=ELA, frozen_stages=4, **BODY)
    for key, parameter in backbone.model.named_parameters():
        assert parameter.requires_grad == (key in backbone.attention_keys), key
    assert not backbone.model.layer4[0].training and backbone.model.layer4[1].training


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        (dict(type="elaa"), "did you mean ela"),
        (dict(stages=(2,)), "needs a type"),
        (dict(type="ela", where="blocks"), "takes its places from stages"),
        (dict(type="ela", stages=(0,)), "level 0"),
        (dict(type="ela", stages=(7,)), "levels 0 to 4"),
    ],
)
def test_bad_arguments(attention, message):
    with pytest.raises(ValueError, match=message):
        Backbone(attention=attention, **BODY)
