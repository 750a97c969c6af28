"""attnzoo.Backbone over models of several families; the models are timm's and attnzoo's own code."""

import re

import golden_files
import pytest
import timm
import torch
from mmengine.logging import MessageHub
from packaging.version import Version
from safetensors.torch import save_file
from timm.layers import LayerNorm2d
from torch import nn

from attnzoo.heads import Backbone

VAN = dict(model_name="van_b0", depths=(1, 1, 2, 1), embed_dims=(16, 32, 48, 64))
BIFORMER = dict(model_name="biformer_tiny", depths=(1, 1, 2, 1), embed_dims=(32, 64, 96, 128))
PVT = dict(model_name="pvt_v2_b0", depths=(1, 1, 1, 1))
RESNET = dict(model_name="resnet10t", out_indices=(1, 2, 3, 4))
CONVNEXT = dict(model_name="convnext_atto", depths=(1, 1, 2, 1), dims=(16, 32, 48, 64))
SWIN = dict(
    model_name="swin_tiny_patch4_window7_224",
    depths=(1, 1, 1, 1),
    embed_dim=24,
    num_heads=(1, 2, 4, 8),
    strict_img_size=False,
)
MODELS = [pytest.param(kwargs, id=kwargs["model_name"]) for kwargs in (VAN, BIFORMER, PVT, RESNET, CONVNEXT, SWIN)]
STRIDES = (4, 8, 16, 32)


def assert_same_maps(one: Backbone, other: Backbone) -> None:
    x = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        for a, b in zip(one.eval()(x), other.eval()(x), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("size", [(64, 96), (75, 101)], ids=str)
@pytest.mark.parametrize("kwargs", MODELS)
def test_channels_and_strides_are_the_maps_own(kwargs, size):
    if kwargs is SWIN and size[0] % 2:
        size = (76, 100)  # timm's Swin takes multiples of its patch size; the deeper maps are odd
    backbone = Backbone(**kwargs).eval()
    with torch.no_grad():
        maps = backbone(torch.rand(2, 3, *size))
    assert isinstance(maps, tuple)
    assert backbone.strides == STRIDES
    assert tuple(level.shape[1] for level in maps) == backbone.channels
    for level, stride in zip(maps, STRIDES, strict=True):
        for length, pixels in zip(level.shape[2:], size, strict=True):
            assert length in (pixels // stride, -(-pixels // stride))


@pytest.mark.parametrize("kwargs", MODELS)
def test_maps_equal_those_of_timms_own_wrapper(kwargs):
    torch.manual_seed(0)
    backbone = Backbone(**kwargs).eval()
    torch.manual_seed(0)
    features = timm.create_model(**{**kwargs, "out_indices": backbone.out_indices}, features_only=True).eval()
    features = features.requires_grad_(False)
    x = torch.rand(1, 3, 64, 96)
    for ours, theirs, channels in zip(backbone(x), features(x), backbone.channels, strict=True):
        theirs = theirs if theirs.shape[1] == channels else theirs.permute(0, 3, 1, 2)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("kwargs", "levels", "strides"),
    [
        pytest.param(VAN, (0, 1, 2, 3), STRIDES, id="pyramid"),
        pytest.param(dict(model_name="resnet10t"), (1, 2, 3, 4), STRIDES, id="stride 2 before it"),
        pytest.param(dict(model_name="efficientvim_m1"), (0, 1), (16, 32), id="coarser than 32"),
        pytest.param(dict(model_name="volo_d1_224"), (0, 3), (8, 16), id="strides that repeat"),
        pytest.param(dict(model_name="vit_tiny_patch16_224"), (11,), (16,), id="vit"),
        pytest.param(dict(model_name="agent_deit_tiny"), (11,), (16,), id="agent deit"),
        pytest.param(dict(model_name="vit_base_patch14_dinov2", depth=2, embed_dim=48), (1,), (14,), id="stride 14"),
    ],
)
def test_default_levels(kwargs, levels, strides):
    if not timm.is_model(kwargs["model_name"]):
        pytest.skip("newer timm")
    with torch.device("meta"):
        backbone = Backbone(**kwargs)
    assert (backbone.out_indices, backbone.strides) == (levels, strides)


def test_the_default_keeps_all_blocks_of_a_plain_model():
    sizes = dict(depth=5, embed_dim=24, num_heads=2, dynamic_img_size=True)
    torch.manual_seed(0)
    backbone = Backbone("vit_tiny_patch16_224", **sizes, frozen_stages=2).eval()
    assert len(backbone.model.blocks) == 5
    torch.manual_seed(0)
    whole = timm.create_model("vit_tiny_patch16_224", **sizes).eval()
    x = torch.rand(1, 3, 64, 96)
    (level,) = backbone(x)
    expected = whole.forward_intermediates(x, indices=[4], intermediates_only=True, output_fmt="NCHW")
    torch.testing.assert_close(level, expected[0])
    # Stages are blocks here.
    learns = {name.split(".")[1] for name, p in backbone.model.blocks.named_parameters(prefix="x") if p.requires_grad}
    assert learns == {"2", "3", "4"}
    assert not backbone.model.patch_embed.proj.weight.requires_grad


def test_a_model_that_does_not_tell_its_levels_is_refused(monkeypatch):
    original = timm.create_model

    def without_levels(name, **kwargs):
        model = original(name, **kwargs)
        model.feature_info = [{"num_chs": 32}]
        return model

    monkeypatch.setattr(timm, "create_model", without_levels)
    with pytest.raises(ValueError, match=r"model_name='pvt_v2_b0': its feature_info does not name levels"):
        Backbone(**PVT)


@pytest.mark.parametrize("kwargs", MODELS)
def test_every_parameter_gets_a_gradient(kwargs):
    backbone = Backbone(**kwargs, stage_norms="layernorm2d").train()
    sum(level.square().mean() for level in backbone(torch.rand(2, 3, 64, 96))).backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None] == []


