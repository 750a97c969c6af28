"""Plug-in attention in models that exist already."""

import copy
import pickle
import threading
from functools import partial

import pytest
import timm
import torch
from timm.models import group_parameters
from torch import nn
from torch.utils.checkpoint import checkpoint

import attnzoo
from attnzoo.backbones import modules
from attnzoo.backbones.modules.attach import Gated

FAMILIES = {
    "resnet18": dict(layers=(1, 1, 1, 1)),
    "resnet50": dict(layers=(1, 1, 1, 1), channels=(16, 32, 64, 128)),
    "regnetx_002": {},
    "regnety_002": {},
    "convnext_atto": dict(depths=(1, 1, 1, 1)),
    "mobilenetv2_035": {},
    "mobilenetv3_small_050": {},
    "mobilenetv4_conv_small_035": {},
    "efficientnet_b0": {},
}


def make(name: str, **kwargs) -> nn.Module:
    kwargs = {**FAMILIES.get(name, {}), **kwargs}
    model = timm.create_model(name, **kwargs).eval()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, 1.0, 0.1)
        # ConvNeXt's scale of 1e-6 hides all that happens in a branch.
        if isinstance(getattr(part, "gamma", None), nn.Parameter):
            nn.init.ones_(part.gamma)
    return model


def outputs(model, x):
    with torch.inference_mode():
        found = model(x)
    return found if isinstance(found, list) else [found]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("where", ["stages", "blocks"])
@pytest.mark.parametrize("features_only", [False, True])
def test_starts_as_the_original_function(name, where, features_only):
    """Bit for bit, with every old weight under its old name; and the module is really there."""
    x = torch.randn(1, 3, 65, 97)
    model = make(name, features_only=features_only)
    weights = copy.deepcopy(model.state_dict())
    want = outputs(model, x)
    assert attnzoo.attach(model, "triplet", where) is model
    assert not model.training
    assert all(torch.equal(a, b) for a, b in zip(outputs(model, x), want, strict=True))
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in weights.items())
    gates = [part for part in model.modules() if isinstance(part, Gated)]
    assert len(gates) >= (3 if where == "stages" else 4)
    for gate in gates:
        nn.init.ones_(gate.weight)
    changed = outputs(model, x)
    assert changed[-1].shape == want[-1].shape and not torch.allclose(changed[-1], want[-1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in modules.NAMES if name != "ela_base"])
def test_every_module(name):
    """`lka` begins as the identity by itself, all others behind a gate that opens in the first step."""
    # Narrow, and several images: of one alone a ReLU may be dead.
    model, x = make("resnet18", channels=(16, 32, 64, 128)), torch.randn(8, 3, 96, 96)
    want = outputs(model, x)
    attnzoo.attach(model, name, where=(2, 3, 4)).train()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
    assert torch.equal(outputs(model, x)[0], want[0])
    new = [part for part in model.modules() if isinstance(part, (Gated, modules.LKA))]
    assert len(new) == 3 and all(isinstance(part, modules.LKA) == (name == "lka") for part in new)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    for part in new:
        for key, parameter in part.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, key


def test_bare_module_is_the_papers():
    model = attnzoo.attach(make("resnet18"), "ela", where=4, identity=False, kernel_size=5)
    assert isinstance(model.layer4[1], modules.ELA) and model.layer4[1].conv.kernel_size == (5,)
    assert not [part for part in model.modules() if isinstance(part, Gated)]


def test_blocks_by_name():
    model = attnzoo.attach(make("resnet50"), "cbam", where=["layer[34].*"])
    assert [isinstance(getattr(model, f"layer{i}")[0].se, Gated) for i in (1, 2, 3, 4)] == [False, False, True, True]
    assert model.layer3[0].se.module.fc1.in_features == 256
    convnext = attnzoo.attach(make("convnext_atto", drop_path_rate=0.1), "eca", where="stages.3.blocks.0")
    assert [type(part).__name__ for part in convnext.stages[3].blocks[0].drop_path] == ["Gated", "DropPath"]


