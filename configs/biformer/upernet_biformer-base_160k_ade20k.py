# As published: https://github.com/rayleizhu/BiFormer.
_base_ = "../_base_/upernet_160k_ade20k.py"

model = dict(
    backbone=dict(model_name="biformer_base", drop_path_rate=0.4, n_win=8, stage_norms="layernorm2d"),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
