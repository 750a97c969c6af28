"""CoaT: timm's models under timm's names, with any size, in the published dense layout."""

import re
from functools import partial

import golden_files
import pytest
import timm
import torch
from timm.models import coat as original

from attnzoo.backbones.coat import CoaT, checkpoint_filter_fn

PARALLEL = dict(serial_depths=(1, 1, 1, 1), parallel_depth=2)
NAMES = list(original.default_cfgs)


def published(file: str) -> dict[str, torch.Tensor]:
    """As the authors' files are: shared tensors under every one of their names, norms that are never used."""
    golden = golden_files.load(file)
    weights = golden_files.checkpoint(golden)
    return {**weights, **{alias: weights[name] for alias, name in golden["aliases"].items()}}


@pytest.mark.parametrize("file", ["coat_lite_tiny", "coat_tiny"])
def test_published_files_have_shared_and_unused_tensors(file):
    golden = golden_files.load(file)
    model = timm.create_model(file)
    weights = golden_files.checkpoint(golden)
    found, want = checkpoint_filter_fn(published(file), model), checkpoint_filter_fn(weights, model)
    assert found.keys() == want.keys() == model.state_dict().keys()
    assert all(torch.equal(found[key], value) for key, value in want.items())
    unused = [k for k in golden["tensors"] if k.startswith("norm") and k not in model.state_dict()]
    assert sum(p.numel() for p in model.parameters()) + sum(weights[k].numel() for k in unused) == golden["params"]


@pytest.mark.parametrize("name", NAMES)
def test_stands_in_place_of_timms(name):
    model = timm.create_model(name, device="meta")
    assert type(model) is CoaT and isinstance(model, original.CoaT)
    theirs, ours = original.default_cfgs[name].default, model.pretrained_cfg
    assert ours["hf_hub_id"] == f"timm/{name}.in1k" and tuple(ours["input_size"]) == theirs.input_size
    assert not ours["fixed_input_size"]
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    assert shapes == {k: v.shape for k, v in getattr(original, name)(device="meta").state_dict().items()}


