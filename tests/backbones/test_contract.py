"""timm's model contract, over every model that attnzoo registers: a new family is tested by being registered."""

import inspect
import math
import re
import traceback
from itertools import pairwise

import pytest
import timm
import torch
from timm.layers import DropPath
from timm.models import get_notrace_functions, get_notrace_modules, group_parameters
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names
from zoo import map_side, one_of_a_kind, plain, restores, shallow

import attnzoo
from attnzoo.backbones.contract.facts import group_of

NAMES = attnzoo.list_models()
ONE_OF_A_KIND = one_of_a_kind()


@pytest.fixture(params=ONE_OF_A_KIND)
def name(request):
    return request.param


@pytest.fixture(params=[name for name in ONE_OF_A_KIND if not restores(name)])
def classifier(request):
    return request.param


@pytest.mark.long
def test_every_model_builds_and_says_what_it_is():
    assert len(NAMES) == len(set(NAMES)) >= 60
    for name in NAMES:
        model = timm.create_model(name, device="meta")
        cfg = model.pretrained_cfg
        assert cfg["license"] and cfg["origin_url"].startswith("https://") and cfg["paper_ids"]
        state = model.state_dict()
        assert f"{cfg['first_conv']}.weight" in state
        assert restores(name) or f"{cfg['classifier']}.weight" in state


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ONE_OF_A_KIND])
def test_forward_and_backward_of_full_size(name):
    parameters = sum(p.numel() for p in timm.create_model(name, device="meta").parameters())
    if parameters > 30e6:
        pytest.skip("as its smaller kin, and slow")
    model = timm.create_model(name, num_classes=3).train()
    out = model(torch.randn(2, 3, 64, 64) if not restores(name) else torch.rand(1, 3, 16, 16))
    assert out.isfinite().all() and (restores(name) or out.shape == (2, 3))
    out.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_names_filter():
    assert attnzoo.list_models("van_*") == [f"van_b{i}" for i in range(7)]
    assert attnzoo.list_models("swin_*") == []


def test_forward_head_and_classifier(classifier):
    model = shallow(classifier).eval()
    x = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        features = model.forward_features(x)
        assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
        assert model(x).shape == (2, 1000)
        model.reset_classifier(5, "avg")
        assert model(x).shape == (2, 5) and model.get_classifier().out_features == 5
        model.reset_classifier(0)
        assert model(x).shape == (2, model.num_features)
    assert shallow(classifier, num_classes=7, in_chans=1)(torch.randn(2, 1, 64, 64)).shape == (2, 7)


def test_classifier_of_any_width(classifier):
    """Pooled maps may be wider than maps, those of a shortened model are narrower."""
    model = shallow(classifier, num_classes=2).eval()
    x = torch.randn(2, 3, 32, 32)
    # Those of tokens have no other pooling, and timm's own classes do not count it in its earlier versions.
    theirs = isinstance(model, timm.models.ResNet | timm.models.EfficientNet)
    counted = timm.create_model("test_resnet", global_pool="catavgmax")
    uncounted = theirs and counted.head_hidden_size == counted.num_features
    tokens = classifier.startswith("coat_") or plain(classifier)
    wide = [] if tokens or uncounted else ["catavgmax"]
    with torch.inference_mode():
        for indices in (None, [1]):
            if indices:
                model.prune_intermediate_layers(indices)
            for pool in (*wide, "avg"):
                model.reset_classifier(3, pool)
                if indices and getattr(model, "parallel_blocks", None) is not None:
                    # CoaT's, which joined its scales before it was pruned.
                    with pytest.raises(RuntimeError, match="joins the scales has been cut off"):
                        model(x)
                    continue
                assert model(x).shape == (2, 3)
                features = model.forward_head(model.forward_features(x), pre_logits=True)
                assert features.shape == (2, model.head_hidden_size)
        for pool in wide:
            model = shallow(classifier, global_pool=pool)
            assert model.head_hidden_size == model.get_classifier().in_features > model.num_features


