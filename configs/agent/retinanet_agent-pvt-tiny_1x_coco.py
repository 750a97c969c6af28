# As published: https://github.com/LeapLabTHU/Agent-Attention.
_base_ = "../_base_/retinanet_1x_coco.py"

model = dict(
    backbone=dict(model_name="agent_pvt_tiny", drop_path_rate=0.1, agent_grids=(12, 16, 28, 28)),
    neck=dict(in_channels=[128, 320, 512]),
)
