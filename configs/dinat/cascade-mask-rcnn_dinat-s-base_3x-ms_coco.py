# As published: https://github.com/SHI-Labs/Neighborhood-Attention-Transformer.
_base_ = "../_base_/cascade-mask-rcnn_3x-ms_coco.py"

model = dict(
    backbone=dict(
        model_name="dinat_s_base",
        drop_path_rate=0.6,
        dilations=((1, 28), (1, 14), (1, 3, 1, 5, 1, 7), (1, 3)),
        stage_norms=dict(type="layernorm2d", eps=1e-5),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(rpb=dict(decay_mult=0.0))), optimizer=dict(lr=7.5e-5))
