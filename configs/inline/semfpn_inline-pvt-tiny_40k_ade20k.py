# No recipe is published for this pair: that of Agent-PVT, by the same authors on the same body.
_base_ = "../_base_/semfpn_40k_ade20k.py"

model = dict(
    backbone=dict(model_name="inline_pvt_tiny", drop_path_rate=0.1), neck=dict(in_channels=[64, 128, 320, 512])
)
train_dataloader = dict(batch_size=2)
auto_scale_lr = dict(base_batch_size=16)
