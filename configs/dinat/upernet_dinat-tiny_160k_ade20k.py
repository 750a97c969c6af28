# As published: https://github.com/SHI-Labs/Neighborhood-Attention-Transformer.
_base_ = "../_base_/upernet_160k_ade20k.py"

model = dict(
    backbone=dict(
        model_name="dinat_tiny",
        drop_path_rate=0.3,
        dilations=((1, 16), (1, 4, 1, 8), (1, 2, 1, 3, 1, 4), (1, 2)),
        stage_norms=dict(type="layernorm2d", eps=1e-5),
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(rpb=dict(decay_mult=0.0))))
