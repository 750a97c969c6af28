"""ResNets and MobileNetV2 with plug-in attention: published functions, placement, checkpoints and figures."""

from functools import partial

import golden_files
import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode
from zoo import shallow

from attnzoo.backbones import modules
from attnzoo.backbones.contract.facts import convert_checkpoint


@pytest.mark.parametrize("name", ["resnet18_cbam", "resnet18_triplet"])
def test_published_files_come_from_data_parallel_training(name):
    model, weights = timm.create_model(name), golden_files.checkpoint(golden_files.load(name))
    file = {"state_dict": {f"module.{key}": value for key, value in weights.items()}, "epoch": 1}
    found, want = convert_checkpoint(file, model), convert_checkpoint(weights, model)
    assert found.keys() == want.keys() <= model.state_dict().keys()
    assert all(torch.equal(found[key], value) for key, value in want.items())


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        # Tables of the CBAM, BAM, triplet (repository) and coordinate attention papers.
        ("resnet18_cbam", 11.78),
        ("resnet34_cbam", 21.96),
        ("resnet50_cbam", 28.09),
        ("resnet101_cbam", 49.33),
        ("resnet50_bam", 25.92),
        ("resnet18_triplet", 11.69),
        ("resnet50_triplet", 25.56),
        ("mobilenetv2_100_triplet", 3.51),
        ("mobilenetv2_100_cbam", 3.89),
    ],
)
def test_parameters_are_the_papers(name, millions):
    model = timm.create_model(name, device="meta")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions


def billions(name: str, **kwargs) -> float:
    """Multiply-adds at 224 pixels, of convolutions and linear layers."""
    model = timm.create_model(name, device="meta", **kwargs).eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.randn(1, 3, 224, 224, device="meta"))
    return counter.get_total_flops() / 2e9


@pytest.mark.long
def test_multiply_adds_are_the_papers():
    """The papers count ResNet-50 and 101 with the stride in the first convolution: there the module's own are compared.

    CBAM: 1.815 and 3.665 in all, 3.858 to 3.864, 7.570 to 7.581. BAM: 3.86 to 3.94. The triplet repository tells its
    kernels of 7 and 3 apart, 4.169 and 4.131, and 0.327 and 0.322.
    """
    assert round(billions("resnet18_cbam"), 3) == 1.815
    assert round(billions("resnet34_cbam"), 3) == 3.665
    assert round(billions("resnet50_cbam") - billions("resnet50"), 3) == 0.006
    assert round(billions("resnet101_cbam") - billions("resnet101"), 3) == 0.011
    assert round(billions("resnet50_bam") - billions("resnet50"), 2) == 0.08
    small = partial(modules.TripletAttention, kernel_size=3)
    resnet = billions("resnet50_triplet", block_args=dict(attn_layer=small))
    assert round(billions("resnet50_triplet") - resnet, 3) == 0.038
    mobilenet = billions("mobilenetv2_100_triplet", attn_layer=small)
    assert round(billions("mobilenetv2_100_triplet") - mobilenet, 3) == 0.005


def published_bam(model) -> dict[str, torch.Tensor]:
    """The weights of `model` under the names of the published code."""
    inner = {
        "channel.0.": "channel_att.gate_c.gate_c_fc_0.",
        "channel.1.": "channel_att.gate_c.gate_c_bn_1.",
        "channel.3.": "channel_att.gate_c.gate_c_fc_final.",
        "spatial.0.": "spatial_att.gate_s.gate_s_conv_reduce0.",
        "spatial.1.": "spatial_att.gate_s.gate_s_bn_reduce0.",
        "spatial.3.": "spatial_att.gate_s.gate_s_conv_di_0.",
        "spatial.4.": "spatial_att.gate_s.gate_s_bn_di_0.",
        "spatial.6.": "spatial_att.gate_s.gate_s_conv_di_1.",
        "spatial.7.": "spatial_att.gate_s.gate_s_bn_di_1.",
        "spatial.9.": "spatial_att.gate_s.gate_s_conv_final.",
    }
    out = {}
    for key, value in model.state_dict().items():
        for i in (1, 2, 3):
            key = key.replace(f"layer{i + 1}.attn.", f"bam{i}.")
        if key.startswith("bam"):
            for own, theirs in inner.items():
                key = key.replace(own, theirs)
        out[f"module.{key}"] = value
    return out


def test_bam_checkpoint():
    model, other = shallow("resnet50_bam"), shallow("resnet50_bam")
    weights = published_bam(model)
    assert "module.bam3.spatial_att.gate_s.gate_s_conv_di_1.weight" in weights
    assert not weights.keys() & model.state_dict().keys()
    other.load_state_dict(convert_checkpoint({"state_dict": weights}, other), strict=True)
    x = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        assert torch.equal(model.eval()(x), other.eval()(x))


