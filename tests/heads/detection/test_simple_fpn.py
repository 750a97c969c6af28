"""SimpleFeaturePyramid against detectron2's layers, and behind plain backbones of timm and of the zoo."""

from itertools import pairwise

import deploy_models
import pytest
import torch
import torch.nn.functional as F
from mmdet.testing import demo_mm_inputs
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor

from attnzoo.heads import Backbone, SimpleFeaturePyramid

IN, OUT = 16, 12
# Behind the layers that rescale, the 1×1 and the 3×3 convolution of detectron2's `simfp_n`.
CONVS = {2: (4, 5), 3: (1, 2), 4: (0, 1), 5: (1, 2)}


def published(seed: int = 0) -> dict[str, Tensor]:
    """A checkpoint of detectron2's neck."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"simfp_2.0.weight": (IN, IN // 2, 2, 2), "simfp_2.0.bias": (IN // 2,)}
    shapes |= {"simfp_2.1.weight": (IN // 2,), "simfp_2.1.bias": (IN // 2,)}
    shapes |= {"simfp_2.3.weight": (IN // 2, IN // 4, 2, 2), "simfp_2.3.bias": (IN // 4,)}
    shapes |= {"simfp_3.0.weight": (IN, IN // 2, 2, 2), "simfp_3.0.bias": (IN // 2,)}
    for stage, width in ((2, IN // 4), (3, IN // 2), (4, IN), (5, IN)):
        small, large = CONVS[stage]
        shapes |= {
            f"simfp_{stage}.{small}.weight": (OUT, width, 1, 1),
            f"simfp_{stage}.{large}.weight": (OUT, OUT, 3, 3),
        }
        shapes |= {
            f"simfp_{stage}.{place}.norm.{leaf}": (OUT,) for place in CONVS[stage] for leaf in ("weight", "bias")
        }
    return {key: torch.randn(shape, generator=generator, dtype=torch.float64) for key, shape in shapes.items()}


def as_mmdet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same checkpoint as mmdet's `projects/ViTDet` writes it."""
    renamed = {}
    for key, value in state.items():
        stage, place, *rest = key.removeprefix("simfp_").split(".")
        level, place = int(stage) - 2, int(place)
        if place in CONVS[int(stage)]:
            module = ("lateral_convs", "fpn_convs")[CONVS[int(stage)].index(place)]
            layer = "norm_layer" if rest[0] == "norm" else "conv"
            renamed[f"neck.{module}.{level}.{layer}.{rest[-1]}"] = value
        else:
            renamed[f"neck.fpn{level + 1}.{place}.{rest[0]}"] = value
    return renamed


