# Semantic FPN on a VAN of 0.8 M parameters, from scratch: the segmentor of `attnzoo demo`.
_base_ = "../_base_/digits_segmentation.py"

sizes = dict(depths=(1, 1, 2, 1), embed_dims=(24, 48, 96, 160), mlp_ratios=(4.0, 4.0, 4.0, 4.0))

model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size_divisor=32,
        test_cfg=dict(size_divisor=32),
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=dict(type="attnzoo.Backbone", model_name="van_b0", out_indices=(0, 1, 2, 3), **sizes),
    neck=dict(type="FPN", in_channels=list(sizes["embed_dims"]), out_channels=64, num_outs=4),
    decode_head=dict(
        type="FPNHead",
        in_channels=[64, 64, 64, 64],
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=48,
        num_classes=2,
        norm_cfg=dict(type="BN"),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss"),
    ),
    test_cfg=dict(mode="whole"),
)

epochs = 3
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=epochs, val_interval=1)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", T_max=epochs, by_epoch=True, convert_to_iter_based=True),
]
