"""What was trained with the adapter, in a detector or alone, is read by every family, by timm and by the adapter."""

import pytest
import timm
import torch
import zoo
from safetensors.torch import save_file

from attnzoo import attach
from attnzoo.backbones.contract.facts import convert_checkpoint
from attnzoo.heads import Backbone, Restorer

NAMES = zoo.one_of_a_kind()
CLASSIFIERS = [name for name in NAMES if not zoo.restores(name)]
RESTORERS = [name for name in NAMES if zoo.restores(name)]


def trained(module):
    """Every number of it is another one than at the beginning."""
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5)
    return module.eval()


def levels(name: str) -> tuple[int, ...]:
    return tuple(range(len(zoo.shallow(name, device="meta").feature_info)))


def adapter(name: str, **kwargs) -> Backbone:
    return Backbone(name, out_indices=levels(name), **zoo.shallow_arguments(name), **kwargs)


def from_file(name: str, path) -> torch.nn.Module:
    overlay = dict(file=str(path))
    return zoo.shallow(name, pretrained=True, pretrained_cfg_overlay=overlay).eval()


def in_a_detector(backbone: Backbone) -> dict[str, torch.Tensor]:
    state = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    return {**state, "neck.lateral_convs.0.conv.weight": torch.ones(1)}


def wrapped(state: dict[str, torch.Tensor]) -> dict[str, dict]:
    """The files that training with mmengine, in one process and in several, leaves."""
    of_ema = {"steps": torch.tensor(3), **{f"module.{key}": value for key, value in state.items()}}
    return {
        "runner": {"state_dict": state, "meta": {"epoch": 2}},
        "several": {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        "averaged": {"ema_state_dict": of_ema, "meta": {}},
        "with both": {"state_dict": state, "ema_state_dict": {key: value + 1 for key, value in of_ema.items()}},
        "sharded": {
            "state_dict": {
                key.replace("backbone.", "_fsdp_wrapped_module.backbone._fsdp_wrapped_module."): value
                for key, value in state.items()
            }
        },
        "compiled": {"state_dict": {f"_orig_mod.{key}": value for key, value in state.items()}},
    }


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_detector_trained_with_the_adapter_becomes_a_timm_model(name, tmp_path):
    backbone = trained(adapter(name, stage_norms="layernorm2d"))
    torch.save(wrapped(in_a_detector(backbone))["runner"], tmp_path / "a.pth")
    model = from_file(name, tmp_path / "a.pth")
    own = model.state_dict()
    for key, value in backbone.model.state_dict().items():
        assert torch.equal(own[key], value), key
    again = adapter(
        name, stage_norms="layernorm2d", init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "a.pth"))
    )
    again.init_weights()
    for key, value in backbone.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


@pytest.mark.parametrize("kind", wrapped({}))
@pytest.mark.parametrize("name", ["van_b0", "resnet18_cbam"])
def test_wrappings_of_training(name, kind, tmp_path):
    backbone = trained(adapter(name))
    torch.save(wrapped(in_a_detector(backbone))[kind], tmp_path / "a.pth")
    model, again = from_file(name, tmp_path / "a.pth"), adapter(name)
    again.load_checkpoint(tmp_path / "a.pth")
    for key, value in backbone.model.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
        assert torch.equal(again.model.state_dict()[key], value), key


@pytest.mark.parametrize("name", ["van_b0", "coat_tiny", "agent_swin_tiny"])
def test_the_adapter_alone_as_safetensors(name, tmp_path):
    backbone = trained(adapter(name, stage_norms="layernorm2d"))
    save_file({key: value.clone() for key, value in backbone.state_dict().items()}, tmp_path / "a.safetensors")
    model = from_file(name, tmp_path / "a.safetensors")
    for key, value in backbone.model.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


@pytest.mark.parametrize("name", RESTORERS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_restorer(name, prefix, tmp_path):
    restorer = trained(Restorer(name, **zoo.shallow_arguments(name)))
    state = {f"{prefix}{key}": value for key, value in restorer.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    model = from_file(name, tmp_path / "a.pth")
    for key, value in restorer.model.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


@pytest.mark.parametrize("name", ["van_b0", "biformer_tiny", "resnet18_cbam"])
def test_plug_in_attention_goes_where_it_is_attached_and_is_never_dropped(name, tmp_path):
    ela = dict(type="ela", stages=(-2, -1))
    backbone = trained(adapter(name, attention=ela))
    torch.save(wrapped(in_a_detector(backbone))["runner"], tmp_path / "a.pth")
    with pytest.raises(RuntimeError, match="Unexpected key"):
        from_file(name, tmp_path / "a.pth")
    model = attach(zoo.shallow(name), "ela", where=(-2, -1))
    model.load_state_dict(convert_checkpoint(torch.load(tmp_path / "a.pth"), model))
    for key, value in backbone.model.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_two_tensors_of_one_name_are_refused(tmp_path):
    state = timm.create_model("van_b0").state_dict()
    torch.save({**state, "module.stem.0.weight": state["stem.0.weight"] + 1}, tmp_path / "a.pth")
    with pytest.raises(RuntimeError, match=r"a\.pth: 'stem\.0\.weight' and 'module\.stem\.0\.weight' are both there"):
        Backbone("van_b0").load_checkpoint(tmp_path / "a.pth")
    model = timm.create_model("van_b0")
    with pytest.raises(ValueError, match="are both there"):
        convert_checkpoint(torch.load(tmp_path / "a.pth"), model)
