# BEVFormer-base without its backbone, 24 epochs (https://arxiv.org/abs/2203.17270): images of 1600 x 900, four levels,
# 200 x 200 cells, 3 frames of history. Source: fundamentalvision/BEVFormer, projects/configs/bevformer.
_base_ = "nuscenes.py"

model = dict(
    type="attnzoo.BEVDetector",
    data_preprocessor=dict(
        type="attnzoo.BEVDataPreprocessor", pad_size_divisor=32, grid_mask=dict(ratio=0.5, prob=0.7)
    ),
    neck=dict(
        type="mmdet.FPN",
        out_channels=256,
        start_level=0,
        add_extra_convs="on_output",
        relu_before_extra_convs=True,
        num_outs=4,
    ),
    bev_encoder=dict(
        type="attnzoo.BEVEncoder",
        rows=200,
        columns=200,
        point_range=[-51.2, -51.2, -5.0, 51.2, 51.2, 3.0],
        num_layers=6,
        num_levels=4,
        # As published, in smaller grids too, where it is not the middle: checkpoints have learned it.
        rotate_center=[100, 100],
    ),
    detection_head=dict(
        type="attnzoo.BEVDetectionHead",
        point_range=[-51.2, -51.2, -5.0, 51.2, 51.2, 3.0],
        coder=dict(center_range=[-61.2, -61.2, -10.0, 61.2, 61.2, 10.0], max_num=300),
    ),
)

train_dataloader = dict(dataset=dict(history=3))
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=24, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-4, weight_decay=0.01),
    clip_grad=dict(max_norm=35.0),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1 / 3, by_epoch=False, begin=0, end=500),
    dict(type="CosineAnnealingLR", by_epoch=True, T_max=24, end=24, eta_min_ratio=1e-3),
]
default_hooks = dict(
    logger=dict(type="LoggerHook", interval=50),
    checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=3, save_best="NDS", rule="greater"),
)
