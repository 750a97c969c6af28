# As published: https://github.com/SHI-Labs/Neighborhood-Attention-Transformer.
_base_ = "../_base_/mask-rcnn_3x-ms_coco.py"

model = dict(
    backbone=dict(model_name="nat_small", drop_path_rate=0.35, stage_norms=dict(type="layernorm2d", eps=1e-5)),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(rpb=dict(decay_mult=0.0))))
