"""DyHead against the published code, restated in NumPy with the memory that compiled operators read."""

import math

import deploy_models
import numpy as np
import pytest
import torch
from mmdet.models.necks import DyHead as MMDetDyHead
from mmengine.registry import MODELS, init_default_scope

from attnzoo.heads import DyHead
from attnzoo.heads.deploy import deploy

CHANNELS = 32
SIZES = [(9, 7), (5, 4), (3, 2)]


def levels(sizes=SIZES, batch: int = 2, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, CHANNELS, *size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]


def published_checkpoint(blocks: int, biases: bool = True) -> dict[str, torch.Tensor]:
    """The tensors of `dyhead_tower`, by their published names."""
    c, generator = CHANNELS, torch.Generator().manual_seed(1)
    shapes = {
        **{f"DyConv.{i}.conv.weight": (c, c, 3, 3) for i in range(3)},
        **{f"DyConv.{i}.bn.{leaf}": (c,) for i in range(3) for leaf in ("weight", "bias")},
        **{"AttnConv.1.weight": (1, c, 1, 1), "AttnConv.1.bias": (1,)},
        **{"relu.fc.0.weight": (c // 4, c), "relu.fc.0.bias": (c // 4,)},
        **{"relu.fc.2.weight": (4 * c, c // 4), "relu.fc.2.bias": (4 * c,)},
        **{"offset.weight": (27, c, 3, 3), "offset.bias": (27,)},
    }
    if biases:
        shapes |= {f"DyConv.{i}.conv.bias": (c,) for i in range(3)}
    state = {}
    for block in range(blocks):
        for name, shape in shapes.items():
            noise = torch.randn(shape, generator=generator, dtype=torch.float64)
            # Large enough for offsets of more than a pixel, and for every gate to be open somewhere.
            scale = 1.0 if len(shape) == 1 else 2 / math.sqrt(math.prod(shape[1:]))
            state[f"{block}.{name}"] = noise * scale
    return state


def detector(state: dict[str, torch.Tensor]) -> dict:
    """As detectron2 saves it: the neck wraps the pyramid, which wraps the ResNet."""
    prefix = "backbone.dyhead_tower."
    others = {"backbone.backbone.fpn_lateral3.weight": torch.zeros(1), "head.cls_logits.weight": torch.zeros(1)}
    return {"model": {**others, **{prefix + key: value for key, value in state.items()}}, "iteration": 89999}


def conv3x3(x, weight, bias):
    height, width = x.shape[1:]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    taps = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return np.einsum("otc,tchw->ohw", weight.reshape(len(weight), -1, 9).transpose(0, 2, 1), np.stack(taps)) + bias


def deformable_conv(x, weight, bias, offset, mask, stride):
    """One image. Offsets and mask are flat memory: number `n` of an output of `size` places lies at `n * size + p`."""
    _, height, width = x.shape
    out_h, out_w = (height - 1) // stride + 1, (width - 1) // stride + 1
    size = out_h * out_w
    offset, mask = offset.ravel(), mask.ravel()
    out = np.tile(bias[:, None], (1, size))
    for place in range(size):
        row, column = divmod(place, out_w)
        for tap in range(9):
            y = row * stride - 1 + tap // 3 + offset[2 * tap * size + place]
            at = column * stride - 1 + tap % 3 + offset[(2 * tap + 1) * size + place]
            sample = np.zeros(len(x))
            for i in (math.floor(y), math.floor(y) + 1):
                for j in (math.floor(at), math.floor(at) + 1):
                    if 0 <= i < height and 0 <= j < width:
                        sample += (1 - abs(y - i)) * (1 - abs(at - j)) * x[:, i, j]
            out[:, place] += weight[:, :, tap // 3, tap % 3] @ sample * mask[tap * size + place]
    return out.reshape(-1, out_h, out_w)


def group_norm(x, weight, bias, groups=16):
    grouped = x.reshape(groups, -1)
    normed = (grouped - grouped.mean(1, keepdims=True)) / np.sqrt(grouped.var(1, keepdims=True) + 1e-5)
    return normed.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]


def enlarge(x, size):
    """Bilinear, corner to corner."""
    for axis, length in ((1, size[0]), (2, size[1])):
        place = np.arange(length) * (x.shape[axis] - 1) / max(length - 1, 1)
        low = np.minimum(place.astype(int), max(x.shape[axis] - 2, 0))
        high = np.minimum(low + 1, x.shape[axis] - 1)
        share = (place - low).reshape([-1 if i == axis else 1 for i in range(3)])
        x = x.take(low, axis) * (1 - share) + x.take(high, axis) * share
    return x


def hard_sigmoid(x):
    return np.clip(x + 3, 0, 6) / 6


def published_block(maps, p):
    """`DyConv` for one image, level by level."""
    out = []
    for level, x in enumerate(maps):
        both = conv3x3(x, p["offset.weight"], p["offset.bias"][:, None, None])
        offset, mask = both[:18], 1 / (1 + np.exp(-both[18:]))

        def branch(i, source, stride, offset=offset, mask=mask):
            bias = p.get(f"DyConv.{i}.conv.bias", np.zeros(CHANNELS))
            x = deformable_conv(source, p[f"DyConv.{i}.conv.weight"], bias, offset, mask, stride)
            return group_norm(x, p[f"DyConv.{i}.bn.weight"], p[f"DyConv.{i}.bn.bias"])

        branches = [branch(1, x, 1)]
        if level > 0:
            branches.append(branch(2, maps[level - 1], 2))
        if level < len(maps) - 1:
            branches.append(enlarge(branch(0, maps[level + 1], 1), x.shape[1:]))
        gates = [
            hard_sigmoid(max(float(p["AttnConv.1.weight"].ravel() @ one.mean((1, 2)) + p["AttnConv.1.bias"][0]), 0))
            for one in branches
        ]
        y = sum(gate * one for gate, one in zip(gates, branches, strict=True)) / len(branches)
        hidden = np.maximum(p["relu.fc.0.weight"] @ y.mean((1, 2)) + p["relu.fc.0.bias"], 0)
        factors = hard_sigmoid(p["relu.fc.2.weight"] @ hidden + p["relu.fc.2.bias"]) - 0.5
        a1, b1, a2, b2 = (part[:, None, None] for part in np.split(factors, 4))
        out.append(np.maximum(y * (2 * a1 + 1) + b1, y * 2 * a2 + b2))
    return out


def published_neck(state, inputs, blocks):
    outputs = []
    for image in range(len(inputs[0])):
        maps = [level[image].numpy() for level in inputs]
        for block in range(blocks):
            prefix = f"{block}."
            maps = published_block(
                maps, {k.removeprefix(prefix): v.numpy() for k, v in state.items() if k.startswith(prefix)}
            )
        outputs.append(maps)
    return [torch.from_numpy(np.stack(level)) for level in zip(*outputs, strict=True)]


def test_equals_the_published_code_through_its_checkpoint(tmp_path):
    state = published_checkpoint(blocks=2)
    torch.save(detector(state), tmp_path / "dyhead.pth")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "dyhead.pth"))
    neck = DyHead(CHANNELS, CHANNELS, num_blocks=2, init_cfg=init_cfg).double()
    neck.init_weights()
    inputs = levels()
    expected = published_neck(state, inputs, blocks=2)
    with torch.no_grad():
        found = neck(inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_the_biases_count():
    """GroupNorm does not cancel them: a neck without them is another function."""
    state = published_checkpoint(blocks=1)
    without = {key: value for key, value in state.items() if not key.endswith("conv.bias")}
    inputs = levels(batch=1)
    with_biases, no_biases = (published_neck(one, inputs, 1) for one in (state, without))
    assert max((a - b).abs().max() for a, b in zip(with_biases, no_biases, strict=True)) > 0.1


def test_mmdets_neck_on_these_operators_is_the_published_one_without_biases(tmp_path):
    """And so its checkpoints load here, with biases of zero."""
    theirs = MMDetDyHead(CHANNELS, CHANNELS, num_blocks=1).double()
    ours = DyHead(CHANNELS, CHANNELS, num_blocks=1).double()
    state = published_checkpoint(blocks=1, biases=False)
    theirs.load_state_dict(
        {
            key: value
            for key, value in ours.convert({f"dyhead_tower.{k}": v for k, v in state.items()}).items()
            if key in theirs.state_dict()
        }
    )
    inputs = levels()
    with torch.no_grad():
        found, expected = theirs(inputs), published_neck(state, inputs, 1)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
        # As mmdet saves a detector with the necks [FPN, DyHead].
        whole = {f"neck.1.{key}": value for key, value in theirs.state_dict().items()}
        torch.save({"state_dict": {"neck.0.lateral_convs.0.conv.weight": torch.zeros(1), **whole}}, tmp_path / "m.pth")
        ours.load_checkpoint(tmp_path / "m.pth")
        for one, other in zip(ours(inputs), found, strict=True):
            assert torch.equal(one, other)


def test_our_own_checkpoint_loads():
    one, other = DyHead(CHANNELS, CHANNELS, 2), DyHead(CHANNELS, CHANNELS, 2)
    other.load_state_dict(other.convert({f"neck.1.{key}": value for key, value in one.state_dict().items()}))
    for key, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])


def test_gradients_are_those_of_the_function():
    """Along a random direction through the maps and every parameter."""
    neck = DyHead(CHANNELS, CHANNELS, num_blocks=1).double()
    neck.load_state_dict(neck.convert({f"dyhead_tower.{k}": v for k, v in published_checkpoint(1).items()}))
    inputs = [level.requires_grad_() for level in levels(batch=1)]
    leaves = [*inputs, *neck.parameters()]
    generator = torch.Generator().manual_seed(3)
    weights, directions = (
        [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in tensors]
        for tensors in (inputs, leaves)
    )

    def value() -> torch.Tensor:
        return sum((out * weight).sum() for out, weight in zip(neck(inputs), weights, strict=True))

    grads = torch.autograd.grad(value(), leaves)
    assert all(grad.abs().max() > 0 for grad in grads)
    step, ends = 1e-6, []
    with torch.no_grad():
        for sign in (1, -2, 1):
            for leaf, direction in zip(leaves, directions, strict=True):
                leaf += sign * step * direction
            ends.append(value().item())
    along = sum((grad * direction).sum() for grad, direction in zip(grads, directions, strict=True)).item()
    assert along == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5)


