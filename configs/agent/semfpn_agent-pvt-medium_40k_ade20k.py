# As published: https://github.com/LeapLabTHU/Agent-Attention. 16 images an iteration.
_base_ = "../_base_/semfpn_40k_ade20k.py"

model = dict(
    backbone=dict(model_name="agent_pvt_medium", drop_path_rate=0.2, agent_grids=(12, 16, 28, 28)),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
train_dataloader = dict(batch_size=2)
auto_scale_lr = dict(base_batch_size=16)
