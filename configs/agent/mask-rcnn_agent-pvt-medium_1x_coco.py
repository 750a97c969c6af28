# As published: https://github.com/LeapLabTHU/Agent-Attention.
_base_ = "../_base_/mask-rcnn_1x_coco.py"

model = dict(
    backbone=dict(model_name="agent_pvt_medium", drop_path_rate=0.1, agent_grids=(12, 16, 28, 28)),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
optim_wrapper = dict(optimizer=dict(lr=2e-4, weight_decay=1e-4), paramwise_cfg=None)
