"""MCAHead: equal to the published decoder, and a head of mmseg like any other."""

import copy

import deploy_models
import golden_files
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor

import attnzoo.heads  # noqa: F401  installs mmcv's operators
from attnzoo.heads.deploy import deploy
from attnzoo.heads.segmentation.mca_head import CrossAxisAttention, MCAHead

GOLDEN = golden_files.load("mca_head")
PUBLISHED = {key: GOLDEN["kwargs"][key] for key in ("in_channels", "channels", "in_index", "heads", "dropout_ratio")}
PUBLISHED |= dict(num_classes=9, norm_cfg=GOLDEN["kwargs"]["norm_cfg"], align_corners=False)
SMALL = dict(in_channels=[8, 16, 24, 32], in_index=[0, 1, 2, 3], channels=8, num_classes=3, heads=4,
             norm_cfg=dict(type="GN", num_groups=4), dropout_ratio=0.0)  # fmt: skip


def maps(batch: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(height)
    shapes = [(c, -(-height // s), -(-width // s)) for c, s in zip(SMALL["in_channels"], (1, 2, 4, 8), strict=True)]
    return [torch.randn(batch, *shape, generator=generator, dtype=dtype) for shape in shapes]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The published segmentor's head, as its file has it."""
    path = tmp_path_factory.mktemp("mca") / "published.pth"
    state = {f"decode_head.{key}": value for key, value in golden_files.checkpoint(GOLDEN).items()}
    torch.save({"state_dict": {"backbone.patch_embed1.proj.weight": torch.zeros(1), **state}}, path)
    return path


@pytest.mark.parametrize(("output", "map_size"), [("logits", None), ("logits", (32, 40)), ("logits_128", 128)], ids=str)
def test_equals_the_published_decoder(checkpoint, output, map_size):
    head = MCAHead(map_size=map_size, init_cfg=dict(type="Pretrained", checkpoint=str(checkpoint)), **PUBLISHED)
    head.double().eval().init_weights()
    seen = {}
    head.attention.register_forward_hook(lambda _, inputs, output: seen.update(mca_in=inputs[0], mca_out=output))
    with torch.no_grad():
        logits = head([golden_files.image({"input": one}) for one in GOLDEN["input"]])
    assert golden_files.error(logits, GOLDEN["outputs"][output]) < 1e-12
    if output == "logits":
        for name, value in seen.items():
            assert golden_files.error(value, GOLDEN["outputs"][name]) < 1e-12


def test_the_finest_level_sets_the_size_of_the_map():
    """A fixed size is the same where it is the finest level's, and not elsewhere."""
    free, fixed = MCAHead(**SMALL).eval(), MCAHead(map_size=(9, 14), **SMALL).eval()
    fixed.load_state_dict(free.state_dict())
    with torch.no_grad():
        for size in ((9, 14), (17, 6), (1, 1)):
            inputs = maps(2, *size)
            assert free(inputs).shape == (2, 3, *size)
            assert fixed(inputs).shape == (2, 3, 9, 14)
            assert torch.equal(free(inputs), fixed(inputs)) == (size == (9, 14))


def cross_axis_by_definition(block: CrossAxisAttention, x: Tensor) -> Tensor:
    """Row by row and column by column, from the description."""

    def unit(token: Tensor) -> Tensor:
        return token / token.norm()

    normed = block.norm(x)
    row = block.project(sum(strip(normed) for strip in block.row_strips))
    column = block.project(sum(strip(normed) for strip in block.column_strips))
    batch, channels, height, width = x.shape
    read_rows, read_columns = torch.zeros_like(x), torch.zeros_like(x)
    for b in range(batch):
        for part in torch.arange(channels).chunk(block.heads):
            for i in range(height):
                query = unit(column[b, part, i])
                weights = torch.stack([(query * unit(row[b, part, j])).sum() for j in range(height)]).softmax(0)
                read_rows[b, part, i] = query + sum(weights[j] * row[b, part, j] for j in range(height))
            for i in range(width):
                query = unit(row[b, part, :, i])
                weights = torch.stack([(query * unit(column[b, part, :, j])).sum() for j in range(width)]).softmax(0)
                read_columns[b, part, :, i] = query + sum(weights[j] * column[b, part, :, j] for j in range(width))
    return block.project(read_rows) + block.project(read_columns) + x


def test_attention_and_its_gradients_against_the_definition():
    block = CrossAxisAttention(8, heads=4).double()
    x = torch.randn(2, 8, 5, 7, dtype=torch.float64, requires_grad=True)
    leaves = [x, *block.parameters()]
    direction = torch.randn(2, 8, 5, 7, dtype=torch.float64)
    found, expected = block(x), cross_axis_by_definition(block, x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(output, leaves, direction) for output in (found, expected)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)
    assert all(grad.abs().max() > 0 for grad in grads[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype):
    head = MCAHead(**SMALL).eval()
    inputs = maps(2, 9, 14)
    with torch.no_grad():
        exact = head(inputs)
        half = head.to(dtype)([x.to(dtype) for x in inputs])
    assert half.dtype == dtype
    tolerance = 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(half.float(), exact, rtol=tolerance, atol=tolerance * exact.abs().max().item())


def test_a_map_of_zeros_stays_finite_in_float16():
    block = CrossAxisAttention(8).half()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
        assert torch.equal(block(torch.zeros(1, 8, 4, 4).half()), torch.zeros(1, 8, 4, 4).half())


def test_channels_last():
    head = MCAHead(**SMALL).eval()
    inputs = maps(2, 8, 12)
    with torch.no_grad():
        last = [x.to(memory_format=torch.channels_last) for x in inputs]
        torch.testing.assert_close(head.to(memory_format=torch.channels_last)(last), head(inputs))


def saved(path, state: dict[str, Tensor]) -> dict:
    torch.save({"state_dict": state}, path)
    return dict(type="Pretrained", checkpoint=str(path))


def test_another_number_of_classes_keeps_its_classifier(checkpoint):
    options = PUBLISHED | dict(num_classes=4)
    head = MCAHead(**options)
    before = copy.deepcopy(head.state_dict())
    head.load_checkpoint(checkpoint)
    after = head.state_dict()
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    assert after.keys() - changed == {"conv_seg.weight", "conv_seg.bias"}


def test_our_own_checkpoint_loads_from_the_whole_segmentor_and_alone(tmp_path):
    state = MCAHead(**SMALL).state_dict()
    whole = {"backbone.x": torch.zeros(1), **{f"decode_head.{key}": value for key, value in state.items()}}
    for stored in (state, whole):
        head = MCAHead(init_cfg=saved(tmp_path / "head.pth", stored), **SMALL)
        head.init_weights()
        assert all(torch.equal(value, state[key]) for key, value in head.state_dict().items())


def test_a_checkpoint_that_does_not_fit_is_refused(checkpoint, tmp_path):
    state = torch.load(checkpoint)["state_dict"]
    missing = {key: value for key, value in state.items() if "conv1_2.bias" not in key}
    with pytest.raises(
        RuntimeError, match=r"(?s)no checkpoint of this MCAHead.*Missing.*attention\.column_strips\.1\.bias"
    ):
        MCAHead(**PUBLISHED).load_checkpoint(saved(tmp_path / "missing.pth", missing)["checkpoint"])
    with pytest.raises(RuntimeError, match=r"(?s)Unexpected.*decoder_level\.conv3_1\.weight"):
        more = {**state, "decode_head.decoder_level.conv3_1.weight": torch.zeros(1)}
        MCAHead(**PUBLISHED).load_checkpoint(saved(tmp_path / "more.pth", more)["checkpoint"])
    with pytest.raises(FileNotFoundError, match="no such file"):
        MCAHead(**PUBLISHED).load_checkpoint(tmp_path / "nothing.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(heads=3), r"in_channels=\[8, 16, 24, 32\].*multiple of heads=3"),
        (dict(in_channels=[8], in_index=[0]), r"in_channels=\[8\]: needs two levels"),
        (dict(map_size=0), "map_size=0: allowed are None, a positive number"),
        (dict(map_size=(3, 4, 5)), r"map_size=\(3, 4, 5\)"),
        (dict(map_size="64"), r"map_size='64': must be a sequence of whole numbers, got str"),
        (dict(map_size=(3, 4.5)), r"map_size\[1\]=4\.5: must be a whole number, got float"),
        (dict(heads=0), r"heads=0: must be 1 or more"),
        (dict(heads=True), r"heads=True: must be a whole number, got bool"),
        (dict(head=8), r"unexpected keyword argument 'head'"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        MCAHead(**SMALL | change)


def segmentor():
    """mmseg's EncoderDecoder with this head, which is named as a config names it."""
    cfg = deploy_models.segmentor("fpn", "van", size=(64, 96), test_cfg=dict(size_divisor=32))
    cfg.model.backbone = dict(type="attnzoo.Backbone", model_name="test_resnet", out_indices=(1, 2, 3, 4))
    cfg.model.decode_head = dict(
        type="attnzoo.MCAHead", in_channels=[32, 48, 192, 96], in_index=[0, 1, 2, 3], channels=16, num_classes=3,
        norm_cfg=dict(type="GN", num_groups=4), align_corners=False, loss_decode=dict(type="CrossEntropyLoss"),
    )  # fmt: skip
    return cfg


def test_trains_in_a_segmentor():
    cfg = segmentor()
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    images = deploy_models.images(2, 64, 96)
    # Bright or dark: the image tells the label of each pixel.
    labels = (images.mean(1) > images.mean()).long()
    samples = [SegDataSample(gt_sem_seg=PixelData(data=one[None]), metainfo=dict(img_shape=(64, 96))) for one in labels]
    losses = []
    for _ in range(30):
        data = model.data_preprocessor(dict(inputs=list(images), data_samples=samples), True)
        loss = model(**data, mode="loss")["decode.loss_ce"]
        optimizer.zero_grad()
        loss.backward()
        if not losses:
            head = model.decode_head.named_parameters()
            assert [name for name, p in head if p.grad is None or not p.grad.abs().max() > 0] == []
            assert next(model.backbone.parameters()).grad.abs().max() > 0
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], losses


@pytest.mark.long
def test_exports_with_free_batch_and_size(tmp_path):
    head = deploy_models.Levels(MCAHead(**SMALL)).eval()
    session = deploy_models.export_free(head, maps(2, 8, 12), tmp_path)
    for size in ((2, 8, 12), (1, 9, 13), (3, 16, 7)):
        (found,) = deploy_models.run(session, *maps(*size))
        with torch.no_grad():
            torch.testing.assert_close(found, head(*maps(*size)), rtol=1e-4, atol=1e-5)


def test_has_a_traceable_form_in_a_segmentor():
    model, images = deploy_models.lively(segmentor()), deploy_models.images(1, 75, 53)
    with torch.no_grad():
        logits, labels = deploy(model)(images)
    (sample,) = deploy_models.predict(model, images, SegDataSample)
    torch.testing.assert_close(logits[0], sample.seg_logits.data, rtol=0, atol=1e-5)
    assert torch.equal(labels[0], sample.pred_sem_seg.data[0]) and len(labels.unique()) > 1


@pytest.mark.slow
def test_exports_in_a_segmentor_with_free_batch_and_size(tmp_path):
    wrapper = deploy(deploy_models.lively(segmentor()))
    session = deploy_models.export_free(wrapper, [deploy_models.images(2, 64, 96)], tmp_path)
    for size in ((2, 64, 96), (1, 75, 53), (3, 33, 128)):
        images = deploy_models.images(*size)
        logits, labels = deploy_models.run(session, images)
        with torch.no_grad():
            expected, classes = wrapper(images)
        torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)
        assert (labels == classes).float().mean() > 0.999
