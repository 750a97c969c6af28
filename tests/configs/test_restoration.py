"""configs/hat against the option files of https://github.com/XPixelGroup/HAT, field by field.

Each entry holds what `options/train/train_<entry>.yml` says; what all of them say stands once, in the test.
"""

from typing import Any, NamedTuple

import pytest
from mmengine.registry import METRICS, MODELS, OPTIMIZERS

from attnzoo.tools.config.loading import list_configs, load_config


class Option(NamedTuple):
    config: str
    upscale: int
    gt_size: int
    lr: float
    milestones: list[int]
    total_iter: int
    val_freq: int
    pretrain_network_g: str | None


_500K, _250K = [250000, 400000, 450000, 475000], [125000, 200000, 225000, 240000]
_800K = [300000, 500000, 650000, 700000, 750000]
OPTIONS = {
    "HAT-S_SRx2_from_scratch": Option("hat-small_x2_500k_df2k", 2, 128, 2e-4, _500K, 500000, 20000, None),
    "HAT-S_SRx3_from_scratch": Option("hat-small_x3_500k_df2k", 3, 192, 2e-4, _500K, 500000, 20000, None),
    "HAT-S_SRx4_finetune_from_SRx2": Option(
        "hat-small_x4_250k_df2k", 4, 256, 1e-4, _250K, 250000, 20000, "hat-small_x2_500k_df2k"
    ),
    "HAT_SRx2_from_scratch": Option("hat_x2_500k_df2k", 2, 128, 2e-4, _500K, 500000, 5000, None),
    "HAT_SRx3_from_scratch": Option("hat_x3_500k_df2k", 3, 192, 2e-4, _500K, 500000, 5000, None),
    "HAT_SRx4_finetune_from_SRx2": Option("hat_x4_250k_df2k", 4, 256, 1e-4, _250K, 250000, 5000, "hat_x2_500k_df2k"),
    "HAT_SRx2_ImageNet_from_scratch": Option("hat_x2_800k_imagenet", 2, 128, 2e-4, _800K, 800000, 10000, None),
    "HAT_SRx3_ImageNet_from_scratch": Option("hat_x3_800k_imagenet", 3, 192, 2e-4, _800K, 800000, 10000, None),
    "HAT_SRx4_ImageNet_from_scratch": Option("hat_x4_800k_imagenet", 4, 256, 2e-4, _800K, 800000, 10000, None),
    "HAT_SRx2_finetune_from_ImageNet_pretrain": Option(
        "hat_x2_250k_imagenet-df2k", 2, 128, 1e-5, _250K, 250000, 5000, "hat_x2_800k_imagenet"
    ),
    "HAT_SRx3_finetune_from_ImageNet_pretrain": Option(
        "hat_x3_250k_imagenet-df2k", 3, 192, 1e-5, _250K, 250000, 5000, "hat_x3_800k_imagenet"
    ),
    "HAT_SRx4_finetune_from_ImageNet_pretrain": Option(
        "hat_x4_250k_imagenet-df2k", 4, 256, 1e-5, _250K, 250000, 5000, "hat_x4_800k_imagenet"
    ),
    "HAT-L_SRx2_ImageNet_from_scratch": Option("hat-large_x2_800k_imagenet", 2, 128, 2e-4, _800K, 800000, 10000, None),
    "HAT-L_SRx3_ImageNet_from_scratch": Option("hat-large_x3_800k_imagenet", 3, 192, 2e-4, _800K, 800000, 10000, None),
    "HAT-L_SRx4_ImageNet_from_scratch": Option("hat-large_x4_800k_imagenet", 4, 256, 2e-4, _800K, 800000, 10000, None),
    "HAT-L_SRx2_finetune_from_ImageNet_pretrain": Option(
        "hat-large_x2_250k_imagenet-df2k", 2, 128, 1e-5, _250K, 250000, 5000, "hat-large_x2_800k_imagenet"
    ),
    "HAT-L_SRx3_finetune_from_ImageNet_pretrain": Option(
        "hat-large_x3_250k_imagenet-df2k", 3, 192, 1e-5, _250K, 250000, 5000, "hat-large_x3_800k_imagenet"
    ),
    "HAT-L_SRx4_finetune_from_ImageNet_pretrain": Option(
        "hat-large_x4_250k_imagenet-df2k", 4, 256, 1e-5, _250K, 250000, 5000, "hat-large_x4_800k_imagenet"
    ),
}
# network_g of the option files: embed_dim, groups, compress_ratio, squeeze_factor.
NETWORKS = {"HAT-S": (144, 6, 24, 24), "HAT": (180, 6, 3, 30), "HAT-L": (180, 12, 3, 30)}