def test_unpooled_map(classifier):
    model = shallow(classifier, num_classes=0).eval()
    x = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        features = model.forward_features(x)
        if not torch.is_tensor(features) or features.dim() != 4:
            pytest.skip("its features have class tokens")
        assert features.shape == (2, model.num_features, *model.pretrained_cfg["pool_size"])
        model.reset_classifier(0, "")
        assert torch.equal(model(x), features)


def test_unpooled_classifier(classifier):
    """The map of logits whose mean is the logits of the mean, by the weights of the pooled classifier."""
    if classifier.startswith(("coat_", "resnet", "mobilenet")):
        pytest.skip("needs a pooling, and says so")
    pooled, model = (shallow(classifier, num_classes=7, global_pool=pool).eval() for pool in ("avg", ""))
    model.load_state_dict(pooled.state_dict())
    x = torch.randn(2, 3, 64, 97)
    with torch.inference_mode():
        out, want, features = model(x), pooled(x), model.forward_features(x)
        if features.dim() == 3:
            assert out.shape == (*features.shape[:2], 7)
            mean = out[:, 1:].mean(1)
        else:
            assert out.shape == (2, 7, *features.shape[2:])
            mean = out.mean((2, 3))
        assert torch.allclose(mean, want, rtol=1e-4, atol=1e-5)
        assert torch.equal(model.forward_head(features, pre_logits=True), features)
        pooled.reset_classifier(5, "")
        assert pooled(x).shape == tuple(5 if size == 7 else size for size in out.shape)


def test_restoration_maps_an_image_to_an_image():
    names = [name for name in ONE_OF_A_KIND if restores(name)]
    assert names
    for name in names:
        model = shallow(name).eval()
        scale = model.upscale
        with torch.inference_mode():
            assert model(torch.rand(2, 3, 19, 33)).shape == (2, 3, 19 * scale, 33 * scale)


@pytest.mark.parametrize("size", [(32, 32), (33, 61), (97, 130), (224, 160)])
def test_any_size(name, size):
    if restores(name) and size[0] > 100:
        size = (17, 7)
    model = shallow(name, features_only=True).eval()
    with torch.inference_mode():
        maps = model(torch.randn(1, 3, *size))
    info = model.feature_info
    assert len(maps) == len(info.reduction())
    if len(set(info.reduction())) > 1:
        # timm's ResNets and MobileNets have a level of stride 2 as well.
        assert info.reduction()[-4:] == [4, 8, 16, 32]
    for x, level in zip(maps, info.get_dicts(), strict=True):
        assert x.isfinite().all()
        assert x.shape == (1, level["num_chs"], *(map_side(level, side) for side in size))
        for got, side in zip(x.shape[2:], size, strict=True):
            assert side // level["reduction"] <= got <= math.ceil(side / level["reduction"])