def test_initialisation_is_the_published_one():
    """Offsets begin off zero, and all but the scale attention as PyTorch has it."""
    neck = DyHead(64, 64, num_blocks=3)
    neck.init_weights()
    for block in neck.dyhead_blocks:
        for layer in (block.spatial_conv_high, block.spatial_conv_mid, block.spatial_conv_low):
            assert not layer.conv.bias.any()
            assert layer.conv.weight.std().item() == pytest.approx((3 * 64 * 9) ** -0.5, rel=0.05)
        # Uniform within 1 / sqrt(fan in).
        for conv, fan_in in (
            (block.spatial_conv_offset, 576),
            (block.task_attn_module.conv1.conv, 64),
            (block.task_attn_module.conv2.conv, 16),
        ):
            assert conv.weight.std().item() == pytest.approx((3 * fan_in) ** -0.5, rel=0.1)
            assert 0 < conv.bias.abs().max() <= fan_in**-0.5
        assert block.scale_attn_module[1].weight.std().item() == pytest.approx(0.01, rel=0.4)
        assert not block.scale_attn_module[1].bias.any()


@pytest.mark.parametrize("sizes", [[(1, 1)], [(1, 3), (1, 2)], [(13, 5), (7, 3), (4, 2), (2, 1), (1, 1)]], ids=str)
def test_sizes(sizes):
    neck = DyHead(CHANNELS, 48, num_blocks=2).double()
    out = neck(levels(sizes, batch=1))
    assert [tuple(x.shape) for x in out] == [(1, 48, *size) for size in sizes]
    assert all(x.isfinite().all() for x in out)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype):
    neck = DyHead(CHANNELS, CHANNELS, num_blocks=1)
    inputs = levels(dtype=torch.float32)
    with torch.no_grad():
        exact = neck(inputs)
        half = neck.to(dtype)([x.to(dtype) for x in inputs])
    for one, other in zip(half, exact, strict=True):
        assert one.dtype == dtype
        tolerance = 32 * torch.finfo(dtype).eps
        torch.testing.assert_close(one.float(), other, rtol=tolerance, atol=tolerance * other.abs().max().item())


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="out_channels=24: must be a multiple of 16"):
        DyHead(32, 24)
    neck = DyHead(CHANNELS, CHANNELS, num_blocks=1)
    with pytest.raises(ValueError, match=r"below \(9, 7\) must come \(5, 4\), not \(4, 3\)"):
        neck(levels([(9, 7), (4, 3)], dtype=torch.float32))
    state = published_checkpoint(blocks=1)
    torch.save(detector(state), tmp_path / "one.pth")
    with pytest.raises(RuntimeError, match=r"(?s)no checkpoint of this DyHead.*Missing.*dyhead_blocks\.1\."):
        DyHead(CHANNELS, CHANNELS, num_blocks=2).load_checkpoint(tmp_path / "one.pth")
    del state["0.DyConv.1.conv.bias"]
    torch.save(detector(state), tmp_path / "torn.pth")
    with pytest.raises(RuntimeError, match=r"(?s)Missing.*spatial_conv_mid\.conv\.bias"):
        neck.load_checkpoint(tmp_path / "torn.pth")


