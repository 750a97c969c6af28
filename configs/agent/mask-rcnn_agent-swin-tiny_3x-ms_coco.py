# As published: https://github.com/LeapLabTHU/Agent-Attention.
_base_ = "../_base_/mask-rcnn_3x-ms_coco.py"

undecayed = ("an_bias", "na_bias", "ah_bias", "aw_bias", "ha_bias", "wa_bias", "relative_position_bias_table")

model = dict(
    backbone=dict(
        model_name="agent_swin_tiny",
        drop_path_rate=0.1,
        agent_grids=(9, 12, 14, 7),
        stage_norms=dict(type="layernorm2d", eps=1e-5),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={name: dict(decay_mult=0.0) for name in undecayed}))