def test_levels_behind_the_last_one_are_cut_off():
    backbone = Backbone(**VAN, out_indices=(-3, 2))
    assert backbone.out_indices == (1, 2)
    assert backbone.strides == (8, 16)
    assert len(backbone.model.stages) == 3


def test_stage_norms_normalise_each_map_and_leave_the_next_stage_alone():
    plain, normed = Backbone(**PVT).eval(), Backbone(**PVT, stage_norms="layernorm2d").eval()
    normed.model.load_state_dict(plain.model.state_dict())
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        for raw, level in zip(plain(x), normed(x), strict=True):
            expected = nn.functional.layer_norm(raw.permute(0, 2, 3, 1), raw.shape[1:2], eps=1e-6).permute(0, 3, 1, 2)
            torch.testing.assert_close(level, expected)
    assert all(isinstance(norm, LayerNorm2d) for norm in normed.extra_norms.values())


STEM = {
    "van_b0": ("stem",),
    "biformer_tiny": ("stem",),
    "pvt_v2_b0": ("patch_embed",),
    "resnet10t": ("conv1", "bn1"),
    "convnext_atto": ("stem",),
    "swin_tiny_patch4_window7_224": ("patch_embed",),
}
STAGE = {"resnet10t": "layer{1}", "swin_tiny_patch4_window7_224": "layers.{0}"}


@pytest.mark.parametrize("frozen_stages", range(-1, 5))
@pytest.mark.parametrize("kwargs", MODELS)
def test_frozen_stages(kwargs, frozen_stages):
    name = kwargs["model_name"]
    frozen = STEM[name] if frozen_stages >= 0 else ()
    frozen += tuple(STAGE.get(name, "stages.{0}").format(i, i + 1) for i in range(frozen_stages))
    backbone = Backbone(**kwargs, frozen_stages=frozen_stages, drop_path_rate=0.1).train()
    inside = tuple(f"{part}." for part in frozen)
    for key, parameter in backbone.model.named_parameters():
        assert parameter.requires_grad != key.startswith(inside), key
    for key, module in backbone.model.named_modules():
        if key and next(module.children(), None) is None:
            own_parameters = next(module.parameters(), None) is not None
            in_frozen = key in frozen or key.startswith(inside)
            if own_parameters or "drop" in key:
                assert module.training != in_frozen, key


def test_frozen_batch_norm_keeps_its_statistics():
    backbone = Backbone(**RESNET, frozen_stages=1).train()
    before = {key: value.clone() for key, value in backbone.model.state_dict().items() if "running_mean" in key}
    backbone(torch.rand(2, 3, 64, 96))
    changed = {
        key for key, value in backbone.model.state_dict().items() if key in before and (value != before[key]).any()
    }
    assert changed == {key for key in before if key.startswith(("layer2", "layer3", "layer4"))}