def pyramid_by_definition(state: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """detectron2's layers, one by one, for even sides."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean = x.mean(1, keepdim=True)
        x = (x - mean) / ((x - mean).square().mean(1, keepdim=True) + 1e-6).sqrt()
        return x * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]

    def transposed(x: Tensor, name: str) -> Tensor:
        # Each place becomes a square of four.
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        squares = torch.einsum("bchw,coij->bohiwj", x, weight)
        return squares.reshape(len(x), -1, 2 * x.shape[2], 2 * x.shape[3]) + bias[:, None, None]

    fine = transposed(F.gelu(norm(transposed(x, "simfp_2.0"), "simfp_2.1")), "simfp_2.3")
    pooled = x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).amax((3, 5))
    levels = []
    for stage, level in ((2, fine), (3, transposed(x, "simfp_3.0")), (4, x), (5, pooled)):
        for place, padding in zip(CONVS[stage], (0, 1), strict=True):
            name = f"simfp_{stage}.{place}"
            level = norm(F.conv2d(level, state[f"{name}.weight"], padding=padding), f"{name}.norm")
        levels.append(level)
    return [*levels, levels[-1][:, :, ::2, ::2]]


@pytest.mark.parametrize("layout", ["detectron2", "mmdet", "ours"])
def test_equals_detectron2_through_each_checkpoint(layout, tmp_path):
    state = published()
    detector = {"backbone.net.pos_embed": torch.zeros(1), **{f"backbone.{key}": value for key, value in state.items()}}
    if layout == "mmdet":
        detector = {"backbone.pos_embed": torch.zeros(1), "rpn_head.x": torch.zeros(1), **as_mmdet(state)}
    elif layout == "ours":
        neck = SimpleFeaturePyramid(IN, OUT)
        detector = {f"neck.{key}": value for key, value in neck.convert(detector).items()}
    torch.save({"model": detector}, tmp_path / "detector.pth")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "detector.pth"))
    x = torch.randn(2, IN, 6, 4, dtype=torch.float64)
    neck = SimpleFeaturePyramid(IN, OUT, init_cfg=init_cfg).double()
    neck.init_weights()
    part = SimpleFeaturePyramid(IN, OUT, strides=(8, 16, 32), init_cfg=init_cfg).double()
    part.init_weights()
    expected = pyramid_by_definition(state, x)
    with torch.no_grad():
        for levels, wanted in ((neck((x,)), expected), (part((x,)), expected[1:4])):
            for one, other in zip(levels, wanted, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_gradients():
    neck = SimpleFeaturePyramid(4, 4, strides=(4, 8, 16, 32, 64)).double()
    x = torch.randn(1, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: neck((x,)), x)
    grads = torch.autograd.grad(sum(level.sin().sum() for level in neck((x,))), list(neck.parameters()))
    assert all(grad.abs().max() > 0 for grad in grads)


@pytest.mark.parametrize("size", [(1, 1), (5, 8), (7, 3), (14, 14)], ids=str)
def test_levels_halve_rounded_up(size):
    """So that heads whose levels depend on each other (DyHead) can follow, at odd sizes too."""
    levels = SimpleFeaturePyramid(8, 4, strides=(4, 8, 16, 32, 64, 128))((torch.rand(1, 8, *size),))
    sides = [tuple(level.shape[2:]) for level in levels]
    assert sides[2] == size and sides[0] == (4 * size[0], 4 * size[1])
    for (h, w), coarser in pairwise(sides):
        assert coarser == (-(-h // 2), -(-w // 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_and_channels_last(dtype):
    neck = SimpleFeaturePyramid(IN, OUT)
    x = torch.randn(2, IN, 6, 5)
    with torch.no_grad():
        exact = neck((x,))
        for last, one in zip(neck((x.to(memory_format=torch.channels_last),)), exact, strict=True):
            torch.testing.assert_close(last, one)
        half = neck.to(dtype)((x.to(dtype),))
    for one, other in zip(half, exact, strict=True):
        assert one.dtype == dtype
        tolerance = 16 * torch.finfo(dtype).eps
        torch.testing.assert_close(one.float(), other, rtol=tolerance, atol=tolerance * other.abs().max().item())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(in_channels=6), "in_channels=6: allowed is one number, a multiple of 4"),
        (dict(in_channels=[16]), r"in_channels=\[16\]: allowed is one number"),
        (dict(in_channels=16, strides=(4, 16)), r"strides=\(4, 16\): each must be twice"),
        (dict(in_channels=16, strides=(2, 4)), r"strides=\(2, 4\).*the first one of \(4, 8, 16, 32\)"),
        (dict(in_channels=16, strides=()), r"strides=\(\)"),
        (dict(in_channels=16, strides=8), r"strides=8: must be a sequence of whole numbers, got int"),
        (dict(in_channels=16, strides=("4", "8")), r"strides\[0\]='4': must be a whole number, got str"),
        (dict(in_channels=16, out_channels=0), r"out_channels=0: must be 1 or more"),
        (dict(in_channels=16, out_channels=8.0), r"out_channels=8\.0: must be a whole number, got float"),
        (dict(in_channels=16, num_outs=5), r"unexpected keyword argument 'num_outs'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        SimpleFeaturePyramid(**arguments)


def test_bad_input(tmp_path):
    neck = SimpleFeaturePyramid(16, 8)
    for inputs in ((torch.rand(1, 16, 4, 4),) * 2, (torch.rand(1, 8, 4, 4),)):
        with pytest.raises(ValueError, match="expected one map of 16 channels"):
            neck(inputs)
    state = published()
    del state["simfp_4.1.norm.bias"]
    torch.save(state, tmp_path / "torn.pth")
    with pytest.raises(RuntimeError, match=r"(?s)no checkpoint of this SimpleFeature.*Missing.*levels\.16\.1\.1\.bias"):
        SimpleFeaturePyramid(IN, OUT).load_checkpoint(tmp_path / "torn.pth")


PLAIN = {
    "timm": dict(model_name="vit_tiny_patch16_224", depth=2, dynamic_img_size=True, dynamic_img_pad=True),
    "agent": dict(model_name="agent_deit_tiny", depth=2),
    "inline": dict(model_name="inline_deit_tiny", depth=2),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_backbones_at_any_size(name):
    backbone = Backbone(out_indices=(1,), **PLAIN[name]).eval()
    neck = SimpleFeaturePyramid(backbone.channels[0], 8)
    assert backbone.strides == (16,)
    for height, width in ((224, 224), (65, 91), (48, 33), (17, 130)):
        with torch.no_grad():
            levels = neck(backbone(torch.rand(1, 3, height, width)))
        h, w = -(-height // 16), -(-width // 16)
        assert [tuple(x.shape[2:]) for x in levels] == [
            (4 * h, 4 * w), (2 * h, 2 * w), (h, w), (-(-h // 2), -(-w // 2)), (-(-h // 4), -(-w // 4))
        ]  # fmt: skip


def set_backbone_and_neck(cfg, name: str, strides: tuple[int, ...]) -> None:
    cfg.backbone = dict(type="attnzoo.Backbone", out_indices=(1,), **PLAIN[name])
    cfg.neck = dict(type="attnzoo.SimpleFeaturePyramid", in_channels=192, out_channels=16, strides=strides)


def learns_everywhere(model: torch.nn.Module, losses: dict) -> None:
    total = sum(sum(part) if isinstance(part, list) else part for name, part in losses.items() if "loss" in name)
    total.backward()
    idle = [name for name, p in model.neck.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert total.isfinite() and idle == []
    assert model.backbone.model.patch_embed.proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize("name", PLAIN)
def test_a_detector_trains_and_predicts(name):
    """RetinaNet as mmdet has it, on strides 4 to 64."""
    init_default_scope("mmdet")
    cfg = deploy_models.dense("retina", "van").model
    set_backbone_and_neck(cfg, name, (4, 8, 16, 32, 64))
    cfg.bbox_head.anchor_generator = cfg.bbox_head.anchor_generator | dict(strides=[4, 8, 16, 32, 64])
    cfg.train_cfg = dict(
        assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0.0, ignore_iof_thr=-1),
        sampler=dict(type="PseudoSampler"), allowed_border=-1, pos_weight=-1,
    )  # fmt: skip
    # Without padding, the backbone sees odd sizes.
    cfg.data_preprocessor.pad_size_divisor = 1
    model = MODELS.build(cfg)
    model.init_weights()
    data = model.data_preprocessor(demo_mm_inputs(2, [[3, 75, 91], [3, 64, 70]], num_classes=3), True)
    learns_everywhere(model, model(**data, mode="loss"))
    model.eval()
    for size in ((64, 96), (51, 33)):
        data = model.data_preprocessor(demo_mm_inputs(1, [[3, *size]], num_classes=3), False)
        with torch.no_grad():
            (sample,) = model(**data, mode="predict")
        boxes = sample.pred_instances.bboxes
        assert len(boxes) > 0 and boxes.isfinite().all()


@pytest.mark.parametrize("name", PLAIN)
def test_a_segmentor_trains_and_predicts(name):
    """Semantic FPN as mmseg has it, on strides 4 to 32."""
    init_default_scope("mmseg")
    cfg = deploy_models.segmentor("fpn", "van", size=(75, 91)).model
    set_backbone_and_neck(cfg, name, (4, 8, 16, 32))
    cfg.decode_head.in_channels = [16] * 4
    cfg.train_cfg = dict()
    model = MODELS.build(cfg)
    model.init_weights()
    label = torch.randint(0, 3, (1, 75, 91))
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label), metainfo=dict(img_shape=(75, 91))) for _ in range(2)]
    images = [torch.randint(0, 255, (3, 75, 91), dtype=torch.uint8) for _ in range(2)]
    data = model.data_preprocessor(dict(inputs=images, data_samples=samples), True)
    learns_everywhere(model, model(**data, mode="loss"))
    model.eval()
    for size in ((64, 96), (51, 33)):
        sample = SegDataSample(metainfo=dict(ori_shape=size, img_shape=size, pad_shape=size))
        data = model.data_preprocessor(dict(inputs=[torch.zeros(3, *size)], data_samples=[sample]), False)
        with torch.no_grad():
            (sample,) = model(**data, mode="predict")
        assert sample.pred_sem_seg.data.shape == (1, *size)
