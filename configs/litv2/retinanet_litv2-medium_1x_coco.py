# As published: https://github.com/ziplab/LITv2.
_base_ = "../_base_/retinanet_1x_coco.py"

model = dict(
    backbone=dict(
        model_name="litv2_medium",
        drop_path_rate=0.2,
        local_ws=(0, 0, 2, 1),
        stage_norms=dict(type="layernorm2d", eps=1e-5, levels=(1, 2, 3)),
    ),
    neck=dict(in_channels=[192, 384, 768]),
)
