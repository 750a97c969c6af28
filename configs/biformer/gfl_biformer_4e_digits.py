# GFL on a BiFormer of 1.5 M parameters, from scratch: the detector of `attnzoo demo`.
_base_ = "../_base_/digits_detection.py"

# At 160 pixels the maps of stages 0 to 2 have 40, 20 and 10 pixels a side: 5 regions a side divide them all.
sizes = dict(depths=(1, 1, 2, 1), embed_dims=(32, 64, 128, 256), head_dim=32, n_win=5, topks=(1, 4, 16, -2))
strides = [8, 16, 32]

model = dict(
    type="GFL",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(type="attnzoo.Backbone", model_name="biformer_tiny", out_indices=(1, 2, 3), **sizes),
    neck=dict(type="FPN", in_channels=list(sizes["embed_dims"][1:]), out_channels=64, num_outs=3),
    bbox_head=dict(
        type="GFLHead",
        num_classes=10,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        anchor_generator=dict(
            type="AnchorGenerator", ratios=[1.0], octave_base_scale=8, scales_per_octave=1, strides=strides
        ),
        loss_cls=dict(type="QualityFocalLoss", use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_dfl=dict(type="DistributionFocalLoss", loss_weight=0.25),
        loss_bbox=dict(type="GIoULoss", loss_weight=2.0),
        reg_max=16,
    ),
    train_cfg=dict(assigner=dict(type="ATSSAssigner", topk=9), allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(
        nms_pre=300, min_bbox_size=0, score_thr=0.05, nms=dict(type="nms", iou_threshold=0.6), max_per_img=100
    ),
)

epochs = 4
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=epochs, val_interval=2)
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
