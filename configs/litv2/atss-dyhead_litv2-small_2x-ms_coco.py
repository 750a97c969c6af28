# No recipe is published for this pair: DyHead's for Swin, with the backbone as LITv2's detectors have it.
_base_ = "../_base_/atss-dyhead_2x-ms_coco.py"

model = dict(
    backbone=dict(
        model_name="litv2_small",
        drop_path_rate=0.2,
        local_ws=(0, 0, 2, 1),
        stage_norms=dict(type="layernorm2d", eps=1e-5, levels=(1, 2, 3)),
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
