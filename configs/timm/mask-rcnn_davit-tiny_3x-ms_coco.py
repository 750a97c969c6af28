# As published: https://github.com/dingmyu/davit. All is decayed.
_base_ = "../_base_/mask-rcnn_3x-ms_coco.py"

model = dict(
    backbone=dict(model_name="davit_tiny", drop_path_rate=0.2, stage_norms=dict(type="layernorm2d", eps=1e-5)),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(paramwise_cfg=None)
