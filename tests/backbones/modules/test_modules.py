"""Plug-in attention: the published functions, any map, half precision, gradients, export, and what timm makes of it."""

import copy
import inspect
import io
import pickle
import re
from functools import partial

import golden_files
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import create_attn, get_attn
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import attnzoo
from attnzoo.backbones import modules

SIZES = [(1, 1), (1, 5), (5, 1), (7, 5), (8, 8)]


def random(name: str, channels: int = 64, **kwargs) -> nn.Module:
    """In evaluation mode, with statistics and offsets that are not those of the beginning."""
    module = modules.create(name, channels, **kwargs).double()
    for key, value in module.state_dict().items():
        if value.is_floating_point():
            value.copy_(golden_files.fill(f"{name}.{key}", value.shape) if value.dim() else value)
    return module.eval()


def image(*shape) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize(
    ("file", "name", "kwargs", "output"),
    [
        ("cbam_module", "cbam", {}, "out"),
        ("triplet_module", "triplet", {}, "out"),
        ("triplet_module", "triplet", {"spatial": False}, "out_no_spatial"),
        ("ela_module", "ela", {}, "out"),
        ("ela_module", "ela_base", {}, "out"),
    ],
)
def test_equals_published_implementation(file, name, kwargs, output):
    golden = golden_files.load(file)
    module = modules.create(name, 64, **kwargs).double().eval()
    weights = golden_files.checkpoint(golden)
    if kwargs:
        weights = {key: value for key, value in weights.items() if not key.startswith("hw.")}
    else:
        assert sum(p.numel() for p in module.parameters()) == golden["params"]
    module.load_state_dict(weights, strict=True)
    assert golden_files.error(module(golden_files.image(golden)), golden["outputs"][output]) < 1e-9


def test_published_names_load_wherever_the_module_sits():
    golden = golden_files.load("triplet_module")
    weights = golden_files.checkpoint(golden)
    for root, inner in (("cw.conv", "ChannelGateH.spatial"), ("hc.conv", "ChannelGateW.spatial"),
                        ("hw.conv", "SpatialGate.spatial")):  # fmt: skip
        weights = {key.replace(root, inner, 1): value for key, value in weights.items()}
    model = nn.Sequential(nn.Identity(), modules.create("triplet", 64)).double().eval()
    model.load_state_dict({f"1.{key}": value for key, value in weights.items()}, strict=True)
    assert golden_files.error(model(golden_files.image(golden)), golden["outputs"]["out"]) < 1e-9
    with pytest.raises(RuntimeError, match="Unexpected"):
        model.load_state_dict({**model.state_dict(), "1.surprise": torch.ones(1)})


def test_squeeze_and_excitation_of_timm_is_the_papers():
    module, x = random("se", 80), image(2, 80, 6, 5)
    assert module.fc1.out_channels == 80 // 16
    hidden = F.relu(x.mean((2, 3)) @ module.fc1.weight.flatten(1).T + module.fc1.bias)
    gate = torch.sigmoid(hidden @ module.fc2.weight.flatten(1).T + module.fc2.bias)
    assert torch.allclose(module(x), x * gate[:, :, None, None])


