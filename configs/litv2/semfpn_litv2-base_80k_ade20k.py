# As published: https://github.com/ziplab/LITv2.
_base_ = "../_base_/semfpn_80k_ade20k.py"

model = dict(
    backbone=dict(
        model_name="litv2_base",
        drop_path_rate=0.3,
        local_ws=(0, 0, 2, 1),
        stage_norms=dict(type="layernorm2d", eps=1e-5),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=1e-6, begin=0, end=80000, by_epoch=False)]
