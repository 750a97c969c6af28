# As published: https://github.com/dingmyu/davit. All is decayed.
_base_ = "../_base_/upernet_160k_ade20k.py"

model = dict(
    backbone=dict(model_name="davit_tiny", drop_path_rate=0.3, stage_norms=dict(type="layernorm2d", eps=1e-5)),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
optim_wrapper = dict(paramwise_cfg=None)