@pytest.mark.parametrize(("channels", "kernel"), [(16, 3), (64, 3), (256, 5), (2048, 7)])
def test_efficient_channel_attention_of_timm_is_the_papers(channels, kernel):
    module, x = random("eca", channels), image(2, channels, 3, 2)
    weight = module.conv.weight.flatten()
    assert len(weight) == kernel
    means = F.pad(x.mean((2, 3)), (kernel // 2, kernel // 2))
    gate = (means.unfold(1, kernel, 1) @ weight).sigmoid()
    assert torch.allclose(module(x), x * gate[:, :, None, None])


def test_coordinate_attention_of_timm_is_the_papers():
    """Equations 4 to 8 of the paper; the names are those of the published checkpoint."""
    module, x = random("coord", 320), image(2, 320, 5, 3)
    assert {key.partition(".")[0] for key in module.state_dict()} == {"conv1", "bn1", "conv_h", "conv_w"}
    assert module.conv1.out_channels == 10 and module.conv1.bias is not None

    def embed(strip):
        y = module.bn1(F.conv2d(strip[..., None], module.conv1.weight, module.conv1.bias))
        return y * F.relu6(y + 3) / 6

    rows, columns = (module.conv_h(embed(x.mean(3))).sigmoid(), module.conv_w(embed(x.mean(2))).sigmoid())
    assert torch.allclose(module(x), x * rows * columns.transpose(2, 3))


def test_bam_is_the_papers():
    module, x = random("bam", 32), image(2, 32, 9, 7)
    channel, spatial = module.channel(x.mean((2, 3))), module.spatial(x)
    assert spatial.shape == (2, 1, 9, 7) and module.spatial[3].dilation == (4, 4)
    want = torch.stack([x[:, c] * (1 + (channel[:, c, None, None] * spatial[:, 0]).sigmoid()) for c in range(32)], 1)
    assert torch.allclose(module(x), want)


def test_ulsam_runs_every_subspace_by_itself():
    module, x = random("ulsam", 12, num_splits=3), image(2, 12, 5, 4)
    parts = []
    for i, part in enumerate(x.split(4, 1)):
        channels = slice(4 * i, 4 * i + 4)
        y = part * module.depthwise.weight[channels].view(1, -1, 1, 1) + module.depthwise.bias[channels, None, None]
        bn = module.bn1
        scale = (bn.weight / (bn.running_var + bn.eps).sqrt())[channels, None, None]
        y = F.relu((y - bn.running_mean[channels, None, None]) * scale + bn.bias[channels, None, None])
        y = F.max_pool2d(y, 3, 1, 1)
        y = F.conv2d(y, module.pointwise.weight[i : i + 1], module.pointwise.bias[i : i + 1])
        bn = module.bn2
        y = F.relu((y - bn.running_mean[i]) * bn.weight[i] / (bn.running_var[i] + bn.eps).sqrt() + bn.bias[i])
        parts.append(part + part * y.flatten(1).softmax(1).view(2, 1, 5, 4))
    assert torch.allclose(module(x), torch.cat(parts, 1))


def test_das_without_offsets_is_a_gated_convolution():
    """At the start every tap is at its regular place and has the weight 0.5."""
    module, x = random("das", 20), image(2, 20, 6, 9)
    offsets = module(x)
    module.reset_sampling()
    hidden = F.gelu(F.instance_norm(module.pointwise(module.depthwise(x))))
    assert hidden.shape[1] == 4
    plain = x * module.norm(0.5 * module.deform(hidden)).sigmoid()
    assert torch.allclose(module(x), plain)
    assert not torch.allclose(offsets, plain)


def test_pkcam_reads_earlier_layers():
    """Equal to the repository's sums, and every earlier layer counts."""
    module, x = random("pkcam", 32, previous=2), image(2, 32, 4, 3)
    previous = [image(2, 16).abs(), image(2, 12).abs()]
    own = x.mean((2, 3))
    rows = torch.stack([previous[0].repeat(1, 2), previous[1].repeat(1, 3)[:, :32], own], 2)
    merged = F.relu(rows @ module.merge.weight.flatten())
    local, context = (
        F.conv1d(y[:, None], conv.weight, padding="same").sigmoid()[:, 0]
        for y, conv in ((own, module.local), (merged, module.context))
    )
    scale = (torch.stack((local, context), 2) @ module.fuse.weight.flatten()).sigmoid()
    assert torch.allclose(module(x, previous), x * (1 + scale[:, :, None, None]))
    with pytest.raises(ValueError, match=r"0 descriptors.*made for 2"):
        module(x)
    first = random("pkcam", 32)
    local = F.conv1d(own[:, None], first.local.weight, padding="same").sigmoid()[:, 0]
    assert torch.allclose(first(x), x * (1 + local[:, :, None, None]))


def test_large_kernel_attention_can_begin_as_the_identity():
    module, x = random("lka", 8), image(1, 8, 7, 5)
    assert not torch.allclose(module(x), x)
    module.init_identity()
    assert torch.equal(module(x), x)


@pytest.mark.parametrize("name", modules.NAMES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_any_map(name, size):
    module = random(name)
    x = image(2, 64, *size)
    out = module(x)
    assert out.shape == x.shape and out.isfinite().all()
    assert torch.allclose(module(x[1:]), out[1:])
    last = module(x.to(memory_format=torch.channels_last))
    assert torch.allclose(last, out)


@pytest.mark.parametrize("name", modules.NAMES)
def test_no_images(name):
    module, x = random(name), image(0, 64, 5, 3).requires_grad_()
    out = module(x)
    out.sum().backward()
    assert out.shape == x.shape == x.grad.shape


@pytest.mark.parametrize("name", modules.NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(name, dtype):
    module = random(name).float()
    x = image(2, 64, 7, 5).float()
    want = module(x)
    out = module.to(dtype)(x.to(dtype))
    assert out.dtype == dtype
    assert (out.float() - want).abs().max() < (0.05 if dtype == torch.bfloat16 else 0.01) * want.abs().max()


@pytest.mark.parametrize("name", modules.NAMES)
def test_gradients(name):
    module = random(name, 32).train()
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.momentum = 0.0
    x = image(2, 32, 3, 4).requires_grad_()
    # Along one random direction: the whole of a numerical Jacobian would take minutes.
    direction = image(2, 32, 3, 4)[:, torch.randperm(32)]
    weights = image(2, 32, 3, 4).roll(1, 1)
    (module(x) * weights).sum().backward()
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key
    step = 1e-6
    with torch.no_grad():
        numerical = ((module(x + step * direction) - module(x - step * direction)) * weights).sum() / (2 * step)
    assert numerical.item() == pytest.approx((x.grad * direction).sum().item(), rel=1e-5)


class Each(nn.ModuleDict):
    """The output of each module for the same input."""

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [module(x) for module in self.values()]


@pytest.mark.long
def test_onnx_with_free_sizes():
    """All in one graph: most of the exporter's time does not depend on how much there is to export."""
    onnxruntime = pytest.importorskip("onnxruntime")
    # ELA's others are of one kind with these.
    names = [name for name in modules.NAMES if name not in ("ela_base", "ela_small")]
    if tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 25):
        # Its earlier versions cannot run deformable convolution.
        names.remove("das")
    model = Each({name: random(name, 32).float() for name in names})
    free = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with torch.fx.experimental._config.patch(backed_size_oblivious=True):
        program = torch.onnx.export(
            model,
            (torch.randn(2, 32, 10, 12),),
            dynamo=True,
            opset_version=20,
            dynamic_shapes=(free,),
            verbose=False,
        )
    file = io.BytesIO()
    program.save(file)
    session = onnxruntime.InferenceSession(file.getvalue())
    for size in ((2, 32, 10, 12), (1, 32, 7, 5), (3, 32, 1, 9), (1, 32, 1, 1)):
        x = torch.randn(*size)
        with torch.inference_mode():
            want = model(x)
        out = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        for name, a, b in zip(names, out, want, strict=True):
            assert torch.allclose(torch.from_numpy(a), b, rtol=1e-4, atol=1e-5), (name, size)


@pytest.mark.parametrize("name", [name for name in modules.NAMES if name != "das"])
def test_compiles_and_scripts(name):
    module, x = random(name), image(2, 64, 7, 5)
    assert torch.allclose(torch.compile(module, backend="eager", fullgraph=True)(x), module(x))
    if name != "pkcam":
        assert torch.allclose(torch.jit.script(module)(x), module(x))


@pytest.mark.parametrize(
    ("name", "channels", "parameters"),
    [
        # 2 C^2/16 + C/16 + C for the channel gate, 98 + 2 for the spatial one.
        ("cbam", 256, 2 * 256 * 16 + 16 + 256 + 100),
        # The paper's 6 k^2, and two numbers of batch norm for each branch.
        ("triplet", 256, 6 * 49 + 6),
        # Channel branch, then spatial branch.
        ("bam", 256, (2 * 256 * 16 + 16 + 256 + 32) + (256 * 16 + 16 + 2 * (16 * 16 * 9 + 16) + 3 * 32 + 16 + 1)),
        ("ela_tiny", 256, 5 * 256 + 2 * 256),
        ("ela_base", 256, 7 * 256 + 2 * 256),
        ("ela_small", 256, 5 * 256 * 8 + 2 * 256),
        ("ela_large", 256, 7 * 256 * 8 + 2 * 256),
        ("eca", 256, 5),
        ("se", 256, 2 * 256 * 16 + 16 + 256),
        # The paper's 2 C, with biases and batch norms.
        ("ulsam", 256, 2 * 256 + 256 + 4 + 2 * 256 + 2 * 4),
    ],
)
def test_parameters(name, channels, parameters):
    assert sum(p.numel() for p in modules.create(name, channels).parameters()) == parameters


def test_figures_of_the_documentation():
    """The table of the package, at 256 channels and 56x56."""
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|.*\| (\d+) \| ([\d.]+) \|", modules.__doc__, re.MULTILINE)
    assert {name for names, *_ in rows for name in re.findall(r"\w+", names)} == set(modules.NAMES)
    for names, parameters, millions in rows:
        module = modules.create(re.findall(r"\w+", names)[0], 256).eval()
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            module(torch.randn(1, 256, 56, 56))
        count = counter.get_total_flops() / 2e6
        if isinstance(module, modules.DAS):
            # The counter does not know the deformable convolution.
            count += module.deform.weight.numel() * 56 * 56 / 1e6
        assert sum(p.numel() for p in module.parameters()) == int(parameters), names
        assert f"{count:.1f}" == millions, names


@pytest.mark.parametrize("name", modules.NAMES)
def test_timm_takes_every_name(name):
    attention = attnzoo.attention(name)
    layer = create_attn(attention, 64, device="meta")
    assert type(layer) is type(modules.create(name, 64))
    assert type(create_attn(pickle.loads(pickle.dumps(attention)), 64, act_layer=nn.ReLU)) is type(layer)
    model = timm.create_model("resnet50", block_args=dict(attn_layer=attention), layers=(1, 1, 1, 1)).eval()
    assert type(model.layer4[0].se) is type(layer)
    with torch.inference_mode():
        x = torch.randn(1, 3, 64, 64)
        want = model(x)
        assert want.shape == (1, 1000)
        assert torch.equal(copy.deepcopy(model)(x), want) and torch.equal(pickle.loads(pickle.dumps(model))(x), want)


def test_timms_other_builders_take_them_and_strings_stay_timms():
    attention = attnzoo.attention("triplet", kernel_size=3)
    model = timm.create_model("gcresnet33ts", attn_layer=attention, device="meta")
    assert type(model.stages[0][0].attn) is modules.TripletAttention
    assert model.stages[0][0].attn.without_height.conv.kernel_size == (3, 3)
    assert get_attn is timm.layers.create_attn.__globals__["get_attn"] and get_attn.__module__.startswith("timm.")
    for name in ("cbam", "coord", "eca", "ela", "scoord", "se", "strip"):
        assert type(create_attn(name, 64)).__module__.startswith("timm.")
    with pytest.raises(AssertionError, match="triplet"):
        create_attn("triplet", 64)


@pytest.mark.parametrize("name", modules.NAMES)
def test_a_switch_is_true_or_false(name):
    parameters = inspect.signature(modules.get(name)).parameters.values()
    for parameter in parameters:
        if isinstance(parameter.default, bool):
            for make in (partial(modules.create, name, 64), partial(attnzoo.attention, name)):
                with pytest.raises(ValueError, match=f"{parameter.name}='no': True or False is needed"):
                    make(**{parameter.name: "no"})


def test_unknown_names_and_bad_arguments():
    for wrong in (lambda: modules.create("cbm", 64), lambda: attnzoo.attention("cbm")):
        with pytest.raises(ValueError, match=r"'cbm'.*did you mean cbam"):
            wrong()
    for name in (None, 3, ["nothing"]):
        with pytest.raises(ValueError, match="no such name; known are bam"):
            modules.create(name, 64)
    for name, channels, kwargs, message in (
        ("ela", 24, {}, "channels=24.*num_groups=16"),
        ("ela_small", 20, {}, "channels=20.*group_size=8"),
        ("ela", 64, {"kernel_size": 4}, "kernel_size=4.*odd"),
        ("cbam", 64, {"kernel_size": 4}, "kernel_size=4.*odd"),
        ("cbam", 64, {"reduction": 0}, "reduction=0"),
        ("triplet", 0, {}, "channels=0"),
        ("das", 64, {"ratio": 1.5}, "ratio=1.5"),
        ("ulsam", 30, {}, "channels=30.*num_splits=4"),
        ("pkcam", 64, {"previous": -1}, "previous=-1"),
    ):
        with pytest.raises(ValueError, match=message):
            modules.create(name, channels, **kwargs)
    for name, option in (
        ("cbam", "surprise"),
        ("strip", "surprise"),
        ("eca", "kernel_size"),
        ("coord", "rd_ratio"),
        ("se", "rd_channels"),
    ):
        for make in (partial(modules.create, name, 64), partial(attnzoo.attention, name)):
            with pytest.raises(TypeError, match=rf"'{name}': no option '{option}'; it has "):
                make(**{option: 3})
    for name, option in (("ela", "device"), ("pkcam", "previous"), ("cbam", "channels")):
        with pytest.raises(TypeError, match=f"{option} follows from the place"):
            attnzoo.attention(name, **{option: 1})