def test_norm_eval_holds_all_batch_norm():
    backbone = Backbone(**VAN, norm_eval=True)
    for mode in (True, False):
        backbone.train(mode)
        norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
        assert norms
        assert not any(norm.training for norm in norms)
        assert all(norm.weight.requires_grad for norm in norms)
        assert backbone.model.stages[0].blocks.training is mode


@pytest.mark.parametrize("kwargs", MODELS)
def test_with_cp_recomputes_to_the_same_gradients(kwargs):
    if kwargs is RESNET and Version(timm.__version__) < Version("1.0.31"):
        with pytest.raises(ValueError, match=r"with_cp=True: 'resnet10t' cannot recompute activations of maps in timm"):
            Backbone(**kwargs, with_cp=True)
        return
    plain, saving = (
        Backbone(**kwargs, drop_path_rate=0.0, norm_eval=True, with_cp=with_cp).train() for with_cp in (False, True)
    )
    saving.load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, 64, 64)
    runs = []
    for backbone in (plain, saving):
        calls: list[nn.Module] = []
        handles = [m.register_forward_hook(lambda m, *_, calls=calls: calls.append(m)) for m in backbone.modules()]
        sum(level.square().mean() for level in backbone(x)).backward()
        for handle in handles:
            handle.remove()
        runs.append(len(calls))
    assert runs[1] > runs[0]
    for (name, p), q in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        (dict(model_name="resnet5O"), ValueError, r"resnet5O.*did you mean .*resnet50"),
        (dict(model_name="resnet18.nope"), ValueError, r"nope.*resnet18\.a1_in1k"),
        (dict(model_name="resnet18", colour=3), TypeError, r"resnet18.*'colour'"),
        (dict(PVT, out_indices=(0, 4)), ValueError, r"out_indices=\(0, 4\).*has 4 levels.*0 to 3"),
        (dict(PVT, out_indices=(-5, 0)), ValueError, r"out_indices.*has 4 levels"),
        (dict(PVT, out_indices=(2, 1)), ValueError, r"out_indices=\(2, 1\).*increasing"),
        (dict(PVT, out_indices=()), ValueError, r"out_indices=\(\)"),
        (dict(PVT, frozen_stages=5), ValueError, r"frozen_stages=5.*to 4"),
        (dict(PVT, frozen_stages=-2), ValueError, r"frozen_stages=-2"),
        (dict(PVT, frozen_stages=2, out_indices=(0,)), ValueError, r"frozen_stages=2.*to 1"),
        # Before timm 1.0.31 it has no forward_intermediates.
        (dict(model_name="hrnet_w18_small", frozen_stages=1), ValueError, r"(frozen_stages=1|model_name)=?.*hrnet_w18"),
        (dict(PVT, frozen_stages=True), TypeError, r"frozen_stages=True: must be a whole number, got bool"),
        (dict(PVT, frozen_stages="1"), TypeError, r"frozen_stages='1': must be a whole number, got str"),
        (dict(model_name=None), TypeError, r"model_name=None: must be a string, got NoneType"),
        (dict(PVT, out_indices=3), TypeError, r"out_indices=3: must be a sequence of whole numbers, got int"),
        (dict(PVT, out_indices="0123"), TypeError, r"out_indices='0123': must be a sequence"),
        (dict(PVT, out_indices=(0, 1.0)), TypeError, r"out_indices\[1\]=1\.0: must be a whole number, got float"),
        (dict(PVT, out_indices=(2, 2)), ValueError, r"out_indices=\(2, 2\).*increasing"),
        (dict(PVT, out_indices=(2, -2)), ValueError, r"out_indices=\(2, -2\).*increasing"),
        (dict(model_name="crossvit_tiny_240"), ValueError, r"crossvit_tiny_240.*(none of \(4, 8, 16, 32\)|has no)"),
        (dict(model_name="pit_b_224"), ValueError, r"model_name='pit_b_224': has no group_matcher"),
        (dict(PVT, norm_eval=1), TypeError, r"norm_eval=1: must be True or False, got int"),
        (dict(PVT, with_cp="yes"), TypeError, r"with_cp='yes': must be True or False, got str"),
        (dict(model_name="vgg11", with_cp=True), ValueError, r"(with_cp=True: )?.*vgg11.*(cannot recompute|has no)"),
        (dict(PVT, drop_path_rate=1.5), ValueError, r"drop_path_rate=1\.5: must be from 0 to 1"),
        (dict(PVT, drop_path_rate=float("nan")), ValueError, r"drop_path_rate=nan: must be from 0 to 1"),
        (dict(PVT, drop_path_rate="0.1"), TypeError, r"drop_path_rate='0\.1': must be a number, got str"),
        (dict(PVT, features_only=True), ValueError, r"features_only=True: not taken.*out_indices"),
        (dict(PVT, checkpoint_path="a.pth"), ValueError, r"checkpoint_path='a\.pth': not taken.*init_cfg"),
        (dict(PVT, num_heads=(1, 2, 3)), ValueError, r"model_name='pvt_v2_b0' with \{.*num_heads"),
        (dict(PVT, stage_norms=True), TypeError, r"stage_norms=True: must be None, a string or a dict, got bool"),
        (dict(PVT, stage_norms=dict(type="layernorm2d", eps=-1)), ValueError, r"stage_norms\.eps=-1: must be above 0"),
        (dict(PVT, stage_norms=dict(type="layernorm2d", levels=1)), TypeError, r"stage_norms\.levels=1: must be a seq"),
        (
            dict(PVT, stage_norms=dict(type="layernorm2d", levels=(1, 1))),
            ValueError,
            r"among \(0, 1, 2, 3\), each once",
        ),
        (dict(RESNET, attention="ela"), TypeError, r"attention='ela': must be None or a dict, got str"),
        (dict(RESNET, attention=dict(type="ela", stages="all")), TypeError, r"attention\.stages='all': must be a seq"),
        (dict(RESNET, attention=dict(type="ela", stages=(2, 2))), ValueError, r"attention\.stages=\(2, 2\): names"),
        (dict(RESNET, attention=dict(type="ela", identity=0)), TypeError, r"attention\.identity=0: must be True or"),
        (dict(RESNET, attention=dict(type="ela", sizes=3)), TypeError, r"attention=\{.*'sizes'"),
        (dict(RESNET, attention=dict(type="eela")), ValueError, r"attention=\{'type': 'eela'\}.*ela"),
        (dict(PVT, stage_norms="batchnorm"), ValueError, r"stage_norms='batchnorm'.*'layernorm2d'"),
        (dict(PVT, stage_norms=dict(type="layernorm2d", levels=(4,))), ValueError, r"levels among \(0, 1, 2, 3\)"),
        (dict(PVT, stage_norms=dict(type="layernorm2d", epsilon=1e-5)), ValueError, r"'epsilon'.*eps=\.\.\."),
        (dict(PVT, pretrained="open-mmlab://resnet50_v1c"), ValueError, r"open-mmlab.*pretrained=None"),
        (dict(PVT, init_cfg=dict(type="Kaiming")), ValueError, r"init_cfg=.*Pretrained"),
    ],
    ids=lambda value: "-".join(map(str, value.items()))[:60] if isinstance(value, dict) else None,
)
def test_bad_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        Backbone(**kwargs)


