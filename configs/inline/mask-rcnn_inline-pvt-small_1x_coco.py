# No recipe is published for this pair: that of Agent-PVT, by the same authors on the same body.
_base_ = "../_base_/mask-rcnn_1x_coco.py"

model = dict(
    backbone=dict(model_name="inline_pvt_small", drop_path_rate=0.1), neck=dict(in_channels=[64, 128, 320, 512])
)
optim_wrapper = dict(optimizer=dict(lr=2e-4, weight_decay=1e-4), paramwise_cfg=None)
