# As published: https://github.com/rayleizhu/BiFormer.
_base_ = "../_base_/upernet_160k_ade20k.py"

model = dict(
    backbone=dict(model_name="biformer_small", drop_path_rate=0.3, n_win=8, stage_norms="layernorm2d"),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