def classifier(kwargs: dict) -> nn.Module:
    return timm.create_model(**{key: value for key, value in kwargs.items() if key != "out_indices"})


@pytest.mark.parametrize("kwargs", MODELS)
def test_loads_a_classifier(kwargs, tmp_path):
    whole = classifier(kwargs)
    torch.save({"state_dict": whole.state_dict(), "epoch": 3}, tmp_path / "a.pth")
    save_file(whole.state_dict(), tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        backbone = Backbone(**kwargs, init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / name)))
        backbone.init_weights()
        loaded = backbone.model.state_dict()
        assert all(torch.equal(value, whole.state_dict()[key]) for key, value in loaded.items())


def test_loads_what_the_adapter_itself_saved_in_a_detector(tmp_path):
    trained = Backbone(**VAN, stage_norms="layernorm2d")
    for p in trained.parameters():
        nn.init.normal_(p, std=0.1)
    state = {f"backbone.{key}": value for key, value in trained.state_dict().items()}
    hub = MessageHub("runner")
    hub.update_scalar("train/loss", 0.5)
    checkpoint = {"state_dict": {**state, "neck.weight": torch.zeros(1)}, "message_hub": hub.state_dict()}
    torch.save(checkpoint, tmp_path / "detector.pth")
    backbone = Backbone(**VAN, stage_norms="layernorm2d")
    backbone.load_checkpoint(tmp_path / "detector.pth")
    assert_same_maps(backbone, trained)

    shorter = Backbone(**VAN, stage_norms="layernorm2d", out_indices=(1, 2))
    shorter.load_checkpoint(tmp_path / "detector.pth")
    x = torch.rand(1, 3, 64, 64)
    for ours, theirs in zip(shorter.eval()(x), trained.eval()(x)[1:3], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_loads_the_original_repositorys_layout(tmp_path):
    """Names as in the published PVTv2, which timm renames; there is no download in the tests."""
    whole = classifier(PVT)
    published = {}
    for key, value in whole.state_dict().items():
        key = re.sub(r"^patch_embed\.", "patch_embed1.", key)
        key = re.sub(r"^stages\.(\d)\.downsample\.", lambda m: f"patch_embed{int(m[1]) + 1}.", key)
        key = re.sub(r"^stages\.(\d)\.blocks\.", lambda m: f"block{int(m[1]) + 1}.", key)
        key = re.sub(r"^stages\.(\d)\.norm\.", lambda m: f"norm{int(m[1]) + 1}.", key)
        published[re.sub(r"mlp\.dwconv\.", "mlp.dwconv.dwconv.", key)] = value
    assert not published.keys() & {key for key in whole.state_dict() if key.startswith("stages")}
    torch.save({f"backbone.{k}": v for k, v in published.items() if not k.startswith("head.")}, tmp_path / "a.pth")
    backbone = Backbone(**PVT)
    backbone.load_checkpoint(tmp_path / "a.pth")
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in backbone.model.state_dict().items())


