"""The configs in bird's-eye view: what the published ones say, and that each trains and predicts, reduced.

`PUBLISHED` holds what fundamentalvision/BEVFormer's projects/configs/bevformer/bevformer_{tiny,small,base}.py say; what
all of them say stands once, in the test.
"""

import functools
import math
from typing import Any, NamedTuple

import golden_files
import pytest
import torch
from bev_published import head_shapes, published_state
from bev_recipes import NAMES, batch, make_drives, reduced_config, small_model
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS

from attnzoo.tools.common.errors import UserError
from attnzoo.tools.config.loading import load_config
from attnzoo.tools.running.checkpoint import check_start, load_into
from attnzoo.tools.running.engine import build_model

RANGE = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]


class Published(NamedTuple):
    backbone: str
    depth: int
    style: str
    dcn: bool
    with_cp: bool
    in_channels: list[int]
    levels: int
    side: int
    layers: int
    queue: int
    scale: float | None
    rgb: bool


PUBLISHED = {
    "tiny": Published("r50", 50, "pytorch", False, False, [2048], 1, 50, 3, 3, 0.5, True),
    "small": Published("r101-dcn", 101, "caffe", True, True, [2048], 1, 150, 3, 3, 0.8, False),
    "base": Published("r101-dcn", 101, "caffe", True, False, [512, 1024, 2048], 4, 200, 6, 4, None, False),
}


def published_name(size: str, dfa3d: bool = False) -> str:
    return f"bevformer/bevformer-{size}{'-dfa3d' * dfa3d}_{PUBLISHED[size].backbone}_24e_nuscenes"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_drives(tmp_path_factory.mktemp("bev") / "drives")


@functools.cache
def full_size(name: str) -> tuple[Any, torch.nn.Module]:
    cfg = load_config(name)
    with torch.device("meta"):
        return cfg, build_model(cfg)


@pytest.mark.parametrize("size", PUBLISHED)
def test_fields(size):
    theirs = PUBLISHED[size]
    cfg, model = full_size(published_name(size))
    backbone, neck, encoder = cfg.model.backbone, cfg.model.neck, cfg.model.bev_encoder
    assert (backbone.type, backbone.depth, backbone.style) == ("mmdet.ResNet", theirs.depth, theirs.style)
    assert (backbone.frozen_stages, backbone.norm_eval, backbone.norm_cfg.requires_grad) == (1, True, False)
    assert backbone.get("with_cp", False) is theirs.with_cp
    assert [
        stage for stage in (1, 2, 3, 4) if hasattr(getattr(model.backbone, f"layer{stage}")[0].conv2, "conv_offset")
    ] == ([3, 4] if theirs.dcn else [])
    assert (list(neck.in_channels), neck.num_outs, neck.add_extra_convs) == (
        theirs.in_channels,
        theirs.levels,
        "on_output",
    )
    assert [1024 * 2**i for i in backbone.out_indices] == [4 * channels for channels in theirs.in_channels]
    assert model.bev_encoder.size == (theirs.side, theirs.side) and model.bev_encoder.rotate_center == (100, 100)
    assert (encoder.num_layers, encoder.num_levels) == (theirs.layers, theirs.levels)
    assert list(encoder.point_range) == list(cfg.model.detection_head.point_range) == RANGE
    coder = model.detection_head.coder
    assert (list(coder.center_range), coder.max_num) == ([-61.2, -61.2, -10.0, 61.2, 61.2, 10.0], 300)
    preprocessor = model.data_preprocessor
    assert (preprocessor.bgr_to_rgb, preprocessor.mask_ratio, preprocessor.mask_prob) == (theirs.rgb, 0.5, 0.7)
    normal = cfg.model.data_preprocessor
    assert (normal["mean"], normal["std"]) == (
        ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
        if theirs.rgb
        else ([103.53, 116.28, 123.675], [1.0, 1.0, 1.0])
    )

    train, test = cfg.train_dataloader, cfg.test_dataloader
    assert (train.batch_size, train.num_workers, train.dataset.history) == (1, 4, theirs.queue - 1)
    for loader in (train, cfg.val_dataloader, test):
        scales = [step.scale for step in loader.dataset.pipeline if step.type == "attnzoo.ResizeMultiViewImages"]
        assert scales == ([] if theirs.scale is None else [theirs.scale])
    assert [step.type.removeprefix("attnzoo.") for step in train.dataset.pipeline if "Resize" not in step.type] == [
        "LoadMultiViewImages", "MultiViewPhotoMetricDistortion", "BoxRangeFilter", "PackBEVInputs"
    ]  # fmt: skip
    assert cfg.train_cfg.max_epochs == 24 and cfg.train_cfg.val_interval == 1
    assert cfg.optim_wrapper.type == "OptimWrapper" and cfg.optim_wrapper.clip_grad == dict(max_norm=35.0)


