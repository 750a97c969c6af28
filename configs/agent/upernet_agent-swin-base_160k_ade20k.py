# As published: https://github.com/LeapLabTHU/Agent-Attention.
_base_ = "../_base_/upernet_160k_ade20k.py"

undecayed = ("an_bias", "na_bias", "ah_bias", "aw_bias", "ha_bias", "wa_bias", "relative_position_bias_table")

model = dict(
    backbone=dict(
        model_name="agent_swin_base",
        drop_path_rate=0.5,
        agent_grids=(9, 12, 14, 7),
        stage_norms=dict(type="layernorm2d", eps=1e-5),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={name: dict(decay_mult=0.0) for name in undecayed}))