@pytest.mark.parametrize("dense", [False, True], ids=["classifier", "detector"])
@pytest.mark.parametrize("name", ["biformer_tiny_256x320", "van_b0_200x264"])
def test_published_checkpoints_give_the_published_maps(name, dense, tmp_path):
    """Golden values of the published implementations; a detector's checkpoint has no classifier and more norms."""
    golden = golden_files.load(name)
    state = golden_files.checkpoint(golden)
    if dense:
        state = {f"backbone.{key}": value for key, value in state.items() if not key.startswith(("head.", "norm."))}
        state["neck.weight"] = torch.zeros(1)
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    backbone = Backbone(name.rpartition("_")[0]).double().eval()
    backbone.load_checkpoint(tmp_path / "a.pth")
    with torch.no_grad():
        maps = backbone(golden_files.image(golden))
    for i, level in enumerate(maps):
        assert golden_files.error(level, golden["outputs"][f"stage{i}"]) < 1e-6


def test_published_biformer_detector_brings_its_stage_norms(tmp_path):
    golden = golden_files.load("biformer_tiny_256x320")
    state = {
        key: value for key, value in golden_files.checkpoint(golden).items() if not key.startswith(("head", "norm"))
    }
    norms = {
        f"extra_norms.{i}.{part}": golden_files.fill(f"{i}.{part}", (channels,))
        for i, channels in enumerate(golden["kwargs"]["embed_dims"])
        for part in ("weight", "bias")
    }
    published = {**state, **norms}
    torch.save(
        {f"backbone.{k}": v for k, v in published.items() if not k.startswith(("head.", "norm."))}, tmp_path / "a.pth"
    )
    backbone = Backbone("biformer_tiny", stage_norms="layernorm2d", n_win=16).double()
    backbone.load_checkpoint(tmp_path / "a.pth")
    for key, value in norms.items():
        assert torch.equal(backbone.get_parameter(key), value)


@pytest.mark.parametrize("name", ["litv2_small", "nat_mini", "agent_swin_tiny"])
def test_published_detectors_bring_the_norms_of_their_stages(name, tmp_path):
    golden = golden_files.load(name)
    published = {k: v for k, v in golden_files.checkpoint(golden).items() if not k.startswith(("head", "norm."))}
    backbone = Backbone(name, stage_norms=dict(type="layernorm2d", eps=1e-5, levels=(1, 2, 3))).double().eval()
    norms = {
        f"norm{i}.{part}": golden_files.fill(f"{i}.{part}", (backbone.channels[i],))
        for i in (1, 2, 3)
        for part in ("weight", "bias")
    }
    torch.save({"state_dict": {f"backbone.{k}": v for k, v in {**published, **norms}.items()}}, tmp_path / "a.pth")
    backbone.load_checkpoint(tmp_path / "a.pth")
    for key, value in norms.items():
        assert torch.equal(backbone.get_parameter(key.replace("norm", "extra_norms.")), value)