def test_smaller_than_any_stride(name):
    """Stages whose map would be empty have one pixel; each has the size that it declares."""
    model = shallow(name, features_only=True).eval()
    for size in ((1, 1), (5, 18), (20, 31), (2, 3), (7, 9), (35, 38), (11, 45)):
        with torch.inference_mode():
            maps = model(torch.randn(1, 3, *size))
        for x, level in zip(maps, model.feature_info.get_dicts(), strict=True):
            assert x.isfinite().all()
            assert tuple(x.shape[2:]) == tuple(map_side(level, side) for side in size)
            for got, side in zip(x.shape[2:], size, strict=True):
                assert max(side // level["reduction"], 1) <= got <= math.ceil(side / level["reduction"])


@pytest.mark.parametrize(
    ("out_indices", "feature_cls"),
    [((0,), None), ((-2,), None), ((0, -1), None), ((-1,), None), ((0, -1), "getter")],
)
def test_features_of_any_stages(name, out_indices, feature_cls):
    kwargs = {"feature_cls": feature_cls} if feature_cls else {}
    model = shallow(name, features_only=True, out_indices=out_indices, **kwargs).eval()
    levels = [shallow(name, device="meta").feature_info[i] for i in out_indices]
    with torch.inference_mode():
        maps = model(torch.randn(1, 3, 64, 96))
    assert model.feature_info.reduction() == [level["reduction"] for level in levels]
    for x, level in zip(maps, levels, strict=True):
        assert x.shape == (1, level["num_chs"], 64 // level["reduction"], 96 // level["reduction"])


def test_intermediates(name):
    model = shallow(name).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        last, maps = model.forward_intermediates(x)
        features = model.forward_features(x)
        pairs = zip(last, features, strict=True) if isinstance(features, (list, tuple)) else [(last, features)]
        assert all(torch.equal(a, b) for a, b in pairs)
        assert [m.shape[1] for m in maps] == [level["num_chs"] for level in model.feature_info]
        only = model.forward_intermediates(x, indices=1, intermediates_only=True)
        assert len(only) == 1 and torch.equal(only[0], maps[-1])
        early = model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
        assert torch.equal(early[0], maps[1])
        with pytest.raises(ValueError, match="NHWC"):
            model.forward_intermediates(x, output_fmt="NHWC")
        assert model.prune_intermediate_layers([1]) == [1]
        assert model.num_features == maps[1].shape[1]
        pruned = model.forward_intermediates(x, indices=[1], intermediates_only=True)
        assert torch.equal(pruned[0], maps[1])


def test_every_parameter_gets_a_gradient_and_checkpointing_keeps_it(name):
    # A classifier of the class token leaves parameters of the last block nothing to learn, one of the patches others.
    pool = {"global_pool": ""} if plain(name) else {}
    model = shallow(name, num_classes=3, **pool).double()
    # Freshly drawn running statistics would differ between the two passes.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    if restores(name):
        x = x[:1, :, :16, :16]
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
        for key, p in model.named_parameters():
            assert p.grad is not None and p.grad.abs().max() > 0, key
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(*grads, strict=True))


def test_channels_last(name):
    model = shallow(name).eval()
    x = torch.randn(2, 3, 96, 64)
    with torch.inference_mode():
        plain = model(x)
        model.to(memory_format=torch.channels_last)
        assert torch.allclose(model(x.to(memory_format=torch.channels_last)), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(name, dtype):
    model = shallow(name, dtype=dtype).eval()
    with torch.inference_mode():
        assert model(torch.randn(1, 3, 64, 64, dtype=dtype)).isfinite().all()


class HostTensors(TorchDispatchMode):
    """Counts tensors that the backbones make from Python numbers on the host: on a GPU each is a copy that waits."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift.default):
            frames = traceback.walk_stack(inspect.currentframe())
            names = (frame.f_globals["__name__"] for frame, _ in frames)
            made_by = next((name for name in names if name.startswith("attnzoo.")), "")
            # The operators have tests of their own.
            self.count += not made_by.startswith("attnzoo.kernels.")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("training", [False, True])
def test_makes_no_tensor_on_the_host(name, training):
    """Not in every pass: what belongs to a size alone is there after the first."""
    model = shallow(name).train(training)
    model(torch.randn(2, 3, 33, 47))
    with HostTensors() as made:
        torch.tensor(1.0)
        assert made.count == 1
        model(torch.randn(2, 3, 33, 47)).sum().backward()
    assert made.count == 1


def test_keeps_no_tensor_of_another_mode(name):
    """Neither fake tensors nor inference tensors of an earlier pass come back in a later one."""
    model = shallow(name).eval()
    x = torch.randn(1, 3, 45, 61)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        assert type(model(mode.from_tensor(x))).__name__ == "FakeTensor"
    with torch.inference_mode():
        want = model(x)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.eval()
    out = model(x)
    assert type(out) is torch.Tensor and not out.is_inference()
    out.sum().backward()
    assert torch.allclose(out, want, rtol=1e-3, atol=1e-4)


def test_batch_does_not_mix(name):
    model = shallow(name).eval()
    x = torch.randn(3, 3, 64, 96)
    with torch.inference_mode():
        assert torch.allclose(model(x)[1:2], model(x[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_no_images(name, training):
    """A batch of none gives none, in the shapes of others, and has a gradient."""
    model = shallow(name).train(training)
    x = torch.randn(0, 3, 33, 47, requires_grad=True)
    other = shallow(name, features_only=True).eval()
    with torch.no_grad():
        one = model.eval().forward_features(torch.randn(1, 3, 33, 47))
        for none, map_ in zip(other(x), other(torch.randn(1, 3, 33, 47)), strict=True):
            assert none.shape == (0, *map_.shape[1:])
    features = model.train(training).forward_features(x)
    pairs = zip(features, one, strict=True) if isinstance(one, list) else [(features, one)]
    assert all(a.shape == (0, *b.shape[1:]) for a, b in pairs)
    out = model(x)
    assert out.shape == ((0, 1000) if not restores(name) else (0, 3, 33 * model.upscale, 47 * model.upscale))
    out.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape


def test_gradients_have_gradients(name):
    """A penalty on the gradient of the input, along one direction, against the difference of two gradients."""
    if name.startswith("litv2_") and torch.__version__ < "2.14":
        pytest.skip("PyTorch 2.11 has no second derivative of grid_sample, and says so; 2.14 has one")
    model = shallow(name, dtype=torch.float64, **({} if restores(name) else {"num_classes": 3})).eval()
    side = 16 if restores(name) else 32
    x = torch.randn(2, 3, side, side, dtype=torch.float64, requires_grad=True)
    direction = torch.randn_like(x)

    def gradient(at: torch.Tensor, create_graph: bool) -> torch.Tensor:
        return torch.autograd.grad(model(at).square().sum(), at, create_graph=create_graph)[0]

    product = (gradient(x, True) * direction).sum()
    product.backward()
    step = 1e-7
    near = [gradient((x + sign * step * direction).detach().requires_grad_(), False) for sign in (1, -1)]
    numerical = (near[0] - near[1]) / (2 * step)
    # Routing and ReLUs have kinks that a step may cross; they are few.
    far = (x.grad - numerical).abs() > 1e-3 * numerical.abs().max()
    assert far.double().mean() < 0.02


def test_torchscript(name):
    # TorchScript cannot read what timm wraps around models whose features are no modules' outputs.
    features = {} if restores(name) or plain(name) else {"features_only": True}
    model = shallow(name, scriptable=True, dtype=torch.float64, **features).eval()
    scripted = torch.jit.script(model)
    x = torch.randn(1, 3, 64, 97, dtype=torch.float64)
    with torch.inference_mode():
        assert all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(scripted(x), model(x), strict=True))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_trace_keeps_sizes_free(name):
    """Recorded at one size and batch, `torch.jit.trace` serves others, as it does of timm's ConvNeXt."""
    model = shallow(name).eval()
    part = 3 if restores(name) else 1
    for example in ((1, 3, 64, 96), (2, 3, 97, 75)):
        x = torch.rand(*example)
        with torch.no_grad():
            traced = torch.jit.trace(model, x[:, :, : x.shape[2] // part, : x.shape[3] // part], check_trace=False)
        for size in ((1, 3, 64, 96), (2, 3, 97, 75), (1, 3, 224, 224), (3, 3, 33, 130), (1, 3, 18, 40)):
            x = torch.rand(size[0], size[1], size[2] // part, size[3] // part)
            with torch.inference_mode():
                assert torch.allclose(traced(x), model(x), rtol=1e-4, atol=1e-4), (example, size)


def test_fx(name):
    model = shallow(name).eval()
    tracer = dict(leaf_modules=get_notrace_modules(), autowrap_functions=get_notrace_functions())
    _, nodes = get_graph_node_names(model, tracer_kwargs=tracer)
    graph = create_feature_extractor(model, return_nodes=[nodes[-1]], tracer_kwargs=tracer)
    # Another size than the example's: nothing may be baked in.
    for size in ((64, 64), (97, 130)):
        x = torch.randn(1, 3, *size)
        with torch.inference_mode():
            assert torch.equal(*graph(x).values(), model(x))


# Of each family's file one; the others, and HAT's many layers, take minutes.
FIRST_OF_FAMILY = {group_of(name).family: name for name in reversed(ONE_OF_A_KIND) if not restores(name)}.values()


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [name if name in FIRST_OF_FAMILY else pytest.param(name, marks=pytest.mark.slow) for name in ONE_OF_A_KIND],
)
def test_export_keeps_sizes_free(name):
    """An exported graph serves other sizes and batches, the unpadded 224 and the padded rest alike."""
    model = shallow(name, features_only=True).eval()
    dynamic = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    # Without the first PyTorch tells apart whether a size is 1; with the cache it takes half as long again.
    sizes, cache = dict(backed_size_oblivious=True), dict(fake_tensor_cache_enabled=False)
    with torch.fx.experimental._config.patch(**sizes), torch._dynamo.config.patch(**cache):
        program = torch.export.export(
            model,
            (torch.randn(2, 3, 256, 320),),
            dynamic_shapes=(dynamic,),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        ).module()
    for size in ((3, 3, 75, 130), (1, 3, 224, 224), (1, 3, 97, 500)):
        x = torch.randn(*size)
        with torch.inference_mode():
            for a, b in zip(program(x), model(x), strict=True):
                assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_compiles_to_one_graph(name):
    # The models share code, and what is compiled of it counts against one limit.
    torch._dynamo.reset()
    model = shallow(name).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = torch.randn(1, 3, 64, 97)
    with torch.inference_mode():
        assert torch.allclose(compiled(x), model(x), rtol=1e-4, atol=1e-5)


def test_layer_groups_order_every_parameter(name):
    model = shallow(name)
    levels = model.feature_info
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
        assert set(groups) == {key for key, _ in model.named_parameters()}
        assert groups[f"{model.pretrained_cfg['first_conv']}.weight"] == 0
        inside = [
            [depth for key, depth in groups.items() if key.startswith(f"{module}.")]
            # CoaT's scales leave the parallel blocks together.
            for module in dict.fromkeys(re.sub(r"^(parallel_blocks)\..*", r"\1", level["module"]) for level in levels)
        ]
        assert all(max(a) < max(b) for a, b in pairwise(filter(None, inside)))
        if not restores(name):
            classifier = model.pretrained_cfg["classifier"]
            assert groups[f"{classifier}.weight"] == max(groups.values())


def test_drop_path_reaches_the_last_block(name):
    rates = [m.drop_prob for m in shallow(name, drop_path_rate=0.2).modules() if isinstance(m, DropPath)]
    # timm's MobileNets divide by the number of blocks, where others divide by that of the steps between them.
    last = 0.2 * len(rates) / (len(rates) + 1) if name.startswith("mobilenet") else 0.2
    assert rates and max(rates) == rates[-1] == pytest.approx(last) and min(rates) > 0
    assert not [m for m in shallow(name).modules() if isinstance(m, DropPath)] or restores(name)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("van_b0", dict(depths=(1, 1)), "one entry a stage"),
        ("biformer_tiny", dict(depths=(1, 1)), "one entry a stage"),
        ("biformer_tiny", dict(n_win=2), "n_win"),
        ("biformer_tiny", dict(embed_dims=(40, 128, 256, 512)), "head_dim"),
        ("biformer_tiny", dict(topks=(0, 4, 16, -2)), "topks"),
    ],
)
def test_bad_arguments(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model(name, **kwargs)