def test_own_pyramids_have_stages():
    model = timm.create_model("van_b0", depths=(1, 1, 1, 1)).eval()
    x = torch.randn(1, 3, 64, 64)
    want = outputs(model, x)
    attnzoo.attach(model, "cbam", where=(1, 3))
    assert torch.equal(outputs(model, x)[0], want[0])
    assert isinstance(model.stages[3].blocks[1].module, modules.CBAM)


def test_modes_device_and_dtype_follow_the_model():
    model = timm.create_model("resnet18", layers=(1, 1, 1, 1), dtype=torch.bfloat16, in_chans=1)
    model.layer1.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    attnzoo.attach(model, "das", where=(1, 2))
    assert model.training and not model.layer1[0].training and model.layer2[1].training
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    # The image of zeros leaves no trace in the running statistics.
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert not [part for part in model.modules() if part._forward_hooks]
    meta = attnzoo.attach(timm.create_model("resnet18", device="meta"), "ela", where="blocks")
    assert all(p.is_meta for p in meta.parameters())


@pytest.mark.parametrize("name", ["resnet18", "regnetx_002", "convnext_atto", "mobilenetv2_035"])
def test_training_tools_know_the_modules(name):
    """Layer-wise decay sees a stage's module as its last block; recomputation gives the same gradients."""
    model = attnzoo.attach(make(name), "pkcam", identity=False)
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    new = {f"{key}." for key, part in model.named_modules() if isinstance(part, modules.Remembering)}
    for prefix in new:
        stage = prefix.rsplit(".", 2)[0]
        inside = {key: depth for key, depth in groups.items() if key.startswith(f"{stage}.")}
        own = {depth for key, depth in inside.items() if key.startswith(prefix)}
        assert own == {max(inside.values())}
    x, grads = torch.randn(2, 3, 64, 64), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model.double()(x.double()).square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(*grads, strict=True))


def test_pkcam_links_the_stages():
    model = attnzoo.attach(make("resnet18"), "pkcam", where=(2, 3, 4), identity=False)
    rows = [part for part in model.modules() if isinstance(part, modules.Remembering)]
    assert [part.module.previous for part in rows] == [0, 1, 2]
    x = torch.randn(1, 3, 64, 64)
    want = outputs(model, x)[0]
    twin = copy.deepcopy(model)
    assert torch.equal(outputs(twin, x)[0], want)
    assert torch.equal(outputs(pickle.loads(pickle.dumps(model)), x)[0], want)
    twins = [part for part in twin.modules() if isinstance(part, modules.Remembering)]
    assert twins[0].row is twins[2].row and twins[0].row is not rows[0].row
    model(x).sum().backward()
    copy.deepcopy(model)  # with a descriptor of a training pass in the row