def test_rates():
    """AdamW at 2e-4, a tenth of it for the backbone, from a third over 500 steps, then a cosine by epochs to 1e-3."""
    cfg, model = full_size(published_name("tiny"))
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = {names[p]: group for group in wrapper.optimizer.param_groups for p in group["params"]}
    assert {group["weight_decay"] for group in groups.values()} == {0.01}
    warmup, cosine = (PARAM_SCHEDULERS.build(dict(step, optimizer=wrapper)) for step in cfg.param_scheduler)

    def rates() -> tuple[set, set]:
        tenth = {group["lr"] for name, group in groups.items() if name.startswith("backbone.")}
        return tenth, {group["lr"] for name, group in groups.items() if not name.startswith("backbone.")}

    def check(rate: float) -> None:
        assert [list(found) for found in rates()] == [[pytest.approx(rate / 10)], [pytest.approx(rate)]]

    check(2e-4 / 3)
    for _ in range(500):
        warmup.step()
    check(2e-4)
    for epoch in range(1, 24):
        cosine.step()
        check(2e-7 + (2e-4 - 2e-7) * (1 + math.cos(math.pi * epoch / 24)) / 2)


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_checkpoints_load_strictly(size):
    golden = golden_files.load("bevformer_head")
    sizes = golden["kwargs"] | dict(num_levels=len(golden["kwargs"]["feature_levels"]))
    assert head_shapes(sizes) == golden["tensors"]
    cfg, model = full_size(published_name(size))
    with torch.device("meta"):
        state = published_state(cfg)
    model.load_state_dict(state, strict=True)
    del state["pts_bbox_head.transformer.can_bus_mlp.norm.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*bev_encoder\.can_bus_mlp\.norm\.weight"):
        model.load_state_dict(state, strict=True)


@pytest.mark.parametrize("size", PUBLISHED)
def test_dfa3d_adds_depth_alone(size):
    """A linear layer in each spatial attention, named as published, and the depth head with its published names."""
    cfg, model = full_size(published_name(size, dfa3d=True))
    with torch.device("meta"):
        state = published_state(cfg)
    points = 8 * cfg.model.bev_encoder.num_levels * 8
    for i in range(PUBLISHED[size].layers):
        name = f"pts_bbox_head.transformer.encoder.layers.{i}.attentions.1.deformable_attention.sampling_offsets_depth"
        state |= {f"{name}.weight": torch.zeros(points, 256), f"{name}.bias": torch.zeros(points)}
    # 32 channels wide, in groups of 8, and five branches of them.
    wide = {8: 64, 32: 256, 160: 1280}
    shapes = golden_files.load("dfa3d_depth_head")["tensors"]
    depth = {key: torch.zeros([wide.get(n, n) for n in shape]) for key, shape in shapes.items()}
    depth = model.depth_head.convert(depth)
    model.load_state_dict(state | {f"depth_head.{key}": value for key, value in depth.items()}, strict=True)
    assert (model.depth_head.level, model.depth_head.stride) == ((2 if size == "base" else 0), 32)
    assert (model.depth_head.bins.range, model.depth_head.bins.count) == ((2.0, 58.0), 112)


def test_commands_load_published_checkpoints(root, tmp_path):
    cfg = reduced_config(published_name("tiny"), root)
    model = build_model(cfg)
    state = published_state(cfg)
    torch.save({"state_dict": state}, tmp_path / "whole.pth")
    assert model.detection_head.query_embedding.weight.any()
    load_into(model, tmp_path / "whole.pth")
    assert not model.detection_head.query_embedding.weight.any()
    # Weights to start from are as FCOS3D left them, without a head of ours.
    start = {key: value for key, value in state.items() if key.startswith("img_backbone.")}
    torch.save({"state_dict": start | {"bbox_head.conv_cls.weight": torch.zeros(2)}}, tmp_path / "start.pth")
    check_start(model, tmp_path / "start.pth")
    torch.save({"state_dict": {"bbox_head.conv_cls.weight": torch.zeros(2)}}, tmp_path / "nothing.pth")
    with pytest.raises(UserError, match="not one of its 1 tensors"):
        check_start(model, tmp_path / "nothing.pth")


def test_every_size_and_backbone_has_both_liftings():
    plain = [name for name in NAMES if "-dfa3d_" not in name]
    assert {published_name(size) for size in PUBLISHED} < set(plain)
    assert sorted([*plain, *(name.replace("_", "-dfa3d_", 1) for name in plain)]) == NAMES
    for backbone in ("van-b2", "biformer-small", "dinat-mini", "resnet50"):
        assert f"bevformer/bevformer-tiny_{backbone}_24e_nuscenes" in plain


@pytest.mark.parametrize("name", NAMES)
def test_trains_and_predicts(name, root):
    cfg, full = full_size(name)
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=8 * cfg.train_dataloader.batch_size)
    assert full.bev_encoder.lifting == ("dfa3d" if "-dfa3d_" in name else "2d")

    torch.manual_seed(0)
    cfg = reduced_config(name, root)
    model = small_model(cfg)
    for parameter in model.parameters():
        if not parameter.any():  # what begins at zero leaves no gradient behind it
            torch.nn.init.normal_(parameter, std=0.02)
    model.train()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    before = {key: value.clone() for key, value in model.named_parameters() if value.requires_grad}
    data = model.data_preprocessor(batch(cfg, "train", 3), True)
    assert data["inputs"].shape[:3] == (1, cfg.train_dataloader.dataset.history + 1, 6)
    loss, parts = model.parse_losses(model(**data, mode="loss"))
    assert all(value.isfinite() for value in parts.values())
    assert ("loss_depth" in parts) is ("-dfa3d_" in name)
    loss.backward()
    gradients = {key: value.grad for key, value in model.named_parameters() if value.requires_grad}
    assert [key for key, grad in gradients.items() if grad is None or not grad.isfinite().all()] == []
    assert [key for key, grad in gradients.items() if grad.ndim > 1 and not grad.any()] == []
    wrapper.step()
    assert [key for key, value in before.items() if torch.equal(value, model.get_parameter(key))] == []

    model.eval()
    with torch.no_grad():
        results = model.test_step(batch(cfg, "test", 0, 1))
    for result in results:
        found = result.pred_instances_3d
        assert len(found) > 0 and found.bboxes_3d.shape == (len(found), 9)
        assert found.bboxes_3d.isfinite().all() and (found.scores_3d >= 0).all()
        assert ((found.labels_3d >= 0) & (found.labels_3d < 10)).all()