def test_every_published_training_has_its_config():
    assert sorted(f"hat/{option.config}" for option in OPTIONS.values()) == [
        name for name in list_configs() if name.startswith("hat/")
    ]


@pytest.mark.parametrize("published", OPTIONS)
def test_fields(published):
    option = OPTIONS[published]
    cfg = load_config(f"hat/{option.config}")

    assert cfg.optim_wrapper.optimizer == dict(type="Adam", lr=option.lr, betas=(0.9, 0.99), weight_decay=0)
    assert cfg.param_scheduler == [dict(type="MultiStepLR", by_epoch=False, milestones=option.milestones, gamma=0.5)]
    assert cfg.train_cfg == dict(type="IterBasedTrainLoop", max_iters=option.total_iter, val_interval=option.val_freq)
    assert cfg.default_hooks.checkpoint.interval == option.val_freq
    assert [1 - hook.momentum for hook in cfg.custom_hooks if hook.type == "EMAHook"] == [pytest.approx(0.999)]
    assert cfg.randomness.seed == 0

    train, val = cfg.train_dataloader, cfg.val_dataloader
    load, crop, turn, _ = train.dataset.pipeline
    assert (train.batch_size, train.num_workers) == (4, 6)
    assert crop.img_size * train.dataset.scale == option.gt_size
    assert turn.transforms == [dict(type="D4", p=1.0)]
    assert train.dataset.scale == val.dataset.scale == cfg.test_dataloader.dataset.scale == option.upscale
    assert val.dataset == cfg.test_dataloader.dataset
    scale = option.upscale
    assert val.dataset.data_prefix == dict(gt=f"Set5/GTmod{scale}", img=f"Set5/LRbicx{scale}")
    if "ImageNet_from_scratch" in published:
        assert train.dataset.data_prefix == dict(gt="ImageNet/GT")
        assert not load.quantize and load.min_size * scale == option.gt_size
    else:
        assert train.dataset.data_prefix == dict(gt="DF2K/DF2K_HR_sub", img=f"DF2K/DF2K_bicx{scale}_sub")
    assert [METRICS.build(metric).crop_border for metric in cfg.val_evaluator] == [None, None], "that is the scale"
    assert OPTIMIZERS.get(cfg.optim_wrapper.optimizer.type) is not None

    init: Any = cfg.model.get("init_cfg")
    if option.pretrain_network_g is None:
        assert init is None
    else:
        iters = load_config(f"hat/{option.pretrain_network_g}").train_cfg.max_iters
        assert init.checkpoint == f"work_dirs/{option.pretrain_network_g}/iter_{iters}.pth"
        same = load_config(f"hat/{option.pretrain_network_g}").model.model_name
        assert init.get("model_name", cfg.model.model_name) == same


@pytest.mark.parametrize("published", ["HAT-S_SRx2_from_scratch", "HAT_SRx4_finetune_from_SRx2",
                                       "HAT-L_SRx3_ImageNet_from_scratch"])  # fmt: skip
def test_networks(published):
    option = OPTIONS[published]
    model = MODELS.build(load_config(f"hat/{option.config}").model).model
    dim, groups, compress, squeeze = NETWORKS[published.split("_")[0]]
    block = model.stages[0].blocks[-1]
    assert (model.upscale, model.window_size, model.overlap, model.num_features) == (option.upscale, 16, 8, dim)
    assert [len(stage.blocks) for stage in model.stages] == [6] * groups
    assert {block.attn.num_heads for stage in model.stages for block in stage.blocks} == {6}
    assert block.conv_block.conv1.out_channels == dim // compress
    assert block.conv_block.gate[0].out_features == dim // squeeze
    assert block.conv_block.scale == 0.01
    assert block.mlp.fc1.out_features == 2 * dim
    # hat/archs/hat_arch.py: drop_path_rate=0.1 unless the option file says otherwise, and none does.
    assert model.stages[-1].blocks[-1].drop_path.drop_prob == pytest.approx(0.1)