def test_behind_a_pyramid_in_a_detector():
    """As ATSS has it in mmdet: a list of necks, one training step."""
    from mmdet.testing import demo_mm_inputs
    from mmengine.config import Config

    cfg = Config.fromfile(f"{__import__('mmdet').__path__[0]}/.mim/configs/dyhead/atss_r50_fpn_dyhead_1x_coco.py").model
    init_default_scope("mmdet")
    cfg.backbone = dict(type="attnzoo.Backbone", model_name="test_resnet", out_indices=(2, 3, 4))
    cfg.neck = [
        dict(type="FPN", in_channels=[48, 192, 96], out_channels=32, num_outs=4, add_extra_convs="on_output"),
        dict(type="attnzoo.DyHead", in_channels=32, out_channels=32, num_blocks=1),
    ]
    cfg.bbox_head.update(num_classes=3, in_channels=32, feat_channels=32)
    cfg.bbox_head.anchor_generator.strides = [8, 16, 32, 64]
    model = MODELS.build(cfg)
    model.init_weights()
    data = model.data_preprocessor(demo_mm_inputs(2, [[3, 75, 91], [3, 64, 70]], num_classes=3), True)
    losses = model(**data, mode="loss")
    sum(sum(part) if isinstance(part, list) else part for part in losses.values()).backward()
    assert all(torch.isfinite(torch.as_tensor(part)).all() for part in losses["loss_cls"])
    idle = [name for name, p in model.neck.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert idle == []


@pytest.mark.slow
def test_exports_in_a_detector_with_free_batch_and_size(tmp_path):
    cfg = deploy_models.dense("atss", "van")
    cfg.model.backbone = dict(type="attnzoo.Backbone", model_name="test_resnet", out_indices=(2, 3, 4))
    cfg.model.neck = [
        dict(type="FPN", in_channels=[48, 192, 96], out_channels=16, num_outs=3),
        dict(type="attnzoo.DyHead", in_channels=16, out_channels=16, num_blocks=1),
    ]
    wrapper = deploy(deploy_models.lively(cfg))
    session = deploy_models.export_free(wrapper, [deploy_models.images(2, 64, 96)], tmp_path)
    for size in ((2, 64, 96), (1, 75, 131)):
        images = deploy_models.images(*size)
        boxes, scores, labels = deploy_models.run(session, images)
        with torch.no_grad():
            expected = wrapper(images)
        torch.testing.assert_close(boxes, expected[0], rtol=0, atol=1e-3)
        torch.testing.assert_close(scores, expected[1], rtol=0, atol=1e-5)
        assert torch.equal(labels, expected[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(in_channels=[32, 32]), r"in_channels=\[32, 32\]: must be a whole number, got list"),
        (dict(in_channels=0), r"in_channels=0: must be 1 or more"),
        (dict(out_channels="32"), r"out_channels='32': must be a whole number, got str"),
        (dict(out_channels=0), r"out_channels=0: must be 1 or more"),
        (dict(num_blocks=0), r"num_blocks=0: must be 1 or more"),
        (dict(num_blocks=True), r"num_blocks=True: must be a whole number, got bool"),
        (dict(zero_init_offset=False), r"unexpected keyword argument 'zero_init_offset'"),
    ],
)
def test_arguments_of_another_kind(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        DyHead(**(dict(in_channels=32, out_channels=32) | arguments))
