"""Wrong arguments of every family: one error, which names the argument and its value."""

import inspect
import math

import numpy as np
import pytest
import timm
import zoo

from attnzoo.backbones.bodies.deit import DeiT
from attnzoo.backbones.bodies.pyramid import PyramidBackbone
from attnzoo.backbones.contract.facts import group_of

# A name of each class of models, by what the class takes.
ALL = zoo.one_of_a_class()
_CLASSES = {name: group_of(name).facts.model_cls for name in ALL}
PYRAMIDS = [name for name in ALL if issubclass(_CLASSES[name], PyramidBackbone)]
WITH_HEADS = [
    name
    for name in PYRAMIDS
    if any("num_heads" in inspect.signature(kind.__init__).parameters for kind in _CLASSES[name].__mro__)
]
VITS = [name for name in ALL if issubclass(_CLASSES[name], DeiT)]
CNNS = [name for name in ALL if issubclass(_CLASSES[name], timm.models.ResNet | timm.models.EfficientNet)]
CLASSIFYING = [name for name in ALL if not zoo.restores(name)]

EVERYWHERE = [
    dict(in_chans=0),
    dict(in_chans=1.5),
    dict(drop_rate=1.0),
    dict(drop_rate=-0.1),
    dict(drop_path_rate=1.5),
    dict(drop_path_rate="a"),
    dict(drop_path_rate=math.nan),
]
CLASSIFIERS = [dict(num_classes=-1), dict(global_pool="nothing")]
OUT_INDICES = [
    dict(features_only=True, out_indices=()),
    dict(features_only=True, out_indices=(99,)),
    dict(features_only=True, out_indices=(1, 0)),
    dict(features_only=True, out_indices=(0, 0)),
    dict(features_only=True, out_indices=0),
    dict(features_only=True, out_indices="0"),
    dict(features_only=True, out_indices=(0.5,)),
    dict(features_only=True, out_indices=True),
    dict(features_only=True, out_indices=(True,)),
    dict(features_only="no"),
    dict(pretrained="no"),
]
STAGES = [
    dict(depths=()),
    dict(depths=(1, 1)),
    dict(depths=(0, 1, 1, 1)),
    dict(depths=4),
    dict(embed_dims=(0, 64, 64, 64)),
    dict(embed_dims=(64.0, 64, 64, 64)),
    dict(proj_drop_rate=1.0),
]
HEADS = [dict(num_heads=(0, 1, 1, 1)), dict(num_heads=(1, 1)), dict(num_heads=(7, 7, 7, 7))]
CASES = [
    *((name, dict(num_classes=3, global_pool="")) for name in CNNS),
    *((name, kwargs) for name in ALL for kwargs in EVERYWHERE + OUT_INDICES),
    *((name, kwargs) for name in CLASSIFYING for kwargs in CLASSIFIERS),
    *((name, kwargs) for name in PYRAMIDS for kwargs in STAGES),
    *((name, kw) for name in WITH_HEADS for kw in HEADS),
    *(
        (name, {k: 0})
        for name in VITS
        for k in ("depth", "embed_dim", "num_heads", "patch_size", "img_size", "mlp_ratio")
    ),
    *((name, kw) for name in VITS for kw in (dict(num_heads=7), dict(img_size=8), dict(pos_drop_rate=1.0))),
    *((name, kw) for name in ("agent_pvt_tiny", "inline_pvt_tiny") for kw in (dict(img_size=16), dict(img_size=0))),
    *((name, dict(sr_ratios=(0, 1, 1, 1))) for name in ("agent_pvt_tiny", "inline_pvt_tiny")),
    *((name, dict(mlp_ratios=(0, 4, 4, 4))) for name in ("agent_pvt_tiny", "biformer_tiny", "van_b0")),
    *((name, dict(mlp_ratio=0.001)) for name in ("agent_swin_tiny", "litv2_small", "nat_mini")),
    *((name, dict(window_size=0)) for name in ("agent_swin_tiny", "inline_swin_tiny", "hat_small_x2")),
    *((name, dict(img_size=0)) for name in ("agent_swin_tiny", "agent_cswin_tiny", "coat_tiny")),
    *(("agent_cswin_tiny", dict(split_sizes=sizes)) for sizes in ((0, 2, 7, None), (1, 2), (1.5, 2, 7, None))),
    ("agent_cswin_tiny", dict(agent_blocks=(0, 0, 0, 0), num_heads=(1, 4, 8, 16))),
    *(("agent_pvt_tiny", dict(num_agents=n)) for n in ((0, 16, 49, 49), (8, 16, 49, 49), (9, 16), 9)),
    *(("agent_pvt_tiny", dict(agent_grids=n)) for n in ((0, 4, 7, 7), ((1, 2, 3), 4, 7, 7), (3, 4), ((3, 0), 4, 7, 7))),
    *(("agent_pvt_tiny", dict(agent_blocks=n)) for n in ((-1, 0, 0, 0), (1, 1), (1.5, 0, 0, 0))),
    ("agent_deit_tiny", dict(num_agents=0)),
    ("agent_deit_tiny", dict(agent_grid=0)),
    *(("inline_pvt_tiny", dict(inline_blocks=n)) for n in ((-1, 0, 0, 0), (1, 1), 3)),
    *(("biformer_tiny", dict(n_win=n)) for n in (0, -7, 2, 7.0)),
    *(("biformer_tiny", dict(head_dim=n)) for n in (0, 48)),
    *(("biformer_tiny", dict(topks=n)) for n in ((0, 4, 16, -2), (1, 4, 16), (1, 4, 50, -2), (-1, 4, 16, -2))),
    *(("litv2_small", dict(local_ws=n)) for n in ((-1, 0, 2, 1), (0, 2, 1), (0, 0, 2.5, 1))),
    *(("litv2_small", dict(alpha=n)) for n in (-0.1, 1.1, math.nan)),
    *(("nat_mini", dict(kernel_size=n)) for n in (0, 1, 6, 17, 7.5)),
    *(
        ("nat_mini", dict(dilations=n))
        for n in (((0,), (1,), (1,), (1,)), ((), (1,), (1,), (1,)), ((1,),), (1, 1, 1, 1))
    ),
    ("nat_mini", dict(init_values=math.inf)),
    ("van_b0", dict(norm_eps=0)),
    ("van_b0", dict(init_values=math.nan)),
    ("mscan_tiny", dict(embed_dims=(1, 2, 3, 4))),
    *(("hat_small_x2", {k: 0}) for k in ("compress_ratio", "squeeze_factor", "embed_dim", "upscale", "num_feat")),
    *(("hat_small_x2", {k: 1000}) for k in ("compress_ratio", "squeeze_factor")),
    *(("hat_small_x2", dict(upscale=n)) for n in (-2, 5, 6)),
    *(("hat_small_x2", dict(depths=n)) for n in ((), (6,), (0,) * 6)),
    *(("hat_small_x2", dict(num_heads=n)) for n in ((0,) * 6, (5,) * 6, (6,))),
    *(("hat_small_x2", dict(overlap_ratio=n)) for n in (-0.5, 0.07, math.nan)),
    ("hat_small_x2", dict(global_pool="max")),
    ("hat_small_x2", dict(num_classes=10, global_pool="token")),
    *(("coat_tiny", {k: 0}) for k in ("patch_size", "num_heads", "img_size")),
    *(("coat_tiny", dict(embed_dims=n)) for n in ((152,), (152, 152, 152, 160), (150,) * 4)),
    *(("coat_tiny", dict(serial_depths=n)) for n in ((2, 2), (0, 2, 2, 2))),
    *(("coat_tiny", dict(crpe_window=n)) for n in ({4: 8}, {3: 2}, {3: 0, 5: 8}, 4)),
    ("coat_tiny", dict(attn_drop_rate=0.1)),
    ("coat_tiny", dict(return_interm_layers=True)),
    ("coat_tiny", dict(return_interm_layers=True, out_features=["x5_nocls"])),
    ("coat_tiny", dict(parallel_depth=-1)),
    *(("resnet18_cbam", dict(layers=n)) for n in ((1, 1), (0, 1, 1, 1))),
    ("resnet18_cbam", dict(output_stride=64)),
    *(("mobilenetv2_100_ela", dict(depths=n)) for n in ((1, 1), (0,) * 7)),
    ("mobilenetv2_100_ela", dict(attn_place="start")),
]


