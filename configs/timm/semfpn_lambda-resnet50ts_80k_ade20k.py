# No recipe is published for this pair: PVT's.
_base_ = "../_base_/semfpn_80k_ade20k.py"

model = dict(
    backbone=dict(model_name="lambda_resnet50ts", out_indices=(1, 2, 3, 4)),
    neck=dict(in_channels=[256, 512, 1024, 2048]),
)