@pytest.mark.parametrize("kwargs", [dict(serial_depths=(1, 2, 1, 1)), PARALLEL], ids=["lite", "parallel"])
@pytest.mark.parametrize("training", [False, True])
def test_equals_timms_at_its_size(kwargs, training):
    """Outputs, features and gradients, also with several images."""
    torch.manual_seed(0)
    kwargs = dict(kwargs, patch_size=4, embed_dims=(48, 64, 64, 64), num_classes=5)
    theirs = original.CoaT(img_size=(64, 96), **kwargs).double().train(training)
    ours = CoaT(**kwargs).double().train(training)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    # The first timm of those supported has no maps of CoaT.
    if hasattr(theirs, "forward_intermediates"):
        for a, b in zip(
            ours.forward_intermediates(x, norm=True, intermediates_only=True),
            theirs.forward_intermediates(x, norm=True, intermediates_only=True),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    a, b = ours(x), theirs(x)
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    a.square().sum().backward(), b.square().sum().backward()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize("name", ["coat_tiny", "coat_lite_tiny"])
def test_maps_of_any_size(name):
    model = timm.create_model(name, features_only=True, out_indices=(0, 1, 2, 3)).eval()
    with torch.inference_mode():
        maps = model(torch.randn(1, 3, 200, 264))
        assert [tuple(x.shape[2:]) for x in maps] == [(50, 66), (25, 33), (12, 16), (6, 8)]
        assert [tuple(x.shape[2:]) for x in model(torch.randn(2, 3, 47, 33))] == [(11, 8), (5, 4), (2, 2), (1, 1)]


@pytest.mark.parametrize("kwargs", [{}, PARALLEL], ids=["lite", "parallel"])
def test_named_maps_of_timms_option(kwargs):
    kwargs = dict(kwargs, patch_size=4, embed_dims=(64, 64, 64, 64), serial_depths=(1, 1, 1, 1))
    kwargs |= dict(return_interm_layers=True, out_features=["x1_nocls", "x4_nocls"])
    model = CoaT(**kwargs).eval()
    with torch.inference_mode():
        x = torch.randn(1, 3, 65, 97)
        named, maps = model(x), model.forward_intermediates(x, intermediates_only=True)
    assert list(named) == ["x1_nocls", "x4_nocls"]
    assert torch.equal(named["x1_nocls"], maps[0]) and torch.equal(named["x4_nocls"], maps[3])


@pytest.mark.parametrize("file", ["coat_lite_tiny", "coat_tiny"])
@pytest.mark.parametrize("prefix", ["backbone.", "backbone.bottom_up.backbone.", "backbone.0.backbone.", "module."])
def test_published_files_load(file, prefix):
    """Layouts of mmdet, Detectron2, Deformable DETR, and of a classifier trained in parallel."""
    weights = {k: v.float() for k, v in published(file).items()}
    left_out = () if prefix == "module." else ("norm", "head.", "aggregate.")
    wrapped = {f"{prefix}{k}": v for k, v in weights.items() if not (left_out and k.startswith(left_out))}
    if left_out:
        wrapped |= {"backbone.fpn_lateral2.weight" if "bottom_up" in prefix else "neck.weight": torch.ones(1)}
    model = timm.create_model(file)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(checkpoint_filter_fn({"model": wrapped}, model), strict=True)
    for key, value in model.state_dict().items():
        kept = bool(left_out) and key.startswith(left_out)
        assert torch.equal(value, before[key] if kept else weights[key]), key


def test_pruning_keeps_what_the_maps_need():
    x = torch.randn(1, 3, 64, 64)
    for name, kwargs in (("coat_lite_tiny", dict(serial_depths=(1, 1, 1, 1))), ("coat_tiny", PARALLEL)):
        whole = timm.create_model(name, **kwargs).eval()
        for last in range(4):
            short = timm.create_model(name, features_only=True, out_indices=(last,), **kwargs).eval()
            short.model.load_state_dict({k: v for k, v in whole.state_dict().items() if k in short.model.state_dict()})
            with torch.inference_mode():
                assert torch.equal(short(x)[0], whole.forward_intermediates(x)[1][last])
        serial = timm.create_model(name, features_only=True, out_indices=(0,), **kwargs)
        assert not any(k.startswith(("model.serial_blocks2", "model.parallel")) for k, _ in serial.named_parameters())


@pytest.mark.parametrize(
    ("parallel_depth", "indices", "left"), [(2, [3], [0, 3]), (2, [0, 1], [0, 1]), (2, [0], [0]), (0, [1], [0, 1])]
)
def test_a_pruned_scale_is_refused(parallel_depth, indices, left):
    """Its map is no longer the model's. Those of the others are, and so is what the model returns unasked."""
    model = CoaT(patch_size=4, embed_dims=(32,) * 4, serial_depths=(1,) * 4, parallel_depth=parallel_depth).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        want = model.forward_intermediates(x, intermediates_only=True)
        assert model.prune_intermediate_layers(indices, prune_norm=True) == indices
        last, maps = model.forward_intermediates(x)
    for i, found in zip(left, maps, strict=True):
        assert torch.equal(found, want[i])
    assert isinstance(last, list) == (model.parallel_blocks is not None)
    for tokens, found in zip(last if isinstance(last, list) else [last], maps[1:] or maps, strict=True):
        assert torch.equal(tokens[:, 1:], found.flatten(2).transpose(1, 2))
    for scale in {*range(4)} - {*left}:
        # timm's error behind the last scale, as of other pruned models.
        error = (ValueError, "has been pruned") if scale < left[-1] else (AssertionError, "out of range")
        for ask in (model.prune_intermediate_layers, partial(model.forward_intermediates, x)):
            with pytest.raises(error[0], match=error[1]):
                ask([scale])


@pytest.mark.parametrize("out_indices", [(0, 1), (1,), (1, 2), (2,), (3,), (0, 3), (0, 1, 2, 3)])
def test_features_leave_no_parameter_without_gradient(out_indices):
    """The maps of the whole model, from a model all of which they need: distributed training asks for that."""
    whole = timm.create_model("coat_tiny", **PARALLEL).double()
    short = timm.create_model("coat_tiny", features_only=True, out_indices=out_indices, **PARALLEL).double()
    state = whole.state_dict()
    short.model.load_state_dict({k: v for k, v in state.items() if k in short.model.state_dict()}, strict=True)
    # Others than those of the classifier are left out of the last block alone.
    left = {
        k for k in state.keys() - short.model.state_dict().keys() if not k.startswith(("norm", "aggregate", "head"))
    }
    scales = {i + 1 for i in out_indices}
    assert {re.match(r"parallel_blocks\.1\.(?:norm2|mlp)(\d)\.", k)[1] for k in left} == {*"234"} - {*map(str, scales)}
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    maps = short(x)
    for i, found in zip(out_indices, maps, strict=True):
        assert torch.equal(found, whole.forward_intermediates(x)[1][i])
    sum(found.square().sum() for found in maps).backward()
    assert not [key for key, p in short.named_parameters() if p.grad is None]


def test_checkpointing_reaches_serial_and_parallel_blocks():
    model = timm.create_model("coat_tiny", **PARALLEL).train()
    model.set_grad_checkpointing()
    calls = []
    for norm in (model.serial_blocks1[0].norm1, model.parallel_blocks[0].norm12):
        norm.register_forward_hook(lambda *_: calls.append(1))
    model(torch.randn(1, 3, 64, 64)).sum().backward()
    assert len(calls) == 4
