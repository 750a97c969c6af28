# No recipe is published for this pair: DyHead's for Swin, with the backbone as Agent-Swin's detectors have it.
_base_ = "../_base_/atss-dyhead_2x-ms_coco.py"

undecayed = ("an_bias", "na_bias", "ah_bias", "aw_bias", "ha_bias", "wa_bias", "relative_position_bias_table")

model = dict(
    backbone=dict(
        model_name="agent_swin_tiny",
        drop_path_rate=0.1,
        agent_grids=(9, 12, 14, 7),
        stage_norms=dict(type="layernorm2d", eps=1e-5),
    ),
    neck=[
        dict(
            type="FPN",
            in_channels=[192, 384, 768],
            out_channels=256,
            start_level=0,
            add_extra_convs="on_output",
            num_outs=5,
        ),
        dict(type="attnzoo.DyHead", in_channels=256, out_channels=256, num_blocks=6),
    ],
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={name: dict(decay_mult=0.0) for name in undecayed}))