@pytest.mark.parametrize(("name", "kwargs"), CASES, ids=lambda value: str(value)[:60])
def test_a_wrong_argument_is_named(name, kwargs):
    """On the meta device: what is refused is refused before a weight is made."""
    with pytest.raises(ValueError) as caught:
        timm.create_model(name, device="meta", **kwargs)
    message = str(caught.value)
    named = [key for key in kwargs if key in message]
    assert named and "\n" not in message and "need" in message, message


@pytest.mark.parametrize("name", ALL)
def test_a_switch_is_true_or_false(name):
    """Whatever the class of the model or one that it inherits takes; 1, 0 and NumPy's values become True and False."""
    model = timm.create_model(name, device="meta")
    parameters = [p for kind in type(model).__mro__ for p in inspect.signature(kind.__init__).parameters.values()]
    switches = {p.name: p.default for p in parameters if isinstance(p.default, bool)}
    for switch in switches:
        for value in ("no", 2, 1.0):
            with pytest.raises(ValueError, match=f"{switch}={value!r}: True or False is needed"):
                timm.create_model(name, device="meta", **{switch: value})
    for kind in (int, np.bool_, np.int64):
        other = timm.create_model(
            name, device="meta", pretrained=kind(False), **{k: kind(v) for k, v in switches.items()}
        )
        assert other.state_dict().keys() == model.state_dict().keys()
        for a, b in zip(other.modules(), model.modules(), strict=True):
            assert all(isinstance(vars(a)[key], bool) for key, value in vars(b).items() if isinstance(value, bool))