def test_bam_stands_between_the_stages():
    """A stage's map is the published `layer` output, and BAM changes what the next stage gets."""
    model = shallow("resnet50_bam").eval()
    with torch.inference_mode():
        maps = model.forward_intermediates(torch.randn(1, 3, 64, 64))[1]
        want = maps[2]
        x = model.layer2.attn(maps[1])
        for block in list(model.layer2.children())[1:]:
            x = block(x)
        assert torch.allclose(x, want) and not torch.allclose(model.layer2.attn(maps[1]), maps[1])
    assert not hasattr(model.layer1, "attn") and isinstance(model.layer4.attn, modules.BAM)


def published_mobilenet(model) -> dict[str, torch.Tensor]:
    """The weights of `model` under the names of the published code."""
    out = {}
    roots = {"conv_stem": "features.0.0", "bn1": "features.0.1", "classifier": "classifier.1"}
    names = [f"blocks.{i}.{j}." for i, stage in enumerate(model.blocks) for j in range(len(stage))]
    roots |= {"conv_head": f"features.{len(names) + 1}.0", "bn2": f"features.{len(names) + 1}.1"}
    gates = {"without_height": "ChannelGateH", "without_width": "ChannelGateW", "without_channels": "SpatialGate"}
    first = {"conv_dw": "0.0", "bn1": "0.1", "conv_pw": "1", "bn2": "2", "bn2.act": "3"}
    rest = {"conv_pw": "0.0", "bn1": "0.1", "conv_dw": "1.0", "bn2": "1.1", "conv_pwl": "2", "bn3": "3", "bn3.act": "4"}
    for key, value in model.state_dict().items():
        number = next((i for i, name in enumerate(names) if key.startswith(name)), None)
        path, _, leaf = key.rpartition(".")
        if number is None:
            out[f"module.{roots[path]}.{leaf}"] = value
            continue
        path = path.removeprefix(names[number])
        part, gate, inner = path.partition(".act.")
        own = (first if number == 0 else rest)[part + (".act" if gate else "")]
        if gate:
            branch, _, layer = inner.partition(".")
            own += f".{gates[branch]}.spatial.{layer}"
        out[f"module.features.{number + 1}.conv.{own}.{leaf}"] = value
    return out


@pytest.mark.parametrize("depths", [(1, 1, 1, 1, 1, 1, 1), (1, 2, 3, 4, 3, 3, 1)])
def test_mobilenet_checkpoint(depths):
    model, other = (timm.create_model("mobilenetv2_100_triplet", depths=depths) for _ in range(2))
    weights = published_mobilenet(model)
    assert not weights.keys() & model.state_dict().keys()
    assert "module.features.2.conv.4.ChannelGateH.spatial.conv.weight" in weights
    other.load_state_dict(convert_checkpoint({"state_dict": weights}, other), strict=True)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())


def test_triplet_of_kernel_three():
    layer = partial(modules.TripletAttention, kernel_size=3)
    model = timm.create_model("resnet18_triplet", block_args=dict(attn_layer=layer), device="meta")
    assert model.layer1[0].se.without_height.conv.weight.shape == (1, 2, 3, 3)


def test_pooling_is_global():
    """Far from 224 pixels the published models pool a corner, or raise."""
    model = shallow("resnet18_cbam").eval()
    x = torch.zeros(1, 3, 416, 416)
    other = x.clone()
    other[..., 380:, 380:] = 1.0
    with torch.inference_mode():
        assert not torch.allclose(model(x), model(other))


def test_mobilenet_placement():
    ends = timm.create_model("mobilenetv2_100_triplet", device="meta")
    middles = timm.create_model("mobilenetv2_100_ela", device="meta")
    assert all(isinstance(block.bn3.act, modules.TripletAttention) for stage in ends.blocks[1:] for block in stage)
    assert isinstance(ends.blocks[0][0].bn2.act, modules.TripletAttention)
    assert all(isinstance(block.se, modules.ELA) for stage in middles.blocks for block in stage)
    assert middles.blocks[2][1].se.conv.in_channels == 6 * 32
    with pytest.raises(ValueError, match="attn_place='front': 'end' or 'middle'"):
        timm.create_model("mobilenetv2_100_ela", attn_place="front")
    with pytest.raises(ValueError, match="seven"):
        timm.create_model("mobilenetv2_100_ela", depths=(1, 1))


def test_weights_begin_as_documented():
    plain, zeroed = (
        timm.create_model("resnet18_cbam", layers=(1, 1, 1, 1), zero_init_last=zero) for zero in (False, True)
    )
    for model, value in ((plain, 1.0), (zeroed, 0.0)):
        norms = [model.layer1[0].bn2, model.layer1[0].se.spatial.bn]
        assert all((norm.weight == value).all() for norm in norms)