def test_stage_norms_of_some_levels_with_their_own_eps():
    norms = dict(type="layernorm2d", eps=1e-5, levels=(1, 3))
    plain, normed = Backbone(**PVT).eval(), Backbone(**PVT, stage_norms=norms).eval()
    normed.model.load_state_dict(plain.model.state_dict())
    assert {key: norm.eps for key, norm in normed.extra_norms.items()} == {"1": 1e-5, "3": 1e-5}
    with torch.no_grad():
        x = torch.rand(1, 3, 64, 96)
        for i, (a, b) in enumerate(zip(plain(x), normed(x), strict=True)):
            assert torch.equal(a if i in (0, 2) else normed.extra_norms[str(i)](a), b)


def test_stage_norms_come_from_the_checkpoint_or_stay_new(tmp_path):
    whole = classifier(PVT)
    torch.save(whole.state_dict(), tmp_path / "without.pth")
    norms = {f"extra_norms.{i}.{part}": torch.rand(c) for i, c in enumerate((32, 64, 160, 256))
             for part in ("weight", "bias")}  # fmt: skip
    torch.save({f"backbone.{k}": v for k, v in {**whole.state_dict(), **norms}.items()}, tmp_path / "with.pth")

    backbone = Backbone(**PVT, stage_norms="layernorm2d", out_indices=(1, 3))
    backbone.load_checkpoint(tmp_path / "without.pth")
    assert (backbone.extra_norms["3"].weight == 1).all()
    backbone.load_checkpoint(tmp_path / "with.pth")
    assert torch.equal(backbone.extra_norms["3"].bias, norms["extra_norms.3.bias"])
    with pytest.raises(RuntimeError, match=r"extra_norms\.0\.weight.*stage_norms='layernorm2d'"):
        Backbone(**PVT).load_checkpoint(tmp_path / "with.pth")

    del norms["extra_norms.1.weight"]
    torch.save({**whole.state_dict(), **norms}, tmp_path / "partly.pth")
    with pytest.raises(RuntimeError, match=r"Missing key.*extra_norms\.1\.weight"):
        backbone.load_checkpoint(tmp_path / "partly.pth")


@pytest.mark.parametrize("kwargs", [pytest.param(VAN, id="van_b0"), pytest.param(RESNET, id="resnet10t")])
def test_wrong_keys_are_named(kwargs, tmp_path):
    state = classifier(kwargs).state_dict()
    first = next(iter(state))
    cases = {
        r"Missing key.*" + re.escape(first): {k: v for k, v in state.items() if k != first},
        r"Unexpected key.*attention\.extra": {**state, "attention.extra": torch.zeros(3)},
        r"size mismatch for model\." + re.escape(first): {**state, first: torch.zeros(1, 2, 3, 4)},
    }
    backbone = Backbone(**kwargs)
    for message, broken in cases.items():
        torch.save(broken, tmp_path / "broken.pth")
        with pytest.raises(RuntimeError, match=rf"(?s)broken\.pth.*{kwargs['model_name']}.*{message}"):
            backbone.load_checkpoint(tmp_path / "broken.pth")


class RunsCode:
    def __reduce__(self):
        return (print, ("a checkpoint ran code",))


def test_files_that_are_no_checkpoint(tmp_path, capsys):
    backbone = Backbone(**VAN)
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        backbone.load_checkpoint(tmp_path / "none.pth")
    torch.save(classifier(VAN).state_dict(), tmp_path / "whole.pth")
    (tmp_path / "truncated.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:5000])
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.safetensors").write_text("not weights")
    torch.save({"state_dict": classifier(VAN).state_dict(), "hook": RunsCode()}, tmp_path / "hostile.pth")
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    for name in ("truncated.pth", "empty.pth", "text.safetensors", "hostile.pth", "list.pth"):
        with pytest.raises(RuntimeError, match=re.escape(name)):
            backbone.load_checkpoint(tmp_path / name)
    assert capsys.readouterr().out == ""