def pkcam_gradients(images: list[torch.Tensor], checkpointing: str) -> list[torch.Tensor]:
    """Of a loss over several passes, all before one backward; the last pass is abandoned, as by an error."""
    torch.manual_seed(0)
    model = attnzoo.attach(make("resnet18"), "pkcam").double().train()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 0.0
        if isinstance(part, Gated):
            nn.init.ones_(part.weight)
    model.set_grad_checkpointing(checkpointing == "blocks")
    run = model
    if checkpointing in ("model", "reentrant"):
        run = partial(checkpoint, model, use_reentrant=checkpointing == "reentrant")
    outputs = [run(x) for x in images]
    model(images[0].flip(3) + 1)
    loss = sum((i + 1) * out.square().mean() for i, out in enumerate(outputs))
    (row,) = {part.row for part in model.modules() if isinstance(part, modules.Remembering)}
    kept = []

    def backward(loss: torch.Tensor) -> None:
        loss.backward()
        kept.extend(vars(row.of_thread).values())

    # Autograd has threads of its own for GPUs.
    thread = threading.Thread(target=backward, args=(loss,))
    thread.start()
    thread.join()
    kept.extend(vars(row.of_thread).values())
    del outputs, loss, thread
    assert not row.passing and not row.entries and len(kept) > 0 and not any(kept)
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("checkpointing", ["blocks", "model"])
def test_pkcam_keeps_nothing_between_passes(checkpointing):
    """Recomputed activations are those of their own pass, however many came between."""
    images = [torch.randn(2, 3, 64, 64, dtype=torch.float64) * (i + 1) for i in range(3)]
    # One image twice: both passes are the same, and each has its own graph.
    images += [images[0]]
    want = pkcam_gradients(images, "none")
    for a, b in zip(pkcam_gradients(images, checkpointing), want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_pkcam_recomputes_a_whole_model_with_reentrant_checkpointing():
    images = [torch.randn(2, 3, 64, 64, dtype=torch.float64).requires_grad_() for _ in range(2)]
    want = pkcam_gradients(images, "none")
    for a, b in zip(pkcam_gradients(images, "reentrant"), want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_pkcam_runs_in_a_backward_hook():
    """A pass of other images, or of almost the same, is no recomputation of the one whose gradient is computed."""
    model = attnzoo.attach(make("resnet18"), "pkcam", identity=False).double()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for other in (3 * torch.randn_like(x), 1.001 * x):
        want, found = outputs(model, other)[0], []
        out = model(x)
        out.register_hook(lambda _, other=other, found=found: found.append(model(other).detach()))
        out.sum().backward()
        torch.testing.assert_close(*found, want, rtol=1e-9, atol=1e-12)


def test_pkcam_keeps_the_passes_of_threads_apart():
    """One thread runs a whole pass between every two stages of the other's."""
    model = attnzoo.attach(make("resnet18"), "pkcam", identity=False)
    images = [torch.randn(1, 3, 64, 64) * scale for scale in (1, 5)]
    want = [outputs(model, x)[0] for x in images]
    main = threading.get_ident()

    def interrupt(*_: object) -> None:
        if threading.get_ident() == main:
            thread = threading.Thread(target=lambda: found.append(outputs(model, images[1])[0]))
            thread.start()
            thread.join()

    for stage in (model.layer1, model.layer2, model.layer3):
        stage.register_forward_hook(interrupt)
    found: list[torch.Tensor] = []
    assert torch.equal(outputs(model, images[0])[0], want[0])
    assert len(found) == 3 and all(torch.equal(x, want[1]) for x in found)


def test_pkcam_refuses_what_it_cannot_recompute():
    model = attnzoo.attach(make("resnet18"), "pkcam", where=(2, 3, 4)).train()
    x = torch.randn(2, 3, 64, 64)
    features = model.layer2(model.layer1(model.maxpool(model.act1(model.bn1(model.conv1(x))))))
    middle = checkpoint(model.layer3, features, use_reentrant=True)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        model.layer4(middle).sum().backward()
    with pytest.raises(RuntimeError, match="PKCAM 2 of a row needs those before it"):
        model.layer4(torch.randn(1, 256, 4, 4))


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_pkcam_refuses_reentrant_checkpointing_of_the_first_stages(stages):
    """The others have read descriptors without a graph; where nothing is lost by that, they may."""
    model = attnzoo.attach(make("resnet18"), "pkcam", identity=False).double()
    layers = [model.layer1, model.layer2, model.layer3, model.layer4]
    first, rest = nn.Sequential(*layers[:stages]), nn.Sequential(*layers[stages:])
    images = torch.randn(2, 64, 16, 16, dtype=torch.float64, requires_grad=True)

    def gradients(run_first) -> list[torch.Tensor]:
        rest.zero_grad()
        rest(run_first(images)).square().sum().backward()
        return [p.grad for p in rest.parameters()]

    def without_gradient(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return first(x)

    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        gradients(partial(checkpoint, first, use_reentrant=True))
    prefix = gradients(without_gradient)
    first.requires_grad_(False)
    images.requires_grad_(False)
    want = gradients(first)
    # Reentrant checkpointing warns where nothing is to be recomputed.
    with pytest.warns(UserWarning, match="None of the inputs"):
        frozen = gradients(partial(checkpoint, first, use_reentrant=True))
    for a, b, c in zip(want, prefix, frozen, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


@pytest.mark.long
def test_compiles_and_exports():
    model = attnzoo.attach(make("resnet18", features_only=True), "ela", where=(2, 3, 4), identity=False).eval()
    free = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with torch.fx.experimental._config.patch(backed_size_oblivious=True):
        program = torch.export.export(
            model,
            (torch.randn(2, 3, 64, 96),),
            dynamic_shapes=(free,),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    # PyTorch 2.11 binds an exported max pooling to whether the example's map is odd, 2.14 does not.
    exported_size = (1, 3, 128, 160) if torch.__version__ < "2.14" else (1, 3, 97, 65)
    for run, size in (
        (program.module(), exported_size),
        (compiled, (1, 3, 97, 65)),
        (torch.jit.script(model), (1, 3, 97, 65)),
    ):
        x = torch.randn(*size)
        for a, b in zip(run(x), outputs(model, x), strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "module", "where", "message"),
    [
        ("resnet18", "elaa", "stages", r"'elaa'.*did you mean ela"),
        ("resnet18", None, "stages", r"None: no such name"),
        ("resnet18", "ela", 5, r"levels 0 to 4"),
        ("resnet18", "ela", None, r"where=None: 'stages', 'blocks', levels, or names"),
        ("resnet18", "ela", 2.5, r"where=2\.5: 'stages', 'blocks', levels, or names"),
        ("resnet18", "ela", True, r"where=True: 'stages', 'blocks', levels, or names"),
        ("resnet18", "ela", (2, "layer4.*"), r"'stages', 'blocks', levels, or names"),
        ("resnet18", "ela", ("stages", "blocks"), r"'stages', 'blocks', levels, or names"),
        ("resnet18", "ela", (), r"levels 0 to 4"),
        ("resnet18", "ela", 0, r"level 0 of ResNet \(act1\) is no row of blocks"),
        ("resnet18", "ela", "layer9.*", r"'layer9\.\*'.*blocks are layer1\.0 to layer4\.0"),
        ("resnet18", "pkcam", "blocks", r"'pkcam' links stages"),
        ("seresnet18", "ela", "blocks", r"layer1\.0: the place is taken, se is a SEModule"),
        ("convnext_atto", "ela_tiny", "stages", r"channels=40: a multiple of num_groups=32"),
        ("vit_tiny_patch16_224", "ela", "stages", r"no stages that are a row of blocks"),
        ("vit_tiny_patch16_224", "ela", "blocks", r"VisionTransformer has no blocks with a place"),
        ("swin_tiny_patch4_window7_224", "ela", (1,), r"give \(1, 28, 28, 192\) at level 1, not a map"),
        ("pvt_v2_b0", "ela", (1,), r"no row of blocks"),
    ],
)
def test_refuses_where_there_is_no_place(name, module, where, message):
    model = timm.create_model(name, **FAMILIES.get(name, {}))
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        attnzoo.attach(model, module, where)
    assert list(model.state_dict()) == keys and model.training


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        ("pkcam", {"previous": 7}, "'pkcam': previous follows from the place"),
        ("ela", {"previous": 7}, "'ela': no option 'previous'; it has kernel_size, group_size, num_groups"),
        ("strip", {"surprise": 1}, "'strip': no option 'surprise'"),
        ("ela", {"device": "cpu"}, "'ela': device follows from the place"),
    ],
)
def test_refuses_options_that_nothing_uses(module, options, message):
    model = timm.create_model("resnet18")
    keys = list(model.state_dict())
    with pytest.raises(TypeError, match=message):
        attnzoo.attach(model, module, **options)
    assert list(model.state_dict()) == keys


def test_identity_is_true_or_false():
    model = timm.create_model("resnet18")
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match="identity='no': True or False is needed"):
        attnzoo.attach(model, "ela", identity="no")
    assert list(model.state_dict()) == keys


def test_a_place_is_taken_once():
    model = attnzoo.attach(make("mobilenetv2_035"), "eca", where="blocks")
    with pytest.raises(ValueError, match=r"place is taken, bn2\.act is a Gated"):
        attnzoo.attach(model, "eca", where="blocks")