def test_switches_are_found():
    for name, switch in (
        ("biformer_tiny", "swin_layout"),
        ("coat_tiny", "qkv_bias"),
        ("mobilenetv2_100_ela", "fix_stem"),
        ("nat_mini", "swin_layout"),
        ("resnet18_cbam", "zero_init_last"),
        ("van_b0", "multi_scale"),
    ):
        with pytest.raises(ValueError, match=f"{switch}='no': True or False is needed"):
            timm.create_model(name, device="meta", **{switch: "no"})


@pytest.mark.parametrize("name", CNNS)
def test_a_classifier_of_timms_cnns_needs_a_pooling(name):
    model = timm.create_model(name, device="meta", num_classes=0, global_pool="")
    for wrong in (dict(num_classes=3), dict(num_classes=3, global_pool="")):
        with pytest.raises(ValueError, match=r"global_pool='', num_classes=3: a pooling is needed"):
            model.reset_classifier(**wrong)
    model.reset_classifier(3, "max")
    assert model.get_classifier().out_features == 3 and model.global_pool.pool_type == "max"


@pytest.mark.parametrize("name", ALL)
def test_an_unknown_argument_is_named(name):
    with pytest.raises(TypeError, match="surprise"):
        timm.create_model(name, device="meta", surprise=1)


@pytest.mark.parametrize("name", ALL)
def test_what_is_allowed_builds(name):
    """Lists stand for tuples, as JSON has them, and NumPy's numbers for Python's; numbers at their limits."""
    kwargs = dict(in_chans=1, drop_rate=0.0, drop_path_rate=0.99)
    if name in PYRAMIDS:
        kwargs |= dict(depths=[1, 1, 1, 1], features_only=True, out_indices=[-4, 3])
    model = timm.create_model(name, device="meta", **kwargs)
    if name in PYRAMIDS:
        assert model.feature_info.reduction() == [4, 32]
        for out_indices in (np.int64(2), (np.int64(2), np.int32(-1)), [np.int64(2), 3]):
            model = timm.create_model(name, device="meta", features_only=1, out_indices=out_indices)
            assert model.feature_info.reduction() == [16, 32]
    if not zoo.restores(name):
        model = timm.create_model(name, device="meta")
        for wrong in (dict(num_classes=-1), dict(num_classes=1, global_pool="nothing")):
            with pytest.raises(ValueError, match="needed"):
                model.reset_classifier(**wrong)
