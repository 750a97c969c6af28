"""Learning rate and weight decay of each parameter, against values worked out by hand."""

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from torch import nn

from attnzoo.heads import Backbone

LR, DECAY, WEIGHT_DECAY = 1e-3, 0.5, 0.05


class Segmentor(BaseModel):
    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.shared = nn.ModuleList([self.head[0], nn.Linear(4, 4)])

    def forward(self, x):
        return self.head(self.backbone(x)[-1])


def settings(model: nn.Module, **optimizer) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter that the optimizer holds."""
    optimizer = {"type": "AdamW", "lr": LR, "weight_decay": WEIGHT_DECAY, **optimizer}
    config = dict(
        constructor="attnzoo.LayerDecayOptimWrapperConstructor",
        paramwise_cfg=dict(layer_decay=DECAY),
        optimizer=optimizer,
    )
    groups = build_optim_wrapper(model, config).optimizer.param_groups
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(found)
    names = {name: found[id(p)] for name, p in model.named_parameters() if id(p) in found}
    assert len(names) == len(found)
    return names


def test_resnet_by_hand():
    """resnet10t has a stem and one block in each of four stages: layers 0 to 4 of 5."""
    model = Segmentor(Backbone("resnet10t", out_indices=(1, 2, 3, 4), stage_norms="layernorm2d"))
    layer = {"conv1": 0, "bn1": 0, "layer1": 1, "layer2": 2, "layer3": 3, "layer4": 4}
    found = settings(model)
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, (lr, weight_decay) in found.items():
        expected = LR
        if name.startswith("backbone.model."):
            expected = LR * DECAY ** (5 - layer[name.split(".")[2]])
        assert lr == pytest.approx(expected), name
        assert weight_decay == (WEIGHT_DECAY if model.get_parameter(name).ndim > 1 else 0), name


def test_van_counts_blocks():
    """Stem, then in each stage its downsampling and blocks as the group matcher numbers them, deepest last."""
    model = Segmentor(Backbone("van_b0", depths=(1, 1, 2, 1), embed_dims=(8, 16, 24, 32)))
    found = settings(model)
    order = ["stem.", "stages.0.blocks.0.", "stages.1.downsample.", "stages.1.blocks.0.", "stages.2.blocks.0.",
             "stages.2.blocks.1.", "stages.3.blocks.0."]  # fmt: skip
    rates = []
    for prefix in order:
        (rate,) = {lr for name, (lr, _) in found.items() if name.startswith(f"backbone.model.{prefix}")}
        rates.append(rate)
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(LR * DECAY)
    assert rates[5] == pytest.approx(rates[4] / DECAY)
    assert found["head.0.weight"] == (LR, WEIGHT_DECAY)
    assert found["head.1.weight"] == (LR, 0)


def test_what_the_model_exempts_gets_no_weight_decay():
    backbone = Backbone("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1), embed_dim=24, num_heads=(1, 2, 4, 8))
    found = settings(Segmentor(backbone))
    tables = {name: value for name, value in found.items() if name.endswith("relative_position_bias_table")}
    assert len(tables) == 4
    assert all(weight_decay == 0 for _, weight_decay in tables.values())
    assert found["backbone.model.layers.0.blocks.0.attn.qkv.weight"][1] == WEIGHT_DECAY


def test_frozen_parameters_are_left_out():
    model = Segmentor(Backbone("resnet10t", out_indices=(1, 2, 3, 4), frozen_stages=2))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert settings(model).keys() == trained
    assert not any(name.startswith("backbone.model.layer2") for name in trained)


def test_the_optimizers_own_weight_decay_is_kept_where_the_config_gives_none():
    model = Segmentor(Backbone("resnet10t", out_indices=(1, 2, 3, 4)))
    config = dict(
        constructor="attnzoo.LayerDecayOptimWrapperConstructor",
        paramwise_cfg=dict(layer_decay=DECAY),
        optimizer=dict(type="AdamW", lr=LR),
    )
    default = torch.optim.AdamW([nn.Parameter(torch.zeros(1))]).defaults["weight_decay"]
    groups = build_optim_wrapper(model, config).optimizer.param_groups
    assert {group["weight_decay"] for group in groups} == {0, default}


@pytest.mark.parametrize(
    ("paramwise_cfg", "optimizer", "message"),
    [
        (dict(), dict(lr=LR), r"paramwise_cfg=\{\}.*layer_decay"),
        (dict(layer_decay=1.5), dict(lr=LR), r"layer_decay.*1\.5.*0 < x <= 1"),
        (dict(layer_decay=True), dict(lr=LR), r"layer_decay.*True.*0 < x <= 1"),
        (dict(layer_decay=float("nan")), dict(lr=LR), r"layer_decay.*nan.*0 < x <= 1"),
        (dict(layer_decay="x"), dict(lr=LR), r"layer_decay.*0 < x <= 1"),
        (dict(layer_decay=0.9, norm_decay_mult=0), dict(lr=LR), r"norm_decay_mult.*no other key"),
        (dict(layer_decay=0.9), dict(), r"optimizer=.*needs its lr"),
    ],
)
def test_bad_settings(paramwise_cfg, optimizer, message):
    config = dict(
        constructor="attnzoo.LayerDecayOptimWrapperConstructor",
        paramwise_cfg=paramwise_cfg,
        optimizer=dict(type="AdamW", **optimizer),
    )
    with pytest.raises(ValueError, match=message):
        build_optim_wrapper(Segmentor(Backbone("resnet10t", out_indices=(1,))), config)


def test_a_model_without_the_adapter_is_refused():
    config = dict(
        constructor="attnzoo.LayerDecayOptimWrapperConstructor",
        paramwise_cfg=dict(layer_decay=0.9),
        optimizer=dict(type="AdamW", lr=LR),
    )
    with pytest.raises(ValueError, match=r"no attnzoo\.Backbone"):
        build_optim_wrapper(nn.Conv2d(3, 3, 1), config)
